package keymat

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
)

const (
	// MaxRecord is the maximum length of an audit record in the clear, in bytes.
	MaxRecord = 65_535
	// BodyOverhead is how much longer an encrypted record is, in bytes.
	BodyOverhead = gcmOverhead

	// maxBodySeals keeps random nonces far below the 2^32 that SP 800-38D
	// allows for one key.
	maxBodySeals = 1 << 30

	auditLabel       = "conclave audit v1"
	auditDomain      = "conclave audit body v1\x00"
	commitmentDomain = "conclave audit record v1\x00"
)

var (
	// ErrBody is returned for an encrypted record that does not decrypt: it was changed,
	// moved to another entry, or encrypted under another key.
	ErrBody = errors.New("encrypted audit record cannot be decrypted")
	// ErrSealerSpent is returned when a BodySealer has encrypted as many records as one key
	// may.
	ErrSealerSpent = errors.New("audit encryption key has reached its limit")
)

// Commitment is the hash by which the audit tree commits to a record in the clear. A record
// contains a random salt, so it cannot be guessed from the hash.
func Commitment(record []byte) [sha256.Size]byte {
	h := sha256.New()
	_, _ = h.Write([]byte(commitmentDomain))
	_, _ = h.Write(record)
	var c [sha256.Size]byte
	h.Sum(c[:0])
	return c
}

// BodySealer encrypts and decrypts the audit records of one generation and salt. It holds
// one expanded key for all of them. It is formatted as [redacted] and is safe for
// concurrent use. It becomes unusable when its keyring is wiped.
type BodySealer struct {
	redacted
	aead       atomic.Pointer[cipher.AEAD]
	ended      *atomic.Bool // the keyring's
	seals      atomic.Uint64
	generation uint32
	salt       [16]byte
}

// AuditKey returns the BodySealer for records with the given generation and salt.
func (k *Keyring) AuditKey(generation uint32, salt [16]byte) (*BodySealer, error) {
	kek, err := k.kek(generation)
	if err != nil {
		return nil, err
	}
	s := &BodySealer{ended: k.wiped, generation: generation, salt: salt}
	err = kek.With(func(b []byte) error {
		context := append(k.cluster[:len(k.cluster):len(k.cluster)], salt[:]...)
		key := Derive(b, auditLabel, context, KeySize)
		defer clear(key)
		aead := newAEAD(key)
		s.aead.Store(&aead)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// NewAuditKey returns a BodySealer with the newest generation and a new salt. A node
// creates one at its start, and another one when the last is used up or the keyring has a
// new generation.
func (k *Keyring) NewAuditKey() (*BodySealer, error) {
	var salt [16]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return nil, err
	}
	return k.AuditKey(k.Newest(), salt)
}

// Generation returns the keyring generation of the key, which is stored with bodies.
func (s *BodySealer) Generation() uint32 { return s.generation }

// Salt returns the salt, which selects the key within its generation and is stored with
// bodies.
func (s *BodySealer) Salt() [16]byte { return s.salt }

// Seal encrypts a record of 1 to MaxRecord bytes, and returns the body (nonce ‖ ciphertext
// ‖ tag) and the record's Commitment. The body can be decrypted only with the same request
// id, generation, salt and commitment.
func (s *BodySealer) Seal(requestID [16]byte, record []byte) (body []byte, commitment [sha256.Size]byte, err error) {
	if len(record) < 1 || len(record) > MaxRecord {
		return nil, commitment, fmt.Errorf("%w: an audit record of %d bytes, need 1 to %d", ErrSize, len(record), MaxRecord)
	}
	aead, err := s.key()
	if err != nil {
		return nil, commitment, err
	}
	if s.seals.Add(1) > maxBodySeals {
		s.seals.Add(^uint64(0)) // undo, so that it never wraps around
		return nil, commitment, ErrSealerSpent
	}
	commitment = Commitment(record)
	// To save an allocation, the additional data is placed behind the body for the
	// encryption.
	n := len(record) + BodyOverhead
	buf := make([]byte, n, n+auditAADSize)
	aad := s.appendAAD(buf[n:n:cap(buf)], &requestID, &commitment)
	return aead.Seal(buf[:0:n], nil, record, aad), commitment, nil
}

// Open decrypts a body that Seal returned and checks the record's commitment. It returns
// ErrBody for everything that may be wrong with the body.
func (s *BodySealer) Open(requestID [16]byte, commitment [sha256.Size]byte, body []byte) ([]byte, error) {
	aead, err := s.key()
	if err != nil {
		return nil, err
	}
	if len(body) <= BodyOverhead || len(body) > MaxRecord+BodyOverhead {
		return nil, ErrBody
	}
	aad := s.appendAAD(make([]byte, 0, auditAADSize), &requestID, &commitment)
	record, err := aead.Open(nil, nil, body, aad)
	if err != nil {
		return nil, ErrBody
	}
	if got := Commitment(record); subtle.ConstantTimeCompare(got[:], commitment[:]) != 1 {
		clear(record)
		return nil, ErrBody
	}
	return record, nil
}

// Wipe drops the key and makes the BodySealer unusable.
func (s *BodySealer) Wipe() { s.aead.Store(nil) }

func (s *BodySealer) key() (cipher.AEAD, error) {
	if s.ended.Load() {
		s.Wipe()
		return nil, ErrWiped
	}
	aead := s.aead.Load()
	if aead == nil {
		return nil, ErrWiped
	}
	return *aead, nil
}

const auditAADSize = len(auditDomain) + 16 + 16 + 4 + sha256.Size

func (s *BodySealer) appendAAD(b []byte, requestID *[16]byte, commitment *[sha256.Size]byte) []byte {
	b = append(b, auditDomain...)
	b = append(b, s.salt[:]...)
	b = append(b, requestID[:]...)
	b = binary.BigEndian.AppendUint32(b, s.generation)
	return append(b, commitment[:]...)
}
