package primitive

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"slices"
	"strings"

	// Digests of the algorithms.
	_ "crypto/sha1"
	_ "crypto/sha256"
	_ "crypto/sha512"
)

var rsaFamily = family{generate: newRSA, check: checkRSA, public: publicRSA, sign: signRSA, verify: verifyRSA}

var rsaBits = map[string]int{"RSA_2048": 2048, "RSA_3072": 3072, "RSA_4096": 4096}

func newRSA(spec string) ([]byte, error) {
	key, err := rsa.GenerateKey(rand.Reader, rsaBits[spec])
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKCS8PrivateKey(key)
}

// parseRSA accepts keys with two primes only. The standard library has checked that these
// fit the modulus and the exponents.
func parseRSA(spec string, material []byte) (*rsa.PrivateKey, error) {
	parsed, err := parsePKCS8(material)
	if err != nil {
		return nil, ErrMaterial
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok || key.N.BitLen() != rsaBits[spec] || len(key.Primes) != 2 {
		return nil, ErrMaterial
	}
	return key, nil
}

// minExponent is the minimum of FIPS 186-5, appendix A.1.1.
const minExponent = 65537

func checkRSA(spec string, material []byte) error {
	key, err := parseRSA(spec, material)
	if err != nil {
		return err
	}
	if key.E < minExponent || key.E%2 == 0 || key.Validate() != nil {
		return ErrMaterial
	}
	return nil
}

func publicRSA(spec string, material []byte) ([]byte, error) {
	key, err := parseRSA(spec, material)
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(&key.PublicKey)
}

func parsePublicRSA(spec string, spki []byte) (*rsa.PublicKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, ErrPublicKey
	}
	key, ok := parsed.(*rsa.PublicKey)
	if !ok || key.N.BitLen() != rsaBits[spec] {
		return nil, ErrPublicKey
	}
	return key, nil
}

func isPSS(algorithm string) bool { return strings.HasPrefix(algorithm, "RSASSA_PSS_") }

// pss returns options with a salt as long as the digest, and accepts no other length.
func pss(h crypto.Hash) *rsa.PSSOptions {
	return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
}

func signRSA(spec string, material []byte, m message) ([]byte, error) {
	key, err := parseRSA(spec, material)
	if err != nil {
		return nil, err
	}
	h := hashes[m.algorithm]
	if isPSS(m.algorithm) {
		return rsa.SignPSS(rand.Reader, key, h, m.digest(), pss(h))
	}
	return rsa.SignPKCS1v15(rand.Reader, key, h, m.digest())
}

func verifyRSA(spec string, spki []byte, m message, signature []byte) error {
	key, err := parsePublicRSA(spec, spki)
	if err != nil {
		return err
	}
	h := hashes[m.algorithm]
	if isPSS(m.algorithm) {
		err = rsa.VerifyPSS(key, h, m.digest(), signature, pss(h))
	} else {
		err = rsa.VerifyPKCS1v15(key, h, m.digest(), signature)
	}
	if err != nil {
		return ErrSignature
	}
	return nil
}

var oaepHashes = map[string]crypto.Hash{
	"RSAES_OAEP_SHA_1":   crypto.SHA1,
	"RSAES_OAEP_SHA_256": crypto.SHA256,
}

// MaxPlaintext returns the maximum length in bytes of a plaintext for an RSA key of the
// spec (RFC 8017, section 7.1.1).
func MaxPlaintext(spec, algorithm string) int {
	h, ok := oaepHashes[algorithm]
	if !ok || rsaBits[spec] == 0 {
		return 0
	}
	return rsaBits[spec]/8 - 2*h.Size() - 2
}

// EncryptRSA encrypts with OAEP, with MGF1 of the same hash and no label. It returns
// ErrCiphertext for a plaintext that is too long.
func EncryptRSA(spec string, spki []byte, algorithm string, plaintext []byte) ([]byte, error) {
	if !slices.Contains(specs[spec].encryption, algorithm) {
		return nil, errSpec
	}
	key, err := parsePublicRSA(spec, spki)
	if err != nil {
		return nil, err
	}
	if len(plaintext) > MaxPlaintext(spec, algorithm) {
		return nil, ErrCiphertext
	}
	return rsa.EncryptOAEP(oaepHashes[algorithm].New(), rand.Reader, key, plaintext, nil)
}

// DecryptRSA returns ErrCiphertext for every invalid ciphertext, whatever is wrong with it.
func DecryptRSA(spec string, material []byte, algorithm string, ciphertext []byte) ([]byte, error) {
	if !slices.Contains(specs[spec].encryption, algorithm) {
		return nil, errSpec
	}
	key, err := parseRSA(spec, material)
	if err != nil {
		return nil, err
	}
	plaintext, err := rsa.DecryptOAEP(oaepHashes[algorithm].New(), nil, key, ciphertext, nil)
	if err != nil {
		return nil, ErrCiphertext
	}
	return plaintext, nil
}
