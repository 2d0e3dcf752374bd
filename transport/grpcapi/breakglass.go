package grpcapi

import (
	"context"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/kmspb"
)

func breakGlassMessage(b *ceremony.BreakGlass, op ceremony.Operator) *kmspb.BreakGlass {
	m := &kmspb.BreakGlass{RequestId: transport.FormatRequestID(op.RequestID), NodeId: b.NodeID, ClusterId: b.ClusterID[:], Threshold: uint32(b.Threshold), Active: b.Active}
	if !b.Active {
		return m
	}
	m.Nonce, m.PublicKey, m.Owner, m.Account, m.Reason = b.Nonce[:], b.PublicKey, b.Owner, b.Account, b.Reason
	m.Duration, m.Began, m.Expires = durationpb.New(b.Life), timestamppb.New(b.Began), timestamppb.New(b.Expires)
	m.Custodians = indexes(b.Custodians)
	m.ShareSet = shareSetMessage(b.ShareSet)
	return m
}

func (o *operatorService) BeginBreakGlass(ctx context.Context, in *kmspb.BeginBreakGlassRequest) (*kmspb.BeginBreakGlassResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	b, err := o.server.cfg.Ceremony.BeginBreakGlass(ctx, op, ceremony.BreakGlassParams{
		Account: in.GetAccount(), Reason: in.GetReason(), Life: in.GetDuration().AsDuration(),
	})
	if err != nil {
		return nil, err
	}
	return &kmspb.BeginBreakGlassResponse{Ceremony: breakGlassMessage(b, op)}, nil
}

func (o *operatorService) GetBreakGlass(ctx context.Context, _ *kmspb.GetBreakGlassRequest) (*kmspb.GetBreakGlassResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	b, err := o.server.cfg.Ceremony.BreakGlass()
	if err != nil {
		return nil, err
	}
	return &kmspb.GetBreakGlassResponse{Ceremony: breakGlassMessage(b, op)}, nil
}

func (o *operatorService) SubmitBreakGlassShare(ctx context.Context, in *kmspb.SubmitBreakGlassShareRequest) (*kmspb.SubmitBreakGlassShareResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	b, key, err := o.server.cfg.Ceremony.SubmitBreakGlassShare(ctx, op, in.GetNonce(), in.GetSealedShare(), in.GetAnswerKey())
	if err != nil {
		return nil, err
	}
	r := &kmspb.SubmitBreakGlassShareResponse{Ceremony: breakGlassMessage(b, op)}
	if key != nil {
		r.Key = &kmspb.BreakGlassKey{AccessKeyId: key.AccessKeyID, SealedSecret: key.SealedSecret, RootArn: key.RootARN, Expires: timestamppb.New(key.Expires)}
	}
	return r, nil
}

func (o *operatorService) CancelBreakGlass(ctx context.Context, in *kmspb.CancelBreakGlassRequest) (*kmspb.CancelBreakGlassResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.CancelBreakGlassResponse{}, o.server.cfg.Ceremony.CancelBreakGlass(ctx, op, in.GetNonce())
}
