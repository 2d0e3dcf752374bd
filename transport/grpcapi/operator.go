package grpcapi

import (
	"context"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// Ceremony is what operators can make the cluster do; the node implements it,
// asking its peers where a call is for all of them. What one node makes of a
// call stands in its NodeStatus, see Detail; an error is of the call as a whole.
type Ceremony interface {
	// Status describes this node, and with all every node.
	Status(ctx context.Context, all bool) (*kmspb.StatusResponse, error)
	Init(ctx context.Context, op keyengine.Operator, p keyengine.InitParams) (*keyengine.InitResult, error)
	// SubmitShare gives the share to every node, or with local to this one only.
	SubmitShare(ctx context.Context, op keyengine.Operator, share string, local bool) ([]*kmspb.NodeStatus, error)
	ResetShares(ctx context.Context, op keyengine.Operator, local bool) ([]*kmspb.NodeStatus, error)
	// Seal seals this node, and with all every node.
	Seal(ctx context.Context, op keyengine.Operator, all bool) ([]*kmspb.NodeStatus, error)
	ConfirmTime(ctx context.Context, op keyengine.Operator) error
	Members(ctx context.Context) ([]*kmspb.Member, error)
}

// Detail is an error as a NodeStatus tells it; nil for nil. Nothing internal is
// in it.
func Detail(err error, id keyengine.RequestID) *kmspb.ErrorDetail {
	if err == nil {
		return nil
	}
	a := lookup(err)
	return &kmspb.ErrorDetail{Type: a.Type, Message: a.Message, RequestId: transport.FormatRequestID(id)}
}

// SealState is how a node's seal stands, as a message.
func SealState(st keyengine.SealStatus) *kmspb.SealState {
	m := &kmspb.SealState{
		Initialised:  st.Initialised,
		Sealed:       st.Sealed,
		Threshold:    uint32(st.Threshold),
		Shares:       uint32(st.Shares),
		Progress:     uint32(st.Progress),
		ClusterId:    st.ClusterID,
		Account:      st.Account,
		Region:       st.Region,
		MoreRegions:  st.MoreRegions,
		Partition:    st.Partition,
		MemoryLocked: st.MemoryLocked,
	}
	for _, i := range st.Custodians {
		m.Custodians = append(m.Custodians, uint32(i))
	}
	return m
}

type operatorService struct {
	kmspb.UnimplementedOperatorServer
	server *Server
}

// Status answers strangers too: who cannot tell a sealed node from a broken one
// will restart it. They cannot make this node ask others.
func (o *operatorService) Status(ctx context.Context, in *kmspb.StatusRequest) (*kmspb.StatusResponse, error) {
	_, err := o.server.operator(ctx)
	known := err == nil
	st, err := o.server.cfg.Ceremony.Status(ctx, known && in.GetAll())
	if err != nil || known {
		return st, err
	}
	seal := st.GetSeal()
	return &kmspb.StatusResponse{
		HasLeader: st.GetHasLeader(),
		Seal: &kmspb.SealState{
			Initialised: seal.GetInitialised(),
			Sealed:      seal.GetSealed(),
			Threshold:   seal.GetThreshold(),
			Shares:      seal.GetShares(),
			Progress:    seal.GetProgress(),
		},
	}, nil
}

func (o *operatorService) Init(ctx context.Context, in *kmspb.InitRequest) (*kmspb.InitResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	r, err := o.server.cfg.Ceremony.Init(ctx, op, keyengine.InitParams{
		Shares:          int(in.GetShares()),
		Threshold:       int(in.GetThreshold()),
		Account:         in.GetAccount(),
		Region:          in.GetRegion(),
		Regions:         in.GetRegions(),
		Partition:       in.GetPartition(),
		AnyRegion:       in.GetAnyRegion(),
		RootCertificate: in.GetRootCertificate(),
	})
	if err != nil {
		return nil, err
	}
	return &kmspb.InitResponse{
		ClusterId:       r.ClusterID,
		Shares:          r.Shares,
		AccessKeyId:     r.AccessKeyID,
		SecretAccessKey: r.SecretAccessKey,
		RootArn:         r.RootARN,
		VerifierKey:     r.VerifierKey,
	}, nil
}

func (o *operatorService) SubmitShare(ctx context.Context, in *kmspb.SubmitShareRequest) (*kmspb.SubmitShareResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := o.server.cfg.Ceremony.SubmitShare(ctx, op, in.GetShare(), in.GetLocal())
	if err != nil {
		return nil, err
	}
	return &kmspb.SubmitShareResponse{Nodes: nodes}, nil
}

func (o *operatorService) ResetShares(ctx context.Context, in *kmspb.ResetSharesRequest) (*kmspb.ResetSharesResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := o.server.cfg.Ceremony.ResetShares(ctx, op, in.GetLocal())
	if err != nil {
		return nil, err
	}
	return &kmspb.ResetSharesResponse{Nodes: nodes}, nil
}

func (o *operatorService) Seal(ctx context.Context, in *kmspb.SealRequest) (*kmspb.SealResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := o.server.cfg.Ceremony.Seal(ctx, op, in.GetAll())
	if err != nil {
		return nil, err
	}
	return &kmspb.SealResponse{Nodes: nodes}, nil
}

func (o *operatorService) ConfirmTime(ctx context.Context, _ *kmspb.ConfirmTimeRequest) (*kmspb.ConfirmTimeResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	if err := o.server.cfg.Ceremony.ConfirmTime(ctx, op); err != nil {
		return nil, err
	}
	return &kmspb.ConfirmTimeResponse{}, nil
}

type clusterService struct {
	kmspb.UnimplementedClusterServer
	server *Server
}

func (c *clusterService) Members(ctx context.Context, _ *kmspb.MembersRequest) (*kmspb.MembersResponse, error) {
	if _, err := c.server.operator(ctx); err != nil {
		return nil, err
	}
	members, err := c.server.cfg.Ceremony.Members(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.MembersResponse{Members: members}, nil
}
