package primitive

import (
	"encoding/asn1"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
)

// secgFamily is secp256k1 (SEC 2, section 2.4.1), which crypto/x509 doesn't know.
// Signatures have the lower of the two values of s, as Bitcoin and Ethereum ask for,
// and are deterministic (RFC 6979).
var secgFamily = family{foreign: true, generate: newSECG, check: checkSECG, public: publicSECG, sign: signSECG, verify: verifySECG}

var (
	oidECPublicKey = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidSECP256K1   = asn1.ObjectIdentifier{1, 3, 132, 0, 10}
)

type ecAlgorithm struct {
	Algorithm asn1.ObjectIdentifier
	Curve     asn1.ObjectIdentifier
}

var secgAlgorithm = ecAlgorithm{oidECPublicKey, oidSECP256K1}

func (a ecAlgorithm) isSECG() bool {
	return a.Algorithm.Equal(oidECPublicKey) && a.Curve.Equal(oidSECP256K1)
}

// pkcs8 is the OneAsymmetricKey of RFC 5958 without attributes and public key.
type pkcs8 struct {
	Version    int
	Algorithm  ecAlgorithm
	PrivateKey []byte
}

// ecPrivateKey is that of RFC 5915, section 3.
type ecPrivateKey struct {
	Version    int
	PrivateKey []byte
	Curve      asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
	PublicKey  asn1.BitString        `asn1:"optional,explicit,tag:1"`
}

type subjectPublicKeyInfo struct {
	Algorithm ecAlgorithm
	PublicKey asn1.BitString
}

func bits(b []byte) asn1.BitString { return asn1.BitString{Bytes: b, BitLength: 8 * len(b)} }

// unmarshal refuses bytes that follow the structure.
func unmarshal(der []byte, into any) bool {
	rest, err := asn1.Unmarshal(der, into)
	return err == nil && len(rest) == 0
}

func newSECG(string) ([]byte, error) {
	key, err := secp256k1.GeneratePrivateKey()
	if err != nil {
		return nil, err
	}
	defer key.Zero()
	scalar := key.Serialize()
	defer clear(scalar)
	inner, err := asn1.Marshal(ecPrivateKey{Version: 1, PrivateKey: scalar, PublicKey: bits(key.PubKey().SerializeUncompressed())})
	if err != nil {
		return nil, err
	}
	defer clear(inner)
	return asn1.Marshal(pkcs8{Algorithm: secgAlgorithm, PrivateKey: inner})
}

func parseSECG(material []byte) (*secp256k1.PrivateKey, error) {
	var outer pkcs8
	if !unmarshal(material, &outer) || outer.Version != 0 || !outer.Algorithm.isSECG() {
		return nil, ErrMaterial
	}
	defer clear(outer.PrivateKey)
	var inner ecPrivateKey
	if !unmarshal(outer.PrivateKey, &inner) || inner.Version != 1 || len(inner.PrivateKey) != 32 {
		return nil, ErrMaterial
	}
	defer clear(inner.PrivateKey)
	if inner.Curve != nil && !inner.Curve.Equal(oidSECP256K1) {
		return nil, ErrMaterial
	}
	var scalar secp256k1.ModNScalar
	if overflow := scalar.SetByteSlice(inner.PrivateKey); overflow || scalar.IsZero() {
		return nil, ErrMaterial
	}
	key := secp256k1.NewPrivateKey(&scalar)
	scalar.Zero()
	if !matches(key, inner.PublicKey) {
		return nil, ErrMaterial
	}
	return key, nil
}

// matches compares the public key in a structure, if there is one, with the real one.
func matches(key *secp256k1.PrivateKey, given asn1.BitString) bool {
	if given.BitLength == 0 {
		return true
	}
	public, err := secp256k1.ParsePubKey(given.RightAlign())
	return err == nil && public.IsEqual(key.PubKey())
}

func checkSECG(_ string, material []byte) error {
	key, err := parseSECG(material)
	if err != nil {
		return err
	}
	key.Zero()
	return nil
}

func publicSECG(_ string, material []byte) ([]byte, error) {
	key, err := parseSECG(material)
	if err != nil {
		return nil, err
	}
	defer key.Zero()
	return asn1.Marshal(subjectPublicKeyInfo{secgAlgorithm, bits(key.PubKey().SerializeUncompressed())})
}

func signSECG(_ string, material []byte, m message) ([]byte, error) {
	key, err := parseSECG(material)
	if err != nil {
		return nil, err
	}
	defer key.Zero()
	return ecdsa.Sign(key, m.digest()).Serialize(), nil
}

func verifySECG(_ string, spki []byte, m message, signature []byte) error {
	var info subjectPublicKeyInfo
	if !unmarshal(spki, &info) || !info.Algorithm.isSECG() {
		return ErrPublicKey
	}
	key, err := secp256k1.ParsePubKey(info.PublicKey.RightAlign())
	if err != nil {
		return ErrPublicKey
	}
	parsed, err := ecdsa.ParseDERSignature(signature)
	if err != nil || !parsed.Verify(m.digest(), key) {
		return ErrSignature
	}
	return nil
}
