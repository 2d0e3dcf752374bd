// Package keywrap wraps key material for its import, by the algorithms of AWS KMS's
// GetParametersForImport. Its functions keep nothing of what they are given.
//
// Wrapping keys are RSA keys: the private one a PKCS #8 structure, the public one a
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

// MaxMaterial is the most material that is wrapped or unwrapped, in bytes.
const MaxMaterial = 8 << 10

var (
	// ErrUnwrap: wrapped material that doesn't open, whatever is wrong with it.
	ErrUnwrap = errors.New("keywrap: wrapped key material does not open")
	// ErrMaterial: material that the algorithm has no room for, or none.
	ErrMaterial = errors.New("keywrap: key material of a length that cannot be wrapped")
	// ErrKey: a public key that is none of a wrapping key.
	ErrKey = errors.New("keywrap: not a public wrapping key")
	// ErrSpec: a wrapping key spec that doesn't exist.
	ErrSpec = errors.New("keywrap: no such wrapping key spec")
	// ErrAlgorithm: a wrapping algorithm that doesn't exist, or not in strict FIPS mode.
	ErrAlgorithm = errors.New("keywrap: no such wrapping algorithm")
)

var rsaBits = map[string]int{"RSA_2048": 2048, "RSA_3072": 3072, "RSA_4096": 4096}

// kekSize is the AES-256 key's of the hybrid algorithms.
const kekSize = 32

type algorithm struct {
	name   string
	hash   func() hash.Hash // OAEP's, and its mask's
	hybrid bool             // an AES key under RSA, the material under the AES key
	sha1   bool             // refused by the standard library in strict FIPS mode
}

var algorithms = []algorithm{
	{name: "RSAES_OAEP_SHA_1", hash: sha1.New, sha1: true},
	{name: "RSAES_OAEP_SHA_256", hash: sha256.New},
	{name: "RSA_AES_KEY_WRAP_SHA_1", hash: sha1.New, sha1: true, hybrid: true},
	{name: "RSA_AES_KEY_WRAP_SHA_256", hash: sha256.New, hybrid: true},
}

// available says whether the algorithm can be used. OAEP may take SHA-1 by SP
// 800-131A, but the standard library panics on it in strict FIPS mode.
func (a algorithm) available() bool { return !a.sha1 || !fips140.Enforced() }

// Algorithms are those that material can be wrapped by.
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

// NewWrappingKey makes a wrapping key of a spec. The caller wipes the private key.
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

// Wrap does what a client does with the public key of GetParametersForImport. It
// returns ErrMaterial for material that is empty, longer than MaxMaterial or, by the
// RSAES_OAEP algorithms, than the key has room for (RFC 8017, section 7.1.1).
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

// Unwrap opens what Wrap made. The caller wipes the material. It returns ErrUnwrap,
// whatever is wrong: a client that learns more than that could read what others
// wrapped (Manger's attack on OAEP).
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

// unwrapHybrid goes on with a random AES key if RSA gives none, so that the time
// taken doesn't tell which of the two parts is wrong.
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
