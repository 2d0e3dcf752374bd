package keymat

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
)

// A message between unsealed nodes is
//
//	format(1) generation(4) salt(16) nonce ‖ ciphertext ‖ tag
//
// under its own key, which is derived from the generation's key for the purpose and the
// salt.
const (
	transitFormat  = 1
	transitHeader  = 1 + 4 + 16
	transitLabel   = "conclave transit v1 "
	transitDomain  = "conclave transit message v1\x00"
	maxTransitable = 1 << 20
)

// ErrTransit is returned for a message that cannot be decrypted: it was changed, made for
// another context, or made without the keyring.
var ErrTransit = errors.New("message of another node cannot be decrypted")

// SealTransit encrypts a message to another node, so that only unsealed nodes can read or
// create it. context says what the message is, from whom and for what, and is needed to
// decrypt it. The caller must wipe plaintext.
func (k *Keyring) SealTransit(p Purpose, context, plaintext []byte) ([]byte, error) {
	if len(plaintext) > maxTransitable {
		return nil, fmt.Errorf("%w: a message of %d bytes", ErrSize, len(plaintext))
	}
	generation := k.Settled()
	out := make([]byte, transitHeader, transitHeader+len(plaintext)+gcmOverhead)
	out[0] = transitFormat
	binary.BigEndian.PutUint32(out[1:], generation)
	_, _ = rand.Read(out[5:]) // never fails: crypto/rand ends the process instead
	aead, err := k.transit(generation, p, out)
	if err != nil {
		return nil, err
	}
	return aead.Seal(out, nil, plaintext, transitAAD(out, context)), nil
}

// OpenTransit decrypts a message of SealTransit. The caller must wipe the result.
func (k *Keyring) OpenTransit(p Purpose, context, message []byte) ([]byte, error) {
	if len(message) < transitHeader+gcmOverhead || len(message) > transitHeader+gcmOverhead+maxTransitable || message[0] != transitFormat {
		return nil, ErrTransit
	}
	header := message[:transitHeader]
	aead, err := k.transit(binary.BigEndian.Uint32(header[1:]), p, header)
	if errors.Is(err, ErrGeneration) {
		return nil, ErrTransit
	}
	if err != nil {
		return nil, err
	}
	plaintext, err := aead.Open(nil, nil, message[transitHeader:], transitAAD(header, context))
	if err != nil {
		return nil, ErrTransit
	}
	return plaintext, nil
}

func transitAAD(header, context []byte) []byte {
	aad := append([]byte(transitDomain), header...)
	return append(aad, context...)
}

func (k *Keyring) transit(generation uint32, p Purpose, header []byte) (aead cipher.AEAD, err error) {
	if !p.known() {
		return nil, fmt.Errorf("%w: %q", ErrPurpose, p)
	}
	kek, err := k.kek(generation)
	if err != nil {
		return nil, err
	}
	err = kek.With(func(b []byte) error {
		key := Derive(b, transitLabel+string(p), append(k.cluster[:len(k.cluster):len(k.cluster)], header[5:transitHeader]...), KeySize)
		defer clear(key)
		aead = newAEAD(key)
		return nil
	})
	return aead, err
}
