package vault

import (
	"fmt"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
)

// storeBinding binds a store's secret to its use. If the store's endpoint was changed on
// disk, the secret does not decrypt and no request to it is signed.
func storeBinding(s *fsmpb.KeyStore) keymat.Binding {
	return keymat.Binding{Object: []byte(s.Id), Version: []byte(s.AccessKey), Spec: "KEY_STORE", Usage: s.Type, Origin: s.Endpoint + s.Path}
}

// WrapStoreSecret wraps the secret of a store and stores it in s.
func (v *Vault) WrapStoreSecret(s *fsmpb.KeyStore, secret []byte) error {
	o, err := v.Current()
	if err != nil {
		return err
	}
	s.Generation, s.WrappedSecret, err = o.ring.WrapFor(keymat.PurposeCredential, storeBinding(s), secret)
	if err != nil {
		return fmt.Errorf("wrapping the secret of key store %s: %w", s.Id, Gone(err))
	}
	return nil
}

// WithStoreSecret calls use with a store's secret. use must not keep the secret or block.
func (v *Vault) WithStoreSecret(s *fsmpb.KeyStore, use func(secret []byte) error) error {
	o, err := v.Current()
	if err != nil {
		return err
	}
	secret, err := o.ring.Unwrap(s.Generation, keymat.PurposeCredential, storeBinding(s), s.WrappedSecret)
	if err != nil {
		return fmt.Errorf("unwrapping the secret of key store %s: %w", s.Id, behind(err))
	}
	defer secret.Destroy()
	return secret.With(use)
}
