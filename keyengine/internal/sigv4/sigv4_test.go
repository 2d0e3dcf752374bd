package sigv4

import (
	"encoding/hex"
	"testing"
)

// TestDerive is the example of AWS's General Reference ("Examples of how to derive
// a signing key").
func TestDerive(t *testing.T) {
	key := make([]byte, KeySize)
	Derive(key, []byte("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"), "20150830", "us-east-1", "iam")
	if got, want := hex.EncodeToString(key), "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
