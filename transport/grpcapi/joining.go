package grpcapi

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/joining"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// Joining lets operators give the cluster a CA and make join tokens, and machines use them.
type Joining interface {
	Show() (*joining.Info, error)
	Import(ctx context.Context, op ceremony.Operator, certificate, sealed []byte) error
	Remove(ctx context.Context, op ceremony.Operator) error
	CreateToken(ctx context.Context, op ceremony.Operator, p joining.TokenParams) (text string, expires time.Time, err error)
	// Authority and Join are for strangers.
	Authority() ([]byte, error)
	Join(ctx context.Context, in *joining.Request) (*kmspb.JoinClusterResponse, error)
}

func (c *clusterService) GetNodeCA(ctx context.Context, _ *kmspb.GetNodeCARequest) (*kmspb.GetNodeCAResponse, error) {
	if _, err := c.server.operator(ctx); err != nil {
		return nil, err
	}
	in, err := c.server.cfg.Ceremony.Joining().Show()
	if err != nil {
		return nil, err
	}
	res := &kmspb.GetNodeCAResponse{NodeId: in.NodeID, ClusterId: in.ClusterID[:], Certificate: in.Certificate, Receiver: in.Receiver}
	if in.Certificate != nil {
		res.Imported = timestamppb.New(in.Imported)
	}
	return res, nil
}

func (c *clusterService) ImportNodeCA(ctx context.Context, in *kmspb.ImportNodeCARequest) (*kmspb.ImportNodeCAResponse, error) {
	op, err := c.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.server.cfg.Ceremony.Joining().Import(ctx, op, in.GetCertificate(), in.GetSealedKey()); err != nil {
		return nil, err
	}
	return &kmspb.ImportNodeCAResponse{}, nil
}

func (c *clusterService) RemoveNodeCA(ctx context.Context, _ *kmspb.RemoveNodeCARequest) (*kmspb.RemoveNodeCAResponse, error) {
	op, err := c.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.server.cfg.Ceremony.Joining().Remove(ctx, op); err != nil {
		return nil, err
	}
	return &kmspb.RemoveNodeCAResponse{}, nil
}

func (c *clusterService) CreateJoinToken(ctx context.Context, in *kmspb.CreateJoinTokenRequest) (*kmspb.CreateJoinTokenResponse, error) {
	op, err := c.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	token, expires, err := c.server.cfg.Ceremony.Joining().CreateToken(ctx, op, joining.TokenParams{
		Node: in.GetNodeId(), Address: in.GetPeerAddress(), Names: in.GetNames(), Life: time.Duration(in.GetTtlSeconds()) * time.Second,
	})
	if err != nil {
		return nil, err
	}
	return &kmspb.CreateJoinTokenResponse{Token: token, Expires: timestamppb.New(expires)}, nil
}

// joiningService is for strangers: its calls have places in their pool only, and can be
// evicted until they are answered. What they may cost is bounded by the Joining itself.
type joiningService struct {
	kmspb.UnimplementedJoiningServer
	server *Server
}

func (j *joiningService) GetJoinAuthority(context.Context, *kmspb.GetJoinAuthorityRequest) (*kmspb.GetJoinAuthorityResponse, error) {
	cert, err := j.server.cfg.Ceremony.Joining().Authority()
	if err != nil {
		return nil, err
	}
	return &kmspb.GetJoinAuthorityResponse{Certificate: cert}, nil
}

func (j *joiningService) JoinCluster(ctx context.Context, in *kmspb.JoinClusterRequest) (*kmspb.JoinClusterResponse, error) {
	call := callOf(ctx)
	return j.server.cfg.Ceremony.Joining().Join(ctx, &joining.Request{
		Token: in.GetToken(), CSR: in.GetCsr(), SourceIP: call.SourceIP, RequestID: call.ID,
	})
}
