//go:build pkcs11

package keystore

import (
	"testing"
	"time"
)

func TestHSMModule(t *testing.T) {
	if _, err := Open(Config{PKCS11Module: "/none.so"}, time.Now); err == nil {
		t.Error("keystore.Open accepts a module that does not exist")
	}
}
