//go:build !pkcs11

package keystore

import (
	"testing"
	"time"
)

// A binary without support for PKCS #11 refuses a configuration with a module.
func TestNoPKCS11(t *testing.T) {
	t.Parallel()
	if _, err := Open(Config{PKCS11Module: "/module.so"}, time.Now); err == nil {
		t.Error("Open accepts a module")
	}
}
