//go:build !pkcs11

package seal

import (
	"strings"
	"testing"
)

// TestWithoutPKCS11: a binary without PKCS #11 says so, instead of starting without the seal.
func TestWithoutPKCS11(t *testing.T) {
	if _, err := Parse(t.Context(), "n1", "pkcs11:/lib.so?token=t&key=k&pin=/pin"); err == nil || !strings.Contains(err.Error(), "build tag pkcs11") {
		t.Errorf("got %v", err)
	}
}
