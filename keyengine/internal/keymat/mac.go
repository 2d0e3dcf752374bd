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

// MACKey authenticates data that the cluster issues and later accepts, such as session
// tokens, with HMAC-SHA-256. It is formatted as [redacted] and is safe for concurrent use.
// It derives its key again for each use, so there is nothing to wipe, and it becomes
// unusable when the keyring is wiped.
type MACKey struct {
	redacted
	kek        *Secret
	purpose    Purpose
	cluster    [16]byte
	generation uint32
}

// DeriveMAC returns the MAC key for a purpose and a generation: the generation that a
// token names to verify it.
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

// Generation returns the keyring generation of the key, which a token must name.
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

// Verify returns nil if tag is the MAC of msg, and ErrMAC otherwise. It compares in
// constant time.
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
