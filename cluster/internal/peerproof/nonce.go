package peerproof

import "crypto/rand"

// NonceSize is that of the nonces with which nodes ask each other for proof.
const NonceSize = 32

// NewNonce is a challenge that is used once.
func NewNonce() []byte {
	b := make([]byte, NonceSize)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the process instead
	return b
}
