package keymat

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
)

const macLabel = "conclave mac v1 "

// ErrMAC is returned for a message whose MAC does not match.
var ErrMAC = errors.New("message authentication failed")

// MACKey authenticates what the cluster hands out and gets back, such as
// session tokens, with HMAC-SHA-256. It prints as [redacted] and is safe for
// concurrent use. It derives its key anew for each use, so there is nothing to
// wipe: it ends with the keyring.
type MACKey struct {
	redacted
	kek        *Secret
	purpose    Purpose
	cluster    [16]byte
	generation uint32
}

// DeriveMAC returns the MAC key for a purpose of a generation: [Keyring.Newest]
// to make MACs, the one that a token names to check it.
func (k *Keyring) DeriveMAC(generation uint32, p Purpose) (*MACKey, error) {
	if !p.known() {
		return nil, fmt.Errorf("%w: %q", ErrPurpose, p)
	}
	kek, err := k.kek(generation)
	if err != nil {
		return nil, err
	}
	return &MACKey{kek: kek, purpose: p, cluster: k.cluster, generation: generation}, nil
}

// Generation is the keyring generation of the key; a token has to name it.
func (m *MACKey) Generation() uint32 { return m.generation }

// Sum returns the MAC of msg.
func (m *MACKey) Sum(msg []byte) (tag [sha256.Size]byte, err error) {
	err = m.kek.With(func(kek []byte) error {
		key := Derive(kek, macLabel+string(m.purpose), m.cluster[:], KeySize)
		defer clear(key)
		mac := hmac.New(sha256.New, key)
		_, _ = mac.Write(msg)
		mac.Sum(tag[:0])
		return nil
	})
	return tag, err
}

// Verify returns nil when tag is the MAC of msg, and ErrMAC when it is not. It
// compares in constant time.
func (m *MACKey) Verify(msg, tag []byte) error {
	want, err := m.Sum(msg)
	if err != nil {
		return err
	}
	if !hmac.Equal(want[:], tag) {
		return ErrMAC
	}
	return nil
}
