//go:build pkcs11

package keystore

import (
	"context"
	"errors"

	"github.com/conclavekms/conclave/keyengine/internal/hsm"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// hsmBackend is the backend of stores of type AWS_CLOUDHSM: tokens of a PKCS #11 module,
// which the operator maps to CloudHsmClusterIds. Each store has one key in its token.
type hsmBackend struct{ module *hsm.Module }

func newHSM(cfg Config) (Backend, error) {
	if cfg.PKCS11Module == "" {
		return nil, nil
	}
	m, err := hsm.Open(cfg.PKCS11Module, cfg.PKCS11Tokens)
	if err != nil {
		return nil, err
	}
	return &hsmBackend{m}, nil
}

func (s *Store) label() string { return "conclave " + s.Id }

// Try implements [Backend].
func (h *hsmBackend) Try(ctx context.Context, s *Store) error {
	return hsmFailure(h.module.Has(ctx, s.Endpoint))
}

// Connect implements [Backend].
func (h *hsmBackend) Connect(ctx context.Context, s *Store) error {
	return hsmFailure(h.module.Connect(ctx, s.Endpoint, s.label(), s.Secret))
}

// CheckKey implements [Backend]. Stores have one key only, so there is nothing to check.
func (h *hsmBackend) CheckKey(context.Context, *Store, string) error { return nil }

// Encrypt implements [Backend].
func (h *hsmBackend) Encrypt(ctx context.Context, s *Store, _ string, message, aad []byte) (*keymat.Outer, error) {
	o, err := h.module.Encrypt(ctx, s.Endpoint, s.label(), s.Secret, message, aad)
	if err != nil {
		return nil, hsmFailure(err)
	}
	return &keymat.Outer{Body: o.Ciphertext, IV: o.IV, Tag: o.Tag, Metadata: o.Key}, nil
}

// Decrypt implements [Backend].
func (h *hsmBackend) Decrypt(ctx context.Context, s *Store, _ string, o *keymat.Outer, aad []byte) ([]byte, error) {
	message, err := h.module.Decrypt(ctx, s.Endpoint, s.label(), s.Secret, &hsm.Sealed{Key: o.Metadata, Ciphertext: o.Body, IV: o.IV, Tag: o.Tag}, aad)
	return message, hsmFailure(err)
}

// Random implements [Backend].
func (h *hsmBackend) Random(ctx context.Context, s *Store, n int) ([]byte, error) {
	b, err := h.module.Random(ctx, s.Endpoint, s.Secret, n)
	return b, hsmFailure(err)
}

func (h *hsmBackend) close() { h.module.Close() }

// hsmFailure translates a failure of the module into a *Failure. It returns other errors
// unchanged, for instance if the node was sealed in the meantime.
func hsmFailure(err error) error {
	f := &Failure{Store: kmsapi.ErrCloudHsmClusterNotFound, Key: kmsapi.ErrCustomStoreInvalidState, Err: err}
	_, told := errors.AsType[*kmsapi.Error](err)
	switch {
	case err == nil, told:
		return err
	case errors.Is(err, hsm.ErrNoToken):
		f.Connection, f.Message = "CLUSTER_NOT_FOUND", "The token of the custom key store is not among those of this cluster, or not there."
	case errors.Is(err, hsm.ErrPIN):
		f.Connection, f.Message = "INVALID_CREDENTIALS", "The token of the custom key store does not take the KeyStorePassword."
	case errors.Is(err, hsm.ErrLocked):
		f.Connection, f.Message = "USER_LOCKED_OUT", "The token of the custom key store takes no KeyStorePassword any more."
	case errors.Is(err, hsm.ErrNoKey):
		f.Connection, f.Message = "INTERNAL_ERROR", "The token of the custom key store has not the store's key."
	default:
		f.Connection, f.Message = "INTERNAL_ERROR", "The token of the custom key store failed."
	}
	return f
}
