package grpcapi

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// KeyChanges are the ceremonies of a node that replace keys. *ceremony.KeyChanges implements it.
type KeyChanges interface {
	Begin(ctx context.Context, op ceremony.Operator, p ceremony.KeyChangeParams) (*ceremony.KeyChangeStatus, error)
	Status() (*ceremony.KeyChangeStatus, error)
	Submit(ctx context.Context, op ceremony.Operator, nonce, sealed []byte) (*ceremony.KeyChangeStatus, bool, error)
	NewShares(ctx context.Context, op ceremony.Operator, nonce, answerKey []byte) ([]byte, []ceremony.EncryptedShare, error)
	Cancel(ctx context.Context, op ceremony.Operator, nonce []byte) error
	ShareSet(ctx context.Context) (*ceremony.ShareSet, error)
}

var keyChangeKinds = map[kmspb.KeyChangeKind]ceremony.KeyChange{
	kmspb.KeyChangeKind_KEY_CHANGE_KIND_REKEY:          ceremony.Rekey,
	kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_ROOT:    ceremony.RotateRoot,
	kmspb.KeyChangeKind_KEY_CHANGE_KIND_ROTATE_KEYRING: ceremony.RotateKeyring,
}

func indexes(list []int) (out []uint32) {
	for _, i := range list {
		out = append(out, uint32(i))
	}
	return out
}

func keyChangeMessage(op ceremony.Operator, st *ceremony.KeyChangeStatus) *kmspb.KeyChange {
	m := &kmspb.KeyChange{
		RequestId: transport.FormatRequestID(op.RequestID), NodeId: st.NodeID, ClusterId: st.ClusterID[:],
		ShareSet: shareSetMessage(st.ShareSet), Generation: st.Generation, Settled: st.Settled, Active: st.Active,
	}
	if !st.Active {
		return m
	}
	for k, kind := range keyChangeKinds {
		if kind == st.Kind {
			m.Kind = k
		}
	}
	m.Nonce, m.PublicKey, m.Owner = st.Nonce[:], st.PublicKey, st.Owner
	m.Began, m.Expires = timestamppb.New(st.Began), timestamppb.New(st.Expires)
	m.NewShareSet, m.Proving = shareSetMessage(st.New), st.Proving
	m.Custodians, m.Missing, m.Needed = indexes(st.Custodians), indexes(st.Missing), uint32(st.Needed)
	return m
}

func (o *operatorService) BeginKeyChange(ctx context.Context, in *kmspb.BeginKeyChangeRequest) (*kmspb.BeginKeyChangeResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	kind, ok := keyChangeKinds[in.GetKind()]
	if !ok {
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "Say which keys have to be replaced.")
	}
	custodians, err := custodianKeys(in.GetCustodians(), in.GetShares())
	if err != nil {
		return nil, err
	}
	st, err := o.server.cfg.Ceremony.KeyChanges().Begin(ctx, op, ceremony.KeyChangeParams{
		Kind: kind, Shares: int(in.GetShares()), Threshold: int(in.GetThreshold()), Custodians: custodians,
	})
	if err != nil {
		return nil, err
	}
	return &kmspb.BeginKeyChangeResponse{Ceremony: keyChangeMessage(op, st)}, nil
}

func (o *operatorService) GetKeyChange(ctx context.Context, _ *kmspb.GetKeyChangeRequest) (*kmspb.GetKeyChangeResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	st, err := o.server.cfg.Ceremony.KeyChanges().Status()
	if err != nil {
		return nil, err
	}
	return &kmspb.GetKeyChangeResponse{Ceremony: keyChangeMessage(op, st)}, nil
}

func (o *operatorService) SubmitKeyChangeShare(ctx context.Context, in *kmspb.SubmitKeyChangeShareRequest) (*kmspb.SubmitKeyChangeShareResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	st, done, err := o.server.cfg.Ceremony.KeyChanges().Submit(ctx, op, in.GetNonce(), in.GetSealedShare())
	if err != nil {
		return nil, err
	}
	return &kmspb.SubmitKeyChangeShareResponse{Ceremony: keyChangeMessage(op, st), Done: done}, nil
}

func (o *operatorService) GetNewShares(ctx context.Context, in *kmspb.GetNewSharesRequest) (*kmspb.GetNewSharesResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	sealed, encrypted, err := o.server.cfg.Ceremony.KeyChanges().NewShares(ctx, op, in.GetNonce(), in.GetAnswerKey())
	if err != nil {
		return nil, err
	}
	return &kmspb.GetNewSharesResponse{SealedSecrets: sealed, EncryptedShares: encryptedShares(encrypted), RequestId: transport.FormatRequestID(op.RequestID)}, nil
}

func (o *operatorService) CancelKeyChange(ctx context.Context, in *kmspb.CancelKeyChangeRequest) (*kmspb.CancelKeyChangeResponse, error) {
	op, err := o.server.operator(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.CancelKeyChangeResponse{}, o.server.cfg.Ceremony.KeyChanges().Cancel(ctx, op, in.GetNonce())
}

func (o *operatorService) GetShareSet(ctx context.Context, _ *kmspb.GetShareSetRequest) (*kmspb.GetShareSetResponse, error) {
	if _, err := o.server.operator(ctx); err != nil {
		return nil, err
	}
	set, err := o.server.cfg.Ceremony.KeyChanges().ShareSet(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.GetShareSetResponse{ShareSet: shareSetMessage(set)}, nil
}
