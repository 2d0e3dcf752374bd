//go:build !pkcs11

package seal

import "errors"

// openPKCS11 fails, as this binary was built without PKCS #11.
func openPKCS11(tokenKey) (Seal, error) {
	return nil, errors.New("seal pkcs11: this binary was built without PKCS #11 (build tag pkcs11)")
}
