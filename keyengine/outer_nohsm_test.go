//go:build !pkcs11

package keyengine

import (
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine/internal/keystore"
)

// TestNoPKCS11: a binary that cannot load a module does not start as if it had.
func TestNoPKCS11(t *testing.T) {
	if _, err := keystore.Open(keystore.Config{PKCS11Module: "/module.so"}, time.Now); err == nil {
		t.Error("a module is taken")
	}
}
