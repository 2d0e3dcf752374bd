//go:build !pkcs11

package keyengine

import (
	"testing"
	"time"
)

// TestNoPKCS11: a binary that cannot load a module does not start as if it had.
func TestNoPKCS11(t *testing.T) {
	if _, err := newKeyStores(KeyStoreConfig{PKCS11Module: "/module.so"}, time.Now); err == nil {
		t.Error("a module is taken")
	}
}
