package cryptops

import (
	"errors"

	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Encapsulate implements the operation Encapsulate. It needs only the public key and
// unwraps nothing.
func Encapsulate(ev *request.Evaluation, in *kmsapi.EncapsulateInput) (*kmsapi.EncapsulateOutput, error) {
	t, err := useKEM(ev, *in.KeyId, *in.EncapsulationAlgorithm, in.GrantTokens)
	if err != nil {
		return nil, err
	}
	if request.IsSet(in.DryRun) {
		return nil, request.ErrDryRun
	}
	m := request.CurrentMaterial(t.Key)
	ev.Used(t, m)
	secret, ciphertext, err := primitive.Encapsulate(t.Key.Spec, m.PublicKey)
	if err != nil {
		return nil, err
	}
	return &kmsapi.EncapsulateOutput{
		KeyId: &t.ARN, SharedSecret: ev.Secret(secret), SharedSecretCiphertextBlob: ciphertext, EncapsulationAlgorithm: in.EncapsulationAlgorithm,
	}, nil
}

// Decapsulate implements the operation Decapsulate. It returns a secret for every
// ciphertext of the right length; the two parties must find out whether they have the same
// one.
func Decapsulate(ev *request.Evaluation, in *kmsapi.DecapsulateInput) (*kmsapi.DecapsulateOutput, error) {
	t, err := useKEM(ev, *in.KeyId, *in.EncapsulationAlgorithm, in.GrantTokens)
	if err != nil {
		return nil, err
	}
	if err := primitive.CheckEncapsulated(t.Key.Spec, in.SharedSecretCiphertextBlob); errors.Is(err, primitive.ErrCiphertext) {
		return nil, kmsapi.ErrInvalidCiphertext
	} else if err != nil {
		return nil, err
	}
	if request.IsSet(in.DryRun) {
		return nil, request.ErrDryRun
	}
	var secret []byte
	err = withCurrent(ev, t, func(material []byte) (err error) {
		secret, err = primitive.Decapsulate(t.Key.Spec, material, in.SharedSecretCiphertextBlob)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &kmsapi.DecapsulateOutput{KeyId: &t.ARN, SharedSecret: ev.Secret(secret), EncapsulationAlgorithm: in.EncapsulationAlgorithm}, nil
}

// useKEM finds a key to encapsulate or decapsulate with.
func useKEM(ev *request.Evaluation, keyID, algorithm string, tokens []string) (*request.Target, error) {
	if err := request.CheckTokens(ev, tokens); err != nil {
		return nil, err
	}
	t, err := useKey(ev, keyID, ev.Op.Action(), nil, kmsapi.UsageEncapsulate, algorithm)
	if err != nil {
		return nil, err
	}
	return t, RefusedByFIPS(primitive.Available(t.Key.Spec))
}
