package keymat

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// The ciphertexts of the KMS have format 1:
//
//	format(1) suite(2) cell(8) key(16) version(16) salt(32) commitment(32) nonce(12) body tag(16)
//
// Suite 1 derives an AES-256-GCM key (label "enc") and the commitment (label "commit") from
// the key material, by [Derive] with context salt ‖ format…version. Each message has its
// own salt and so its own key, so the number of messages is not limited and nonces cannot
// repeat. With AES-GCM alone, a ciphertext could be made to decrypt under several keys. The
// commitment prevents that, because it is bound to the material. Additional data is
// everything before the nonce, and the canonical encryption context.
const (
	// MessageOverhead is how much longer a ciphertext is than its plaintext.
	MessageOverhead = messageHeader + gcmOverhead
	// MaxMessage is the maximum length of a ciphertext in bytes, as in AWS KMS.
	MaxMessage = 6144

	messageFormat = 1
	messageSuite  = 1

	offSuite      = 1
	offCell       = 3
	offKey        = 11
	offVersion    = 27
	offSalt       = 43
	offCommitment = 75
	messageHeader = 107

	labelEnc    = "enc"
	labelCommit = "commit"
)

var (
	// ErrCiphertext is returned for every ciphertext that cannot be decrypted, for whatever
	// reason: its form, its key, its context or a flipped bit.
	ErrCiphertext = errors.New("invalid ciphertext")
	// ErrMaterial is returned for key material that is not KeySize bytes long.
	ErrMaterial = errors.New("key material has the wrong size")
)

// Header says which key a ciphertext belongs to. It is authenticated by decryption;
// [ParseHeader] only reads it.
type Header struct {
	Cell    [8]byte  // id of the cell that has the key
	Key     [16]byte // id of the key
	Version [16]byte // id of the material
}

// CellOf returns the id of the cell that has a cluster's keys: the first 8 bytes of the
// cluster's id. It never changes, because ciphertexts begin with it.
func CellOf(cluster []byte) [8]byte { return [8]byte(cluster) }

// SealMessage encrypts plaintext, 1 to MaxMessage-MessageOverhead bytes, under key material
// of KeySize bytes. The encryption context is authenticated and not stored; nil and empty
// are the same. SealMessage panics if the material is all zeros.
func SealMessage(material []byte, h Header, plaintext []byte, context map[string]string) ([]byte, error) {
	if len(material) != KeySize {
		return nil, fmt.Errorf("%w: %d bytes, need %d", ErrMaterial, len(material), KeySize)
	}
	if len(plaintext) < 1 || len(plaintext) > MaxMessage-MessageOverhead {
		return nil, fmt.Errorf("%w: a plaintext of %d bytes, need 1 to %d", ErrSize, len(plaintext), MaxMessage-MessageOverhead)
	}
	blob := make([]byte, messageHeader, len(plaintext)+MessageOverhead)
	blob[0] = messageFormat
	binary.BigEndian.PutUint16(blob[offSuite:], messageSuite)
	copy(blob[offCell:], h.Cell[:])
	copy(blob[offKey:], h.Key[:])
	copy(blob[offVersion:], h.Version[:])
	if _, err := rand.Read(blob[offSalt:offCommitment]); err != nil {
		return nil, err
	}

	k := newKDF(material)
	k.derive(blob[offCommitment:messageHeader], labelCommit, blob[offSalt:offCommitment], blob[:offSalt])
	var key [KeySize]byte
	defer clear(key[:])
	k.derive(key[:], labelEnc, blob[offSalt:offCommitment], blob[:offSalt])
	return newAEAD(key[:]).Seal(blob, nil, plaintext, messageAAD(k.scratch[:0], blob, context)), nil
}

// ParseHeader reads which key a ciphertext belongs to, without authenticating it.
func ParseHeader(blob []byte) (Header, error) {
	if len(blob) <= MessageOverhead || len(blob) > MaxMessage ||
		blob[0] != messageFormat || binary.BigEndian.Uint16(blob[offSuite:]) != messageSuite {
		return Header{}, ErrCiphertext
	}
	return Header{
		Cell:    [8]byte(blob[offCell:]),
		Key:     [16]byte(blob[offKey:]),
		Version: [16]byte(blob[offVersion:]),
	}, nil
}

// OpenMessage decrypts a ciphertext of SealMessage, with the same material and encryption
// context. It returns ErrCiphertext for everything that may be wrong with blob or context.
// The caller must wipe the result. OpenMessage panics if the material is all zeros.
func OpenMessage(material, blob []byte, context map[string]string) ([]byte, error) {
	if len(material) != KeySize {
		return nil, fmt.Errorf("%w: %d bytes, need %d", ErrMaterial, len(material), KeySize)
	}
	if _, err := ParseHeader(blob); err != nil {
		return nil, err
	}
	k := newKDF(material)
	var commitment [sha256.Size]byte
	k.derive(commitment[:], labelCommit, blob[offSalt:offCommitment], blob[:offSalt])
	// Check the commitment before decryption: nothing may be decrypted of a ciphertext that
	// was made to decrypt under several keys.
	if subtle.ConstantTimeCompare(commitment[:], blob[offCommitment:messageHeader]) != 1 {
		return nil, ErrCiphertext
	}
	var key [KeySize]byte
	defer clear(key[:])
	k.derive(key[:], labelEnc, blob[offSalt:offCommitment], blob[:offSalt])
	plaintext, err := newAEAD(key[:]).Open(nil, nil, blob[messageHeader:], messageAAD(k.scratch[:0], blob, context))
	if err != nil {
		return nil, ErrCiphertext
	}
	return plaintext, nil
}

// messageAAD appends a message's header and the encryption context in its canonical
// form.
func messageAAD(b, blob []byte, context map[string]string) []byte {
	return appendContext(append(b, blob[:messageHeader]...), context)
}

// appendContext appends the encryption context in its canonical form: the number of pairs,
// then each key and value preceded by its length, with keys in ascending order of their
// bytes. Numbers are 32 bits, big-endian. Strings are treated as bytes, so different
// contexts have different forms, even if they are not valid UTF-8.
func appendContext(aad []byte, context map[string]string) []byte {
	size := 4
	var few [8]string
	keys := few[:0]
	for k, v := range context {
		keys = append(keys, k)
		size += 8 + len(k) + len(v)
	}
	slices.Sort(keys)
	aad = slices.Grow(aad, size)
	aad = binary.BigEndian.AppendUint32(aad, uint32(len(keys)))
	for _, k := range keys {
		v := context[k]
		aad = binary.BigEndian.AppendUint32(aad, uint32(len(k)))
		aad = append(aad, k...)
		aad = binary.BigEndian.AppendUint32(aad, uint32(len(v)))
		aad = append(aad, v...)
	}
	return aad
}

// ContextForm returns the canonical form of an encryption context.
func ContextForm(context map[string]string) []byte { return appendContext(nil, context) }
