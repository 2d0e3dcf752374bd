package grpcapi

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// Ceremony is what operators can make this node do; the node implements it. The
// outcome of a call is in the NodeStatus; see Detail. An error is about the call
// as a whole.
type Ceremony interface {
	Status(ctx context.Context) (*kmspb.StatusResponse, error)
	Init(ctx context.Context, op ceremony.Operator, p ceremony.InitParams) (*ceremony.InitResult, error)
	Challenge(ctx context.Context) (*ceremony.Challenge, error)
	// SubmitShare submits a share to this node, encrypted to the challenge with
	// that nonce.
	SubmitShare(ctx context.Context, op ceremony.Operator, nonce, sealed []byte) *kmspb.NodeStatus
	// ResetShares ends the current ceremony. force ends that of another operator
	// too.
	ResetShares(ctx context.Context, op ceremony.Operator, force []byte) *kmspb.NodeStatus
	Seal(ctx context.Context, op ceremony.Operator) *kmspb.NodeStatus
	ConfirmTime(ctx context.Context, op ceremony.Operator) error
	// InstallCRL puts a certificate revocation list, in DER, into force.
	InstallCRL(ctx context.Context, op ceremony.Operator, der []byte) *kmspb.NodeStatus
	BeginBreakGlass(ctx context.Context, op ceremony.Operator, p ceremony.BreakGlassParams) (*ceremony.BreakGlass, error)
	BreakGlass() (*ceremony.BreakGlass, error)
	SubmitBreakGlassShare(ctx context.Context, op ceremony.Operator, nonce, sealed, answerKey []byte) (*ceremony.BreakGlass, *ceremony.BreakGlassKey, error)
	CancelBreakGlass(ctx context.Context, op ceremony.Operator, nonce []byte) error
	Members(ctx context.Context) ([]*kmspb.Member, error)
	UpgradeStatus(ctx context.Context) (*kmspb.UpgradeStatusResponse, error)
	FinalizeUpgrade(ctx context.Context, op ceremony.Operator) (*kmspb.FinalizeUpgradeResponse, error)
	// SaveSnapshot writes a backup. Size and hash of the result are left to the caller.
	SaveSnapshot(ctx context.Context, op ceremony.Operator, withAudit bool, to io.Writer) (*kmspb.SavedSnapshot, error)
}

// Detail returns an error in the form of a NodeStatus; nil for nil. It reveals
// nothing internal.
func Detail(err error, id iam.RequestID) *kmspb.ErrorDetail {
	if err == nil {
		return nil
	}
	a := transport.Lookup(err)
	return &kmspb.ErrorDetail{Type: a.Type, Message: shortened(a.Message), RequestId: transport.FormatRequestID(id)}
}

// SealState returns the progress of unsealing as a message.
func SealState(st ceremony.SealStatus) *kmspb.SealState {
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
	if c := st.Ceremony; c != nil {
		m.Ceremony = &kmspb.Ceremony{Nonce: c.Nonce[:], Owner: c.Owner, Began: timestamppb.New(c.Began), Expires: timestamppb.New(c.Expires)}
	}
	return m
}

type operatorService struct {
	kmspb.UnimplementedOperatorServer
	server *Server
}

// Status answers strangers too: somebody who cannot distinguish a sealed node
// from a broken one would restart it.
func (o *operatorService) Status(ctx context.Context, _ *kmspb.StatusRequest) (*kmspb.StatusResponse, error) {
	_, err := o.server.operator(ctx)
	known := err == nil
	st, err := o.server.cfg.Ceremony.Status(ctx)
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
	if in.GetAnswerKey() == nil {
		return nil, errAnswerKey
	}
	r, err := o.server.cfg.Ceremony.Init(ctx, op, ceremony.InitParams{
		Shares:          int(in.GetShares()),
		Threshold:       int(in.GetThreshold()),
		Account:         in.GetAccount(),
		Region:          in.GetRegion(),
		Regions:         in.GetRegions(),
		Partition:       in.GetPartition(),
		AnyRegion:       in.GetAnyRegion(),
		RootCertificate: in.GetRootCertificate(),
		AnswerKey:       in.GetAnswerKey(),
	})
	if err != nil {
		return nil, err
	}
	return &kmspb.InitResponse{
		ClusterId:     r.ClusterID,
		AccessKeyId:   r.AccessKeyID,
		SealedSecrets: r.SealedSecrets,
		RootArn:       r.RootARN,
		VerifierKey:   r.VerifierKey,
	}, nil
}

// errAnswerKey: without a key to encrypt them to, secrets would be in the clear
// on the wire and in this node's buffers.
var errAnswerKey = &kmsapi.Error{Code: kmsapi.ErrValidation.Code,
	Message: "Init needs the public key that the shares and the root user's secret are to be encrypted to."}

func (o *operatorService) Challenge(ctx context.Context, _ *kmspb.ChallengeRequest) (*kmspb.ChallengeResponse, error) {
	if _, err := o.server.operator(ctx); err != nil {
		return nil, err
	}
	c, err := o.server.cfg.Ceremony.Challenge(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.ChallengeResponse{NodeId: c.NodeID, ClusterId: c.ClusterID[:], Nonce: c.Nonce[:], PublicKey: c.PublicKey}, nil
}

func (o *operatorService) SubmitShare(ctx context.Context, in *kmspb.SubmitShareRequest) (*kmspb.SubmitShareResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.SubmitShareResponse{Node: o.server.cfg.Ceremony.SubmitShare(ctx, op, in.GetNonce(), in.GetSealedShare())}, nil
}

func (o *operatorService) ResetShares(ctx context.Context, in *kmspb.ResetSharesRequest) (*kmspb.ResetSharesResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.ResetSharesResponse{Node: o.server.cfg.Ceremony.ResetShares(ctx, op, in.GetForce())}, nil
}

func (o *operatorService) Seal(ctx context.Context, _ *kmspb.SealRequest) (*kmspb.SealResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.SealResponse{Node: o.server.cfg.Ceremony.Seal(ctx, op)}, nil
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

func (o *operatorService) InstallCRL(ctx context.Context, in *kmspb.InstallCRLRequest) (*kmspb.InstallCRLResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.InstallCRLResponse{Node: o.server.cfg.Ceremony.InstallCRL(ctx, op, in.GetCrl())}, nil
}

// SaveSnapshot sends a backup. It lasts as long as the caller takes, like a reading of the
// audit log, with which it shares the number of places.
func (o *operatorService) SaveSnapshot(in *kmspb.SaveSnapshotRequest, ss grpc.ServerStreamingServer[kmspb.SaveSnapshotResponse]) error {
	ctx := ss.Context()
	op, err := o.server.operator(ctx)
	if err != nil {
		return err
	}
	if err := callOf(ctx).Stay(&o.server.gates.audits); err != nil {
		return err
	}
	to := &snapshotSender{to: ss, sum: sha256.New()}
	saved, err := o.server.cfg.Ceremony.SaveSnapshot(ctx, op, !in.GetWithoutAudit(), to)
	if err != nil {
		return err
	}
	saved.Size, saved.Sha256 = to.size, to.sum.Sum(nil)
	return ss.Send(&kmspb.SaveSnapshotResponse{Saved: saved})
}

// snapshotSender sends what is written to it.
type snapshotSender struct {
	to   grpc.ServerStreamingServer[kmspb.SaveSnapshotResponse]
	sum  hash.Hash
	size uint64
}

// Write implements io.Writer.
func (s *snapshotSender) Write(b []byte) (int, error) {
	_, _ = s.sum.Write(b)
	for n := 0; n < len(b); {
		part := b[n:min(n+snapshotMessage, len(b))]
		if err := s.to.Send(&kmspb.SaveSnapshotResponse{Data: part}); err != nil {
			return n, err
		}
		n += len(part)
		s.size += uint64(len(part))
	}
	return len(b), nil
}

// snapshotMessage bounds the bytes of a backup in one message.
const snapshotMessage = 128 << 10

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

func (c *clusterService) UpgradeStatus(ctx context.Context, _ *kmspb.UpgradeStatusRequest) (*kmspb.UpgradeStatusResponse, error) {
	if _, err := c.server.operator(ctx); err != nil {
		return nil, err
	}
	return c.server.cfg.Ceremony.UpgradeStatus(ctx)
}

func (c *clusterService) FinalizeUpgrade(ctx context.Context, _ *kmspb.FinalizeUpgradeRequest) (*kmspb.FinalizeUpgradeResponse, error) {
	op, err := c.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	return c.server.cfg.Ceremony.FinalizeUpgrade(ctx, op)
}
