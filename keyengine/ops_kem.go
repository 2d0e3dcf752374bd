package keyengine

import (
	"errors"

	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// encapsulate needs the public key only, so that it never unwraps anything.
func encapsulate(ev *eval, in *kmsapi.EncapsulateInput) (*kmsapi.EncapsulateOutput, error) {
	t, err := useKEM(ev, *in.KeyId, *in.EncapsulationAlgorithm, in.GrantTokens)
	if err != nil {
		return nil, err
	}
	if isSet(in.DryRun) {
		return nil, errDryRun
	}
	m := currentMaterial(t.key)
	ev.used(t, m)
	secret, ciphertext, err := primitive.Encapsulate(t.key.Spec, m.PublicKey)
	if err != nil {
		return nil, err
	}
	return &kmsapi.EncapsulateOutput{
		KeyId: &t.arn, SharedSecret: ev.secret(secret), SharedSecretCiphertextBlob: ciphertext, EncapsulationAlgorithm: in.EncapsulationAlgorithm,
	}, nil
}

// decapsulate gives a secret for every ciphertext of the right length: whether it is
// the one that was encapsulated is for the two sides to find out.
func decapsulate(ev *eval, in *kmsapi.DecapsulateInput) (*kmsapi.DecapsulateOutput, error) {
	t, err := useKEM(ev, *in.KeyId, *in.EncapsulationAlgorithm, in.GrantTokens)
	if err != nil {
		return nil, err
	}
	if err := primitive.CheckEncapsulated(t.key.Spec, in.SharedSecretCiphertextBlob); errors.Is(err, primitive.ErrCiphertext) {
		return nil, kmsapi.ErrInvalidCiphertext
	} else if err != nil {
		return nil, err
	}
	if isSet(in.DryRun) {
		return nil, errDryRun
	}
	var secret []byte
	err = withCurrent(ev, t, func(material []byte) (err error) {
		secret, err = primitive.Decapsulate(t.key.Spec, material, in.SharedSecretCiphertextBlob)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &kmsapi.DecapsulateOutput{KeyId: &t.arn, SharedSecret: ev.secret(secret), EncapsulationAlgorithm: in.EncapsulationAlgorithm}, nil
}

// useKEM finds a key to encapsulate or decapsulate with.
func useKEM(ev *eval, keyID, algorithm string, tokens []string) (*target, error) {
	if err := checkTokens(ev, tokens); err != nil {
		return nil, err
	}
	t, err := useKey(ev, keyID, ev.op.action(), nil, kmsapi.UsageEncapsulate, algorithm)
	if err != nil {
		return nil, err
	}
	return t, refusedByFIPS(primitive.Available(t.key.Spec))
}
