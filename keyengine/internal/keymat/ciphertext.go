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

// A ciphertext of the KMS, format 1:
//
//	format(1) suite(2) cell(8) key(16) version(16) salt(32) commitment(32) nonce(12) body tag(16)
//
// Suite 1 derives, by [Derive] from the key material with context
// salt ‖ format…version, an AES-256-GCM key (label "enc") and the commitment
// (label "commit"). Each message has its own salt and so its own key: there is
// no limit on messages and no nonce to repeat. AES-GCM alone lets a ciphertext
// open under several keys; the commitment, which binds the material, does not.
// Additional data is everything before the nonce and the canonical encryption
// context.
const (
	// MessageOverhead is how much longer a ciphertext is than its plaintext.
	MessageOverhead = messageHeader + gcmOverhead
	// MaxMessage is the longest ciphertext, in bytes, as in AWS KMS.
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
	// ErrCiphertext is returned for every ciphertext that does not open,
	// whatever is wrong: its form, its key, its context or a flipped bit.
	ErrCiphertext = errors.New("invalid ciphertext")
	// ErrMaterial is returned for key material that is not KeySize bytes long.
	ErrMaterial = errors.New("key material has the wrong size")
)

// Header says which key a ciphertext belongs to. It is authenticated, but
// [ParseHeader] only reads it.
type Header struct {
	Cell    [8]byte  // the id of the cell that has the key
	Key     [16]byte // the key's id
	Version [16]byte // the id of the material
}

// CellOf is the id of the cell that has a cluster's keys: of the one that there is, the first
// 8 bytes of the cluster's id. Ciphertexts begin with it, so it is never another one.
func CellOf(cluster []byte) [8]byte { return [8]byte(cluster) }

// SealMessage encrypts plaintext, 1 to MaxMessage-MessageOverhead bytes, under
// key material of KeySize bytes. The encryption context is authenticated, not
// stored; nil and empty are the same. It panics when the material is all zero.
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

// ParseHeader reads which key blob belongs to, without checking any of it.
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

// OpenMessage decrypts what SealMessage made with the same material and
// encryption context. The error is ErrCiphertext for everything that is wrong
// with blob or context. The caller wipes the result. It panics when the
// material is all zero.
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
	// Before anything is decrypted: a ciphertext made to open under several
	// keys must not even be tried.
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

// appendContext appends the encryption context in its canonical form: the number
// of pairs, then each key and value after its length, keys ascending by their
// bytes. Lengths are 32 bits, big-endian. Strings count as bytes, so no two
// contexts share a form, whether or not they are UTF-8.
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

// ContextForm is the canonical form of an encryption context.
func ContextForm(context map[string]string) []byte { return appendContext(nil, context) }
