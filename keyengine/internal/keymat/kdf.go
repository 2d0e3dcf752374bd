package keymat

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"strings"
)

const (
	// KeySize is the length in bytes of every key of the hierarchy.
	KeySize = 32

	// minKDFKey is the minimum length of HMAC keys in SP 800-131A and the FIPS module.
	minKDFKey = 16
	maxKDFOut = 1 << 16
)

// Derive returns n bytes by the KDF of SP 800-108r1 in counter mode with HMAC-SHA-256:
// blocks of HMAC(key, [i] ‖ label ‖ 0x00 ‖ context ‖ [L]) with i counting from 1 and L the
// length in bits, both as 32 bits, big-endian. n is part of the input, so keys of different
// lengths are unrelated.
//
// Derive panics for arguments that only a bug can cause: a key of zeros or below 16 bytes,
// a label that is empty or contains a zero byte, or an n outside 1 to 65,536. The caller
// must wipe the result.
func Derive(key []byte, label string, context []byte, n int) []byte {
	return NewDeriver(key).Derive(label, context, n)
}

// Deriver derives several keys from one. It keeps what HMAC makes of the key in memory of the
// Go runtime, once, where each call of Derive leaves a copy until that memory is used again. It
// must not outlive its purpose, and must not be used concurrently.
type Deriver struct{ k *kdf }

// NewDeriver returns a Deriver for a key, for which the same holds as for Derive's.
func NewDeriver(key []byte) *Deriver { return &Deriver{newKDF(key)} }

// Derive returns what the function Derive returns.
func (d *Deriver) Derive(label string, context []byte, n int) []byte {
	if n < 1 || n > maxKDFOut {
		panic("keymat: invalid length of a derived key")
	}
	out := make([]byte, n)
	d.k.derive(out, label, context)
	return out
}

// kdf derives several keys from one.
type kdf struct {
	mac     hash.Hash
	scratch [256]byte         // input, unless it is longer; not secret
	sum     [sha256.Size]byte // not on the stack, as hash.Hash would move it to the heap
}

func newKDF(key []byte) *kdf {
	if len(key) < minKDFKey {
		panic("keymat: key is too short to derive from")
	}
	if isZero(key) {
		panic("keymat: key is all zero")
	}
	return &kdf{mac: hmac.New(sha256.New, key)}
}

// derive fills out. The context is the concatenation of its parts.
func (k *kdf) derive(out []byte, label string, context ...[]byte) {
	if label == "" || strings.IndexByte(label, 0) >= 0 {
		panic("keymat: invalid label of a derived key")
	}
	input := append(k.scratch[:0], 0, 0, 0, 0) // the counter
	input = append(input, label...)
	input = append(input, 0)
	for _, c := range context {
		input = append(input, c...)
	}
	input = binary.BigEndian.AppendUint32(input, uint32(len(out)*8))
	k.counterMode(out, input)
}

// counterMode fills out with blocks of HMAC over input, whose first 4 bytes it
// uses for the counter.
func (k *kdf) counterMode(out, input []byte) {
	for i := uint32(1); len(out) > 0; i++ {
		binary.BigEndian.PutUint32(input, i)
		k.mac.Reset()
		_, _ = k.mac.Write(input) // a hash never returns an error
		out = out[copy(out, k.mac.Sum(k.sum[:0])):]
	}
	clear(k.sum[:])
}
