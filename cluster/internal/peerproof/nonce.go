package peerproof

import "crypto/rand"

// NonceSize is the size of the nonces with which nodes ask each other for proof.
const NonceSize = 32

// NewNonce returns a new random nonce.
func NewNonce() []byte {
	b := make([]byte, NonceSize)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the process instead
	return b
}
