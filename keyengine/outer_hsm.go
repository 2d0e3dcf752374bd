//go:build pkcs11

package keyengine

import (
	"context"
	"errors"

	"github.com/conclavekms/conclave/keyengine/internal/hsm"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// hsmOuter is the side of stores of type AWS_CLOUDHSM: tokens of a PKCS #11 module,
// which the operator names by CloudHsmClusterIds. A store has one key of its own in
// its token.
type hsmOuter struct{ module *hsm.Module }

func newHSMOuter(cfg KeyStoreConfig) (outer, error) {
	if cfg.PKCS11Module == "" {
		return nil, nil
	}
	m, err := hsm.Open(cfg.PKCS11Module, cfg.PKCS11Tokens)
	if err != nil {
		return nil, err
	}
	return &hsmOuter{m}, nil
}

func (s *outerStore) label() string { return "conclave " + s.Id }

func (h *hsmOuter) try(ctx context.Context, s *outerStore) error {
	return hsmFailure(h.module.Has(ctx, s.Endpoint))
}

func (h *hsmOuter) connect(ctx context.Context, s *outerStore) error {
	return hsmFailure(h.module.Connect(ctx, s.Endpoint, s.label(), s.secret))
}

func (h *hsmOuter) checkKey(context.Context, *outerStore, string) error { return nil }

func (h *hsmOuter) encrypt(ctx context.Context, s *outerStore, _ string, message, aad []byte) (*keymat.Outer, error) {
	o, err := h.module.Encrypt(ctx, s.Endpoint, s.label(), s.secret, message, aad)
	if err != nil {
		return nil, hsmFailure(err)
	}
	return &keymat.Outer{Body: o.Ciphertext, IV: o.IV, Tag: o.Tag, Metadata: o.Key}, nil
}

func (h *hsmOuter) decrypt(ctx context.Context, s *outerStore, _ string, o *keymat.Outer, aad []byte) ([]byte, error) {
	message, err := h.module.Decrypt(ctx, s.Endpoint, s.label(), s.secret, &hsm.Sealed{Key: o.Metadata, Ciphertext: o.Body, IV: o.IV, Tag: o.Tag}, aad)
	return message, hsmFailure(err)
}

func (h *hsmOuter) random(ctx context.Context, s *outerStore, n int) ([]byte, error) {
	b, err := h.module.Random(ctx, s.Endpoint, s.secret, n)
	return b, hsmFailure(err)
}

func (h *hsmOuter) close() { h.module.Close() }

// hsmFailure makes a *storeFailure of a module's. Other errors, such as that the
// node was sealed meanwhile, stay what they are.
func hsmFailure(err error) error {
	f := &storeFailure{store: kmsapi.ErrCloudHsmClusterNotFound, key: kmsapi.ErrCustomStoreInvalidState, err: err}
	_, told := errors.AsType[*kmsapi.Error](err)
	switch {
	case err == nil, told:
		return err
	case errors.Is(err, hsm.ErrNoToken):
		f.connection, f.message = "CLUSTER_NOT_FOUND", "The token of the custom key store is not among those of this cluster, or not there."
	case errors.Is(err, hsm.ErrPIN):
		f.connection, f.message = "INVALID_CREDENTIALS", "The token of the custom key store does not take the KeyStorePassword."
	case errors.Is(err, hsm.ErrLocked):
		f.connection, f.message = "USER_LOCKED_OUT", "The token of the custom key store takes no KeyStorePassword any more."
	case errors.Is(err, hsm.ErrNoKey):
		f.connection, f.message = "INTERNAL_ERROR", "The token of the custom key store has not the store's key."
	default:
		f.connection, f.message = "INTERNAL_ERROR", "The token of the custom key store failed."
	}
	return f
}
