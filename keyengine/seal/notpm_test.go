//go:build !tpm

package seal

import (
	"strings"
	"testing"
)

// TestWithoutTPM: a binary without support for TPMs says so, instead of starting without the
// seal.
func TestWithoutTPM(t *testing.T) {
	for _, text := range []string{"tpm:", "tpm:/dev/tpmrm0?pcrs=7+11"} {
		if _, err := Parse(t.Context(), "n1", text); err == nil || !strings.Contains(err.Error(), "build tag tpm") {
			t.Errorf("%s: %v", text, err)
		}
	}
}
