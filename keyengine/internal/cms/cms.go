// Package cms writes the kind of CMS message (RFC 5652) with which AWS KMS answers
// enclaves: EnvelopedData for one recipient, with the content key encrypted to its RSA key
// by OAEP and SHA-256 (RFC 3560), and the content encrypted by AES-256-CBC.
//
// The outer levels are BER of indefinite length, as in AWS's answers. DER would be
// equivalent, but the parser of AWS's SDK for enclaves accepts only the former.
//
// This kind of CMS does not authenticate the content. An attacker who can change an answer
// can make an enclave decrypt something else. Enclaves are protected from that by TLS to
// the service.
package cms

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Tags.
const (
	tagInteger     = 0x02
	tagOctets      = 0x04
	tagSequence    = 0x30
	tagSet         = 0x31
	tagContext     = 0x80 // [0] of a primitive
	tagConstructed = 0xa0 // [0]

	indefinite = 0x80 // in place of a length
)

// Encodings of constant parts.
var (
	version2      = []byte{tagInteger, 1, 2}
	envelopedData = []byte{0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03} // 1.2.840.113549.1.7.3
	data          = []byte{0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01} // 1.2.840.113549.1.7.1
	rsaesOAEP     = []byte{0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07} // 1.2.840.113549.1.1.7
	mgf1          = []byte{0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08} // 1.2.840.113549.1.1.8
	aes256CBC     = []byte{0x06, 9, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a} // 2.16.840.1.101.3.4.1.42
	sha256OID     = []byte{0x06, 9, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01} // 2.16.840.1.101.3.4.2.1
	null          = []byte{0x05, 0}

	// sha256Algorithm is the identifier of SHA-256, which OAEP uses for both of its hashes.
	sha256Algorithm = tlv(tagSequence, sha256OID, null)
	oaepSHA256      = tlv(tagSequence, rsaesOAEP, tlv(tagSequence,
		tlv(tagConstructed, sha256Algorithm),
		tlv(tagConstructed+1, tlv(tagSequence, mgf1, sha256Algorithm))))
)

// maxContent limits the length of the content. Plaintexts in answers are less than half as
// long.
const maxContent = 1 << 15

// Seal encrypts content to an RSA key, under a new content key, which it wipes. spki is the
// key as its owner encoded it: its SHA-256 identifies the recipient in the message.
func Seal(key *rsa.PublicKey, spki, content []byte) ([]byte, error) {
	if len(content) > maxContent {
		return nil, fmt.Errorf("a content of %d bytes is too long", len(content))
	}
	contentKey := make([]byte, 32)
	defer clear(contentKey)
	iv := make([]byte, aes.BlockSize)
	// Neither call fails: crypto/rand ends the process instead.
	_, _ = rand.Read(contentKey)
	_, _ = rand.Read(iv)
	encryptedKey, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, key, contentKey, nil)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(contentKey)
	if err != nil {
		return nil, err
	}
	encrypted := pad(content)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(encrypted, encrypted)

	id := sha256.Sum256(spki)
	recipient := tlv(tagSequence, version2, tlv(tagContext, id[:]), oaepSHA256, tlv(tagOctets, encryptedKey))

	b := make([]byte, 0, len(recipient)+len(encrypted)+128)
	b = append(b, tagSequence, indefinite)
	b = append(b, envelopedData...)
	b = append(b, tagConstructed, indefinite)
	b = append(b, tagSequence, indefinite)
	b = append(b, version2...)
	b = append(b, tlv(tagSet, recipient)...)
	b = append(b, tagSequence, indefinite)
	b = append(b, data...)
	b = append(b, tlv(tagSequence, aes256CBC, tlv(tagOctets, iv))...)
	b = append(b, tagConstructed, indefinite)
	b = append(b, tlv(tagOctets, encrypted)...)
	return append(b, make([]byte, 5*2)...), nil // ends of five elements
}

// pad returns a copy of content with the padding of RFC 5652, section 6.3. It is encrypted
// in place, so that no second copy remains.
func pad(content []byte) []byte {
	n := aes.BlockSize - len(content)%aes.BlockSize
	b := make([]byte, len(content)+n)
	for i := copy(b, content); i < len(b); i++ {
		b[i] = byte(n)
	}
	return b
}

// tlv returns a DER element of less than 64 KiB.
func tlv(tag byte, contents ...[]byte) []byte {
	n := 0
	for _, c := range contents {
		n += len(c)
	}
	b := make([]byte, 0, n+4)
	switch b = append(b, tag); {
	case n < 1<<7:
		b = append(b, byte(n))
	case n < 1<<8:
		b = append(b, 0x81, byte(n))
	default:
		b = binary.BigEndian.AppendUint16(append(b, 0x82), uint16(n))
	}
	for _, c := range contents {
		b = append(b, c...)
	}
	return b
}
