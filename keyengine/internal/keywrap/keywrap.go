// Package keywrap wraps key material for import, with the algorithms of AWS KMS's
// GetParametersForImport. Its functions do not keep their arguments.
//
// Wrapping keys are RSA keys. The private key is a PKCS #8 structure and the public key a
// SubjectPublicKeyInfo, both in DER.
package keywrap

import (
	"crypto/fips140"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"hash"
	"slices"
)

// MaxMaterial is the maximum length of material in bytes.
const MaxMaterial = 8 << 10

var (
	// ErrUnwrap is returned for wrapped material that cannot be unwrapped, whatever is
	// wrong with it.
	ErrUnwrap = errors.New("keywrap: wrapped key material cannot be unwrapped")
	// ErrMaterial is returned for material that is empty or too long for the algorithm.
	ErrMaterial = errors.New("keywrap: key material of a length that cannot be wrapped")
	// ErrKey is returned for a public key that is not a wrapping key.
	ErrKey = errors.New("keywrap: not a public wrapping key")
	// ErrSpec is returned for an unknown wrapping key spec.
	ErrSpec = errors.New("keywrap: no such wrapping key spec")
	// ErrAlgorithm is returned for a wrapping algorithm that is unknown, or not available
	// in strict FIPS mode.
	ErrAlgorithm = errors.New("keywrap: no such wrapping algorithm")
)

var rsaBits = map[string]int{"RSA_2048": 2048, "RSA_3072": 3072, "RSA_4096": 4096}

// kekSize is the size of the AES-256 key of the hybrid algorithms.
const kekSize = 32

type algorithm struct {
	name   string
	hash   func() hash.Hash // for OAEP and its mask
	hybrid bool             // RSA encrypts an AES key, which wraps the material
	sha1   bool             // refused by the standard library in strict FIPS mode
}

var algorithms = []algorithm{
	{name: "RSAES_OAEP_SHA_1", hash: sha1.New, sha1: true},
	{name: "RSAES_OAEP_SHA_256", hash: sha256.New},
	{name: "RSA_AES_KEY_WRAP_SHA_1", hash: sha1.New, sha1: true, hybrid: true},
	{name: "RSA_AES_KEY_WRAP_SHA_256", hash: sha256.New, hybrid: true},
}

// available reports whether the algorithm can be used. SP 800-131A permits SHA-1 in OAEP,
// but the standard library panics in strict FIPS mode.
func (a algorithm) available() bool { return !a.sha1 || !fips140.Enforced() }

// Algorithms returns the wrapping algorithms that can be used.
func Algorithms() []string {
	var names []string
	for _, a := range algorithms {
		if a.available() {
			names = append(names, a.name)
		}
	}
	return names
}

func find(name string) (algorithm, error) {
	i := slices.IndexFunc(algorithms, func(a algorithm) bool { return a.name == name && a.available() })
	if i < 0 {
		return algorithm{}, ErrAlgorithm
	}
	return algorithms[i], nil
}

// NewWrappingKey generates a wrapping key. The caller must wipe the private key.
func NewWrappingKey(spec string) (pkcs8, spki []byte, err error) {
	bits, ok := rsaBits[spec]
	if !ok {
		return nil, nil, ErrSpec
	}
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return nil, nil, err
	}
	if spki, err = x509.MarshalPKIXPublicKey(&key.PublicKey); err != nil {
		return nil, nil, err
	}
	if pkcs8, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return nil, nil, err
	}
	return pkcs8, spki, nil
}

func parsePublic(spki []byte) (*rsa.PublicKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, ErrKey
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok || !wrappingSize(key) {
		return nil, ErrKey
	}
	return key, nil
}

func wrappingSize(key *rsa.PublicKey) bool {
	for _, bits := range rsaBits {
		if key.N.BitLen() == bits {
			return true
		}
	}
	return false
}

// Wrap wraps material as a client does, with the public key of GetParametersForImport. It
// returns ErrMaterial for material that is empty, longer than MaxMaterial or, with the
// RSAES_OAEP algorithms, too long for the key (RFC 8017, section 7.1.1).
func Wrap(spki []byte, algorithm string, material []byte) ([]byte, error) {
	a, err := find(algorithm)
	if err != nil {
		return nil, err
	}
	key, err := parsePublic(spki)
	if err != nil {
		return nil, err
	}
	if len(material) == 0 || len(material) > MaxMaterial {
		return nil, ErrMaterial
	}
	if a.hybrid {
		return a.wrapHybrid(key, material)
	}
	return a.encrypt(key, material)
}

func (a algorithm) encrypt(key *rsa.PublicKey, plaintext []byte) ([]byte, error) {
	if len(plaintext) > key.Size()-2*a.hash().Size()-2 {
		return nil, ErrMaterial
	}
	return rsa.EncryptOAEP(a.hash(), rand.Reader, key, plaintext, nil)
}

func (a algorithm) wrapHybrid(key *rsa.PublicKey, material []byte) ([]byte, error) {
	kek := make([]byte, kekSize)
	defer clear(kek)
	rand.Read(kek)
	wrapped, err := a.encrypt(key, kek)
	if err != nil {
		return nil, err
	}
	padded, err := wrapPadded(kek, material)
	if err != nil {
		return nil, err
	}
	return append(wrapped, padded...), nil
}

// Unwrap reverses Wrap. The caller must wipe the material. It returns ErrUnwrap whatever is
// wrong: a client that learned more could decrypt what others have wrapped (Manger's attack
// on OAEP).
func Unwrap(pkcs8 []byte, algorithm string, wrapped []byte) ([]byte, error) {
	a, err := find(algorithm)
	if err != nil {
		return nil, ErrUnwrap
	}
	parsed, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, ErrUnwrap
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok || !wrappingSize(&key.PublicKey) {
		return nil, ErrUnwrap
	}
	if a.hybrid {
		return a.unwrapHybrid(key, wrapped)
	}
	return a.decrypt(key, wrapped)
}

func (a algorithm) decrypt(key *rsa.PrivateKey, ciphertext []byte) ([]byte, error) {
	plaintext, err := rsa.DecryptOAEP(a.hash(), nil, key, ciphertext, nil)
	if err != nil || len(plaintext) == 0 {
		return nil, ErrUnwrap
	}
	return plaintext, nil
}

// unwrapHybrid continues with a random AES key if RSA decryption fails, so that timing does
// not reveal which of the two parts is wrong.
func (a algorithm) unwrapHybrid(key *rsa.PrivateKey, wrapped []byte) ([]byte, error) {
	if len(wrapped) < key.Size() {
		return nil, ErrUnwrap
	}
	kek := make([]byte, kekSize)
	defer clear(kek)
	rand.Read(kek)
	got, err := a.decrypt(key, wrapped[:key.Size()])
	defer clear(got)
	failed := err != nil || len(got) != kekSize
	if !failed {
		copy(kek, got)
	}
	material, err := unwrapPadded(kek, wrapped[key.Size():])
	if err != nil || failed {
		clear(material)
		return nil, ErrUnwrap
	}
	return material, nil
}
