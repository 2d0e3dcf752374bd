package peers

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
)

// AskUnseal implements the Peer service.
func (s *server) AskUnseal(ctx context.Context, r *clusterpb.AskUnsealRequest) (*clusterpb.AskUnsealResponse, error) {
	node, err := s.member(ctx)
	if err != nil {
		return nil, err
	}
	if len(r.Session) != peerproof.NonceSize {
		return nil, status.Error(codes.InvalidArgument, "not a session")
	}
	refusal, err := s.node.AskUnseal(ctx, node, [peerproof.NonceSize]byte(r.Session))
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	return &clusterpb.AskUnsealResponse{Refusal: refusal}, nil
}

// ChallengeUnseal implements the Peer service.
func (s *server) ChallengeUnseal(ctx context.Context, r *clusterpb.ChallengeUnsealRequest) (*clusterpb.ChallengeUnsealResponse, error) {
	node, err := s.member(ctx)
	if err != nil {
		return nil, err
	}
	if len(r.Nonce) != peerproof.NonceSize {
		return nil, status.Error(codes.InvalidArgument, "not a nonce")
	}
	a, err := s.node.ChallengeUnseal(node, r.Nonce)
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return a, nil
}

// DeliverUnseal implements the Peer service.
func (s *server) DeliverUnseal(ctx context.Context, r *clusterpb.DeliverUnsealRequest) (*clusterpb.DeliverUnsealResponse, error) {
	node, err := s.member(ctx)
	if err != nil {
		return nil, err
	}
	if len(r.Nonce) != peerproof.NonceSize {
		return nil, status.Error(codes.InvalidArgument, "not a nonce")
	}
	if err := s.node.DeliverUnseal(ctx, node, r.Nonce, r.Part); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return &clusterpb.DeliverUnsealResponse{}, nil
}
