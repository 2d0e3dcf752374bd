package xks

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"
)

const (
	// MaxPlaintext and MaxAAD are the lengths in bytes that every proxy must accept.
	MaxPlaintext = 4300
	MaxAAD       = 8192
	// MaxMetadata is the maximum length of a proxy's own data in a ciphertext.
	MaxMetadata = 20

	tagSize   = 16
	maxUsages = 10
	maxFleet  = 10

	gcm        = "AES_GCM"
	sha256Name = "SHA_256"
)

// Health checks that the proxy works: it can be reached, authenticates the caller, and has
// at least one external key manager that works. The error is ErrUnavailable if none does.
func (c *Client) Health(ctx context.Context, p *Proxy, o Origin) error {
	o.Principal, o.Key = "", ""
	answer, err := c.call(ctx, p, "/health", struct {
		Origin Origin `json:"requestMetadata"`
	}{o})
	if err != nil {
		return err
	}
	h, err := decodeHealth(answer)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(h.statuses, func(s string) bool { return s != statusUnavailable }) {
		return ErrUnavailable
	}
	return nil
}

// KeyMetadata is the description of a key by a proxy.
type KeyMetadata struct {
	Spec    string
	Usages  []string
	Enabled bool
}

// Fits reports whether the key can be used for a KMS key: it must be an AES key of 256 bits
// that encrypts and decrypts.
func (m *KeyMetadata) Fits() bool {
	return m.Spec == "AES_256" && slices.Contains(m.Usages, "ENCRYPT") && slices.Contains(m.Usages, "DECRYPT")
}

// KeyMetadata returns the metadata of a key.
func (c *Client) KeyMetadata(ctx context.Context, p *Proxy, o Origin, key string) (*KeyMetadata, error) {
	answer, err := c.call(ctx, p, "/keys/"+key+"/metadata", struct {
		Origin Origin `json:"requestMetadata"`
	}{o})
	if err != nil {
		return nil, err
	}
	return decodeKeyMetadata(answer)
}

// Sealed is a plaintext encrypted by a proxy. All fields are needed to decrypt it.
type Sealed struct {
	Ciphertext []byte
	IV         []byte // 12 or 16 bytes
	Tag        []byte // 16 bytes
	Metadata   []byte // at most MaxMetadata bytes; may be nil
}

// Encrypt calls the proxy to encrypt, and checks with the integrity value that the result
// was not changed on the way.
func (c *Client) Encrypt(ctx context.Context, p *Proxy, o Origin, key string, plaintext, aad []byte) (*Sealed, error) {
	if len(plaintext) < 1 || len(plaintext) > MaxPlaintext || len(aad) > MaxAAD {
		return nil, fmt.Errorf("%d bytes with %d of additional data are more than external key store proxies take", len(plaintext), len(aad))
	}
	answer, err := c.call(ctx, p, "/keys/"+key+"/encrypt", struct {
		Origin    Origin `json:"requestMetadata"`
		AAD       []byte `json:"additionalAuthenticatedData,omitempty"`
		Plaintext []byte `json:"plaintext"`
		Algorithm string `json:"encryptionAlgorithm"`
		Integrity string `json:"ciphertextDataIntegrityValueAlgorithm"`
	}{o, aad, plaintext, gcm, sha256Name})
	if err != nil {
		return nil, err
	}
	s, value, err := decodeSealed(answer)
	if err != nil {
		return nil, err
	}
	want := integrity(s, aad)
	switch {
	case len(s.Ciphertext) != len(plaintext):
		return nil, malformed("%d bytes were encrypted to %d", len(plaintext), len(s.Ciphertext))
	case subtle.ConstantTimeCompare(want[:], value) != 1:
		return nil, malformed("the integrity value does not match")
	}
	return s, nil
}

// integrity computes the specification's ciphertextDataIntegrityValue.
func integrity(s *Sealed, aad []byte) [sha256.Size]byte {
	return sha256.Sum256(slices.Concat(aad, s.Metadata, s.IV, s.Ciphertext, s.Tag))
}

// Decrypt reverses Encrypt.
func (c *Client) Decrypt(ctx context.Context, p *Proxy, o Origin, key string, s *Sealed, aad []byte) ([]byte, error) {
	answer, err := c.call(ctx, p, "/keys/"+key+"/decrypt", struct {
		Origin     Origin `json:"requestMetadata"`
		AAD        []byte `json:"additionalAuthenticatedData,omitempty"`
		Ciphertext []byte `json:"ciphertext"`
		Metadata   []byte `json:"ciphertextMetadata,omitempty"`
		Algorithm  string `json:"encryptionAlgorithm"`
		IV         []byte `json:"initializationVector"`
		Tag        []byte `json:"authenticationTag"`
	}{o, aad, s.Ciphertext, s.Metadata, gcm, s.IV, s.Tag})
	if err != nil {
		return nil, err
	}
	plaintext, err := decodePlaintext(answer)
	if err == nil && len(plaintext) != len(s.Ciphertext) {
		return nil, malformed("%d bytes were decrypted to %d", len(s.Ciphertext), len(plaintext))
	}
	return plaintext, err
}
