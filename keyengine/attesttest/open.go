package attesttest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
)

// Open decrypts an answer like the AWS SDK for enclaves, which accepts only one form of
// message.
func (e *Enclave) Open(message []byte) ([]byte, error) { return Open(e.Key, message) }

// Open decrypts an answer with the given key.
func Open(key *rsa.PrivateKey, message []byte) ([]byte, error) {
	r := &berReader{rest: message}
	r.open(0x30)
	r.is(0x06, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x03})
	r.open(0xa0)
	r.open(0x30)
	r.is(0x02, []byte{2})
	set := r.inside(0x31)
	recipient := set.inside(0x30)
	recipient.is(0x02, []byte{2})
	id := sha256.Sum256(SPKI(&key.PublicKey))
	recipient.is(0x80, id[:])
	recipient.oaep()
	encryptedKey := recipient.element(0x04)
	r.open(0x30)
	r.is(0x06, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07, 0x01})
	algorithm := r.inside(0x30)
	algorithm.is(0x06, []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01, 0x2a})
	iv := algorithm.element(0x04)
	r.open(0xa0)
	content := bytes.Clone(r.element(0x04))
	r.end(5)
	for _, part := range []*berReader{r, set, recipient, algorithm} {
		if part.err == nil && len(part.rest) != 0 {
			part.err = errors.New("there is data after the end")
		}
		if part.err != nil {
			return nil, fmt.Errorf("no answer for an enclave: %w", part.err)
		}
	}
	contentKey, err := rsa.DecryptOAEP(sha256.New(), nil, key, encryptedKey, nil)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(contentKey, make([]byte, len(contentKey))) {
		return nil, errors.New("the content key is all zeros")
	}
	block, err := aes.NewCipher(contentKey)
	if err != nil {
		return nil, err
	}
	if len(contentKey) != 32 || len(iv) != aes.BlockSize || len(content) == 0 || len(content)%aes.BlockSize != 0 {
		return nil, fmt.Errorf("a key of %d, an IV of %d and content of %d bytes", len(contentKey), len(iv), len(content))
	}
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(content, content)
	n := int(content[len(content)-1])
	if n == 0 || n > aes.BlockSize || !bytes.Equal(content[len(content)-n:], bytes.Repeat([]byte{byte(n)}, n)) {
		return nil, errors.New("the padding is wrong")
	}
	return content[:len(content)-n], nil
}

// oaep reads the key encryption algorithm, which must be OAEP with SHA-256 for both hashes.
func (r *berReader) oaep() {
	sha := []byte{0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01}
	a := r.inside(0x30)
	a.is(0x06, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x07})
	parameters := a.inside(0x30)
	hash := parameters.inside(0xa0).inside(0x30)
	hash.is(0x06, sha)
	hash.is(0x05, nil)
	mask := parameters.inside(0xa1).inside(0x30)
	mask.is(0x06, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08})
	hash = mask.inside(0x30)
	hash.is(0x06, sha)
	hash.is(0x05, nil)
	for _, part := range []*berReader{a, parameters, mask, hash} {
		if r.err == nil {
			r.err = part.err
		}
	}
}

// berReader reads elements in sequence, until one is not as expected.
type berReader struct {
	rest []byte
	err  error
}

// open begins an element of indefinite length.
func (r *berReader) open(tag byte) {
	if r.err == nil && (len(r.rest) < 2 || r.rest[0] != tag || r.rest[1] != 0x80) {
		r.err = fmt.Errorf("no element %#x of indefinite length at %x", tag, r.rest)
	}
	if r.err == nil {
		r.rest = r.rest[2:]
	}
}

// end ends n elements of indefinite length.
func (r *berReader) end(n int) {
	if r.err == nil && !bytes.HasPrefix(r.rest, make([]byte, 2*n)) {
		r.err = fmt.Errorf("no end at %x", r.rest)
	}
	if r.err == nil {
		r.rest = r.rest[2*n:]
	}
}

// element returns the content of an element of definite length.
func (r *berReader) element(tag byte) []byte {
	if r.err == nil && (len(r.rest) < 2 || r.rest[0] != tag) {
		r.err = fmt.Errorf("no element %#x at %x", tag, r.rest)
	}
	if r.err != nil {
		return nil
	}
	n, head := int(r.rest[1]), 2
	switch {
	case n == 0x81 && len(r.rest) > 2:
		n, head = int(r.rest[2]), 3
	case n == 0x82 && len(r.rest) > 3:
		n, head = int(r.rest[2])<<8|int(r.rest[3]), 4
	case n >= 0x80:
		r.err = fmt.Errorf("no length at %x", r.rest)
		return nil
	}
	if len(r.rest) < head+n {
		r.err = fmt.Errorf("an element %#x of %d bytes ends early", tag, n)
		return nil
	}
	content := r.rest[head : head+n]
	r.rest = r.rest[head+n:]
	return content
}

func (r *berReader) inside(tag byte) *berReader {
	b := r.element(tag)
	return &berReader{rest: b, err: r.err}
}

// is consumes an element that must have the given content.
func (r *berReader) is(tag byte, want []byte) {
	if got := r.element(tag); r.err == nil && !bytes.Equal(got, want) {
		r.err = fmt.Errorf("element %#x is %x, want %x", tag, got, want)
	}
}
