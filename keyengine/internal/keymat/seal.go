package keymat

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
)

// A wrapped secret, format 1: format(1) nonce(12) body tag(16), AES-256-GCM
// under a key derived for its Binding.
const (
	// WrapFormat is the format written by Wrap.
	WrapFormat = 1
	// WrapOverhead is how much longer a wrapped secret is, in bytes.
	WrapOverhead = 1 + gcmOverhead

	gcmNonce    = 12
	gcmTag      = 16
	gcmOverhead = gcmNonce + gcmTag

	wrapLabel  = "conclave wrap v1 "
	wrapDomain = "conclave wrapped secret v1\x00"

	maxBindingField = 1024
)

var (
	// ErrUnwrap is returned for a wrapped secret that cannot be unwrapped: it was changed,
	// moved to another object, or wrapped under another key. The error does not say which.
	ErrUnwrap = errors.New("wrapped secret cannot be unwrapped")
	// ErrBinding is returned for a Binding that cannot be encoded.
	ErrBinding = errors.New("invalid binding of a wrapped secret")
)

// Purpose separates kinds of secrets. Each has its own derived keys, so that a secret of
// one kind cannot be unwrapped as another.
type Purpose string

// The purposes of a keyring's keys.
const (
	PurposeMaterial     Purpose = "material"      // key material of KMS keys
	PurposeCredential   Purpose = "credential"    // secrets of access keys
	PurposeAuditSigning Purpose = "audit-signing" // the key that signs checkpoints
	PurposeSession      Purpose = "session"       // MACs of session tokens
	PurposeToken        Purpose = "token"         // session tokens of temporary credentials
	PurposeImport       Purpose = "import"        // private keys of import wrapping keys, and import tokens
	PurposeGrant        Purpose = "grant"         // MACs of grant tokens
	PurposeCA           Purpose = "ca"            // private keys of certificate authorities
	PurposeCommand      Purpose = "command"       // nodes' command signing keys
	PurposeState        Purpose = "state"         // attestations of the replicated state
	PurposePage         Purpose = "page"          // MACs of list markers
	PurposeForward      Purpose = "forward"       // messages between unsealed nodes
	PurposePeer         Purpose = "peer"          // MACs of messages between unsealed nodes
	PurposeBackup       Purpose = "backup"        // file keys of backups
	PurposeUnseal       Purpose = "unseal"        // what unseals a node that restarts
	PurposeHandover     Purpose = "handover"      // the next generation of the keyring

	purposeRoot Purpose = "root" // the root key under the unseal key
	purposeKEK  Purpose = "kek"  // a generation's key under the root key
)

// known reports whether p is a purpose of keyrings.
func (p Purpose) known() bool {
	switch p {
	case PurposeMaterial, PurposeCredential, PurposeAuditSigning, PurposeSession, PurposeToken, PurposeImport,
		PurposeGrant, PurposeCA, PurposeCommand, PurposeState, PurposePage, PurposeForward, PurposePeer, PurposeBackup, PurposeUnseal, PurposeHandover:
		return true
	}
	return false
}

// Binding says what a wrapped secret is. It is authenticated with the secret, and the
// secret's key is derived for it. A secret can therefore be unwrapped only as exactly what
// it was wrapped as: not for another object, and not for the same key after its usage was
// changed on disk.
type Binding struct {
	Format     byte     // WrapFormat, or 0 for the newest when wrapping and any when unwrapping
	Purpose    Purpose  // what the secret is for
	Cluster    [16]byte // the cluster that it belongs to
	Object     []byte   // the object's id, such as the key id
	Version    []byte   // the object's version, such as the material's id
	Spec       string   // the key's spec
	Usage      string   // the key's usage
	Origin     string   // the origin of the material
	Generation uint32   // the keyring generation that wraps it
}

// encode returns the canonical form. Different bindings have different forms, because every
// field of variable length is preceded by its length.
func (b *Binding) encode() ([]byte, error) {
	if b.Format != WrapFormat {
		return nil, fmt.Errorf("%w: format %d", ErrBinding, b.Format)
	}
	if b.Purpose == "" {
		return nil, fmt.Errorf("%w: no purpose", ErrBinding)
	}
	out := make([]byte, 0, 256)
	out = append(out, wrapDomain...)
	out = append(out, b.Format)
	out = append(out, b.Cluster[:]...)
	out = binary.BigEndian.AppendUint32(out, b.Generation)
	for _, f := range [...][]byte{[]byte(b.Purpose), b.Object, b.Version, []byte(b.Spec), []byte(b.Usage), []byte(b.Origin)} {
		if len(f) > maxBindingField {
			return nil, fmt.Errorf("%w: a field of %d bytes", ErrBinding, len(f))
		}
		out = binary.BigEndian.AppendUint32(out, uint32(len(f)))
		out = append(out, f...)
	}
	return out, nil
}

// Wrap encrypts plaintext, 1 to MaxSecret bytes that are not all zeros, under a key derived
// from key for b.
func Wrap(key *Secret, b Binding, plaintext []byte) ([]byte, error) {
	if len(plaintext) < 1 || len(plaintext) > MaxSecret {
		return nil, fmt.Errorf("%w: %d bytes, need 1 to %d", ErrSize, len(plaintext), MaxSecret)
	}
	if isZero(plaintext) {
		return nil, ErrZero
	}
	if b.Format == 0 {
		b.Format = WrapFormat
	}
	aad, err := b.encode()
	if err != nil {
		return nil, err
	}
	var blob []byte
	err = key.With(func(k []byte) error {
		aead := wrapAEAD(k, b.Purpose, aad)
		blob = make([]byte, 1, len(plaintext)+WrapOverhead)
		blob[0] = b.Format
		blob = aead.Seal(blob, nil, plaintext, aad)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("wrapping: %w", err)
	}
	return blob, nil
}

// Unwrap decrypts a blob of Wrap, with the same key and binding, into the arena. It returns
// ErrUnwrap for everything that may be wrong with blob.
func Unwrap(a *Arena, key *Secret, b Binding, blob []byte) (*Secret, error) {
	return unwrapInto(a, key, b, blob)
}

func unwrapInto(a filler, key *Secret, b Binding, blob []byte) (*Secret, error) {
	n := len(blob) - WrapOverhead
	if n < 1 || n > MaxSecret || blob[0] != WrapFormat || b.Format != 0 && b.Format != blob[0] {
		return nil, ErrUnwrap
	}
	b.Format = blob[0]
	aad, err := b.encode()
	if err != nil {
		return nil, err
	}
	var s *Secret
	err = key.With(func(k []byte) error {
		aead := wrapAEAD(k, b.Purpose, aad)
		s, err = a.Fill(n, func(dst []byte) error {
			if _, err := aead.Open(dst[:0], nil, blob[1:], aad); err != nil {
				return ErrUnwrap
			}
			return nil
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("unwrapping: %w", err)
	}
	return s, nil
}

// wrapAEAD derives the key for one object. The whole binding is its context, so the limit
// of 2^32 random nonces per key applies to the versions of one object, and not to
// everything that a generation wraps.
func wrapAEAD(key []byte, p Purpose, binding []byte) cipher.AEAD {
	k := Derive(key, wrapLabel+string(p), binding, KeySize)
	defer clear(k)
	return newAEAD(k)
}

// newAEAD returns AES-256-GCM with random nonces, the only GCM that the FIPS module permits
// in strict mode. Seal returns nonce ‖ ciphertext ‖ tag.
func newAEAD(key []byte) cipher.AEAD {
	if len(key) != KeySize || isZero(key) {
		panic("keymat: invalid AES key")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("keymat: " + err.Error()) // 32 bytes are always a valid key
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("keymat: " + err.Error()) // AES always has GCM's block size
	}
	return aead
}
