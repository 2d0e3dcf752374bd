//go:build !pkcs11

package keystore

import "errors"

// newHSM returns no backend, as this binary was built without PKCS #11.
func newHSM(cfg Config) (Backend, error) {
	if cfg.PKCS11Module != "" || len(cfg.PKCS11Tokens) > 0 {
		return nil, errors.New("this binary was built without PKCS #11 (build tag pkcs11)")
	}
	return nil, nil
}
