// Package primitive implements the algorithms of asymmetric and HMAC KMS keys. Its
// functions take raw key material and do not keep it. Specs, algorithms and message types
// have AWS KMS's names.
//
// Key material is the key itself for HMAC, the 32-byte seed of FIPS 204 for ML-DSA, the
// 64-byte seed of FIPS 203 for ML-KEM, and a PKCS #8 structure in DER for all others.
// Public keys are DER SubjectPublicKeyInfo.
//
// Curves and lattices that the standard library lacks come from other modules. They are
// outside the FIPS 140-3 module and are refused in FIPS mode.
package primitive

import (
	"bytes"
	"crypto"
	"crypto/fips140"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"slices"
)

var (
	// ErrMaterial is returned for bytes that are not a valid key of the spec.
	ErrMaterial = errors.New("primitive: not key material of this spec")
	// ErrDigestLength is returned for a digest of the wrong length.
	ErrDigestLength = errors.New("primitive: digest of a wrong length")
	// ErrMessageType is returned for a message type that the algorithm does not accept.
	ErrMessageType = errors.New("primitive: message type does not fit the algorithm")
	// ErrSignature is returned for an invalid signature, whatever is wrong with it.
	ErrSignature = errors.New("primitive: invalid signature")
	// ErrMac is returned for an invalid MAC.
	ErrMac = errors.New("primitive: invalid MAC")
	// ErrCiphertext is returned for a ciphertext that cannot be decrypted, or a plaintext
	// that is too long.
	ErrCiphertext = errors.New("primitive: invalid ciphertext")
	// ErrPublicKey is returned for a peer's key that is not on the same curve.
	ErrPublicKey = errors.New("primitive: not a public key of this spec")
	// ErrFIPS is returned for an algorithm without validated code in FIPS 140-3 mode.
	ErrFIPS = errors.New("primitive: not available in FIPS mode")

	errSpec = errors.New("primitive: no such key spec or algorithm")
)

// Message types of Sign and Verify.
const (
	Raw        = "RAW"
	Digest     = "DIGEST"
	ExternalMu = "EXTERNAL_MU"
)

const ecdhAlgorithm = "ECDH"

// A family is a group of key specs with common code. Functions for what its keys cannot do
// may be nil; the tables of algorithms ensure that they are not called.
type family struct {
	foreign  bool // not in the standard library
	generate func(spec string) ([]byte, error)
	check    func(spec string, material []byte) error
	public   func(spec string, material []byte) ([]byte, error)
	export   func(spec string, material []byte) ([]byte, error) // if material is not PKCS #8
	sign     func(spec string, material []byte, m message) ([]byte, error)
	verify   func(spec string, spki []byte, m message, signature []byte) error
}

type keySpec struct {
	*family
	signing       []string
	encryption    []string
	mac           []string
	agreement     []string
	encapsulation []string
}

var (
	rsaSigning = []string{
		"RSASSA_PKCS1_V1_5_SHA_256", "RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512",
		"RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512",
	}
	rsaEncryption = []string{"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"}
	rsaSpec       = keySpec{family: &rsaFamily, signing: rsaSigning, encryption: rsaEncryption}
	mldsaSpec     = keySpec{family: &mldsaFamily, signing: []string{"ML_DSA_SHAKE_256"}}
)

func mlkemSpec(f *family) keySpec {
	return keySpec{family: f, encapsulation: []string{"ML_KEM"}}
}

func nist(algorithm string) keySpec {
	return keySpec{family: &nistFamily, signing: []string{algorithm}, agreement: []string{ecdhAlgorithm}}
}

var specs = map[string]keySpec{
	"RSA_2048":              rsaSpec,
	"RSA_3072":              rsaSpec,
	"RSA_4096":              rsaSpec,
	"ECC_NIST_P256":         nist("ECDSA_SHA_256"),
	"ECC_NIST_P384":         nist("ECDSA_SHA_384"),
	"ECC_NIST_P521":         nist("ECDSA_SHA_512"),
	"ECC_SECG_P256K1":       {family: &secgFamily, signing: []string{"ECDSA_SHA_256"}},
	"ECC_NIST_EDWARDS25519": {family: &edwardsFamily, signing: []string{"ED25519_SHA_512", "ED25519_PH_SHA_512"}},
	"ML_DSA_44":             mldsaSpec,
	"ML_DSA_65":             mldsaSpec,
	"ML_DSA_87":             mldsaSpec,
	"ML_KEM_512":            mlkemSpec(&mlkem512Family),
	"ML_KEM_768":            mlkemSpec(&mlkemFamily),
	"ML_KEM_1024":           mlkemSpec(&mlkemFamily),
	"HMAC_224":              {family: &hmacFamily, mac: []string{"HMAC_SHA_224"}},
	"HMAC_256":              {family: &hmacFamily, mac: []string{"HMAC_SHA_256"}},
	"HMAC_384":              {family: &hmacFamily, mac: []string{"HMAC_SHA_384"}},
	"HMAC_512":              {family: &hmacFamily, mac: []string{"HMAC_SHA_512"}},
}

// SigningAlgorithms returns the signing algorithms of a spec, in AWS's order.
func SigningAlgorithms(spec string) []string { return specs[spec].signing }

// EncryptionAlgorithms returns the encryption algorithms of a spec.
func EncryptionAlgorithms(spec string) []string { return specs[spec].encryption }

// MacAlgorithms returns the MAC algorithms of a spec.
func MacAlgorithms(spec string) []string { return specs[spec].mac }

// KeyAgreementAlgorithms returns the key agreement algorithms of a spec.
func KeyAgreementAlgorithms(spec string) []string { return specs[spec].agreement }

// EncapsulationAlgorithms returns the encapsulation algorithms of a spec.
func EncapsulationAlgorithms(spec string) []string { return specs[spec].encapsulation }

func find(spec string) (*family, error) {
	s, ok := specs[spec]
	switch {
	case !ok:
		return nil, errSpec
	case s.foreign && fips140.Enabled():
		return nil, ErrFIPS
	}
	return s.family, nil
}

// Available returns ErrFIPS for a spec that is not available in FIPS mode.
func Available(spec string) error {
	_, err := find(spec)
	return err
}

// Generate generates a key, which the caller must wipe. It returns ErrFIPS for a spec that
// is not available in FIPS mode.
func Generate(spec string) ([]byte, error) {
	f, err := find(spec)
	if err != nil {
		return nil, err
	}
	return f.generate(spec)
}

// maxMaterial is far above the largest PKCS #8 structure of any spec (2,400 bytes
// for RSA_4096).
const maxMaterial = 4096

// Check checks that bytes from outside are a valid key of the spec: of its size, on its
// curve, and consistent. It returns ErrMaterial if not, and ErrFIPS for a spec that is not
// available in FIPS mode.
func Check(spec string, material []byte) error {
	f, err := find(spec)
	if err != nil {
		return err
	}
	if len(material) > maxMaterial {
		return ErrMaterial
	}
	return f.check(spec, material)
}

// parsePKCS8 refuses trailing bytes, which crypto/x509 ignores.
func parsePKCS8(material []byte) (any, error) {
	var der asn1.RawValue
	if rest, err := asn1.Unmarshal(material, &der); err != nil || len(rest) > 0 {
		return nil, ErrMaterial
	}
	return x509.ParsePKCS8PrivateKey(material)
}

// Public returns the public key of a private one, or nil for an HMAC key.
func Public(spec string, material []byte) (spki []byte, err error) {
	f, err := find(spec)
	if err != nil || f.public == nil {
		return nil, err
	}
	return f.public(spec, material)
}

// PrivateKey returns the private key in PKCS #8, for callers of KMS. The caller must wipe
// it.
func PrivateKey(spec string, material []byte) (pkcs8 []byte, err error) {
	f, err := find(spec)
	if err != nil {
		return nil, err
	}
	if f.export == nil {
		return bytes.Clone(material), nil
	}
	return f.export(spec, material)
}

// A message is a message to sign or verify, as the caller gave it.
type message struct {
	algorithm string
	kind      string // Raw, Digest or ExternalMu
	bytes     []byte
}

// hashes has the digests by the suffixes of signing algorithms.
var hashes = map[string]crypto.Hash{
	"RSASSA_PKCS1_V1_5_SHA_256": crypto.SHA256,
	"RSASSA_PKCS1_V1_5_SHA_384": crypto.SHA384,
	"RSASSA_PKCS1_V1_5_SHA_512": crypto.SHA512,
	"RSASSA_PSS_SHA_256":        crypto.SHA256,
	"RSASSA_PSS_SHA_384":        crypto.SHA384,
	"RSASSA_PSS_SHA_512":        crypto.SHA512,
	"ECDSA_SHA_256":             crypto.SHA256,
	"ECDSA_SHA_384":             crypto.SHA384,
	"ECDSA_SHA_512":             crypto.SHA512,
	"ED25519_PH_SHA_512":        crypto.SHA512,
}

// messageTypes has the message types of algorithms that do not accept Raw and Digest.
var messageTypes = map[string][]string{
	"ED25519_SHA_512":    {Raw},
	"ED25519_PH_SHA_512": {Digest},
	"ML_DSA_SHAKE_256":   {Raw, ExternalMu},
}

const muSize = 64

// CheckMessage checks that an algorithm accepts a message of this type and length. It
// returns ErrMessageType or ErrDigestLength if not.
func CheckMessage(algorithm, messageType string, message []byte) error {
	types, ok := messageTypes[algorithm]
	if !ok {
		types = []string{Raw, Digest}
	}
	switch {
	case !slices.Contains(types, messageType):
		return ErrMessageType
	case messageType == Digest && len(message) != hashes[algorithm].Size():
		return ErrDigestLength
	case messageType == ExternalMu && len(message) != muSize:
		return ErrDigestLength
	}
	return nil
}

// digest returns the hash of a message, or the message itself if it is a digest already.
func (m message) digest() []byte {
	if m.kind == Digest {
		return m.bytes
	}
	h := hashes[m.algorithm].New()
	h.Write(m.bytes)
	return h.Sum(nil)
}

func newMessage(spec, algorithm, messageType string, b []byte) (message, error) {
	if !slices.Contains(specs[spec].signing, algorithm) {
		return message{}, errSpec
	}
	return message{algorithm: algorithm, kind: messageType, bytes: b}, CheckMessage(algorithm, messageType, b)
}

// Sign signs a message that has passed CheckMessage. Only RSASSA_PKCS1_V1_5 and Ed25519
// signatures are deterministic.
func Sign(spec string, material []byte, algorithm, messageType string, message []byte) ([]byte, error) {
	f, err := find(spec)
	if err != nil {
		return nil, err
	}
	m, err := newMessage(spec, algorithm, messageType, message)
	if err != nil {
		return nil, err
	}
	return f.sign(spec, material, m)
}

// Verify returns ErrSignature if the signature does not verify.
func Verify(spec string, spki []byte, algorithm, messageType string, message, signature []byte) error {
	f, err := find(spec)
	if err != nil {
		return err
	}
	m, err := newMessage(spec, algorithm, messageType, message)
	if err != nil {
		return err
	}
	return f.verify(spec, spki, m, signature)
}
