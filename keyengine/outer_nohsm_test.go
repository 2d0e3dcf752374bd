//go:build !pkcs11

package keyengine

import "testing"

// TestNoPKCS11: a binary that cannot load a module does not start as if it had.
func TestNoPKCS11(t *testing.T) {
	if _, err := newKeyStores(Config{Clock: &fakeClock{}, KeyStores: KeyStoreConfig{PKCS11Module: "/module.so"}}); err == nil {
		t.Error("a module is taken")
	}
}
