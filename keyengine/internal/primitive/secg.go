package primitive

import (
	"encoding/asn1"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
)

// secgFamily is secp256k1 (SEC 2, section 2.4.1), which crypto/x509 does not support.
// Signatures are deterministic (RFC 6979) and have the lower of the two values of s, as
// Bitcoin and Ethereum require.
var secgFamily = family{foreign: true, generate: newSECG, check: checkSECG, public: publicSECG, sign: signSECG, verify: verifySECG}

var (
	oidSECP256K1  = asn1.ObjectIdentifier{1, 3, 132, 0, 10}
	secgAlgorithm = ecAlgorithm{oidECPublicKey, oidSECP256K1}
)

func (a ecAlgorithm) isSECG() bool {
	return a.Algorithm.Equal(oidECPublicKey) && a.Curve.Equal(oidSECP256K1)
}

type subjectPublicKeyInfo struct {
	Algorithm ecAlgorithm
	PublicKey asn1.BitString
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

// parseSECG also returns the public keys in the structure.
func parseSECG(spec string, material []byte) (key *secp256k1.PrivateKey, publics [][]byte, err error) {
	raw, publics, err := parseEC(spec, material)
	if err != nil {
		return nil, nil, err
	}
	defer clear(raw)
	var scalar secp256k1.ModNScalar
	defer scalar.Zero()
	if overflow := scalar.SetByteSlice(raw); overflow || scalar.IsZero() {
		return nil, nil, ErrMaterial
	}
	return secp256k1.NewPrivateKey(&scalar), publics, nil
}

func checkSECG(spec string, material []byte) error {
	key, publics, err := parseSECG(spec, material)
	if err != nil {
		return err
	}
	defer key.Zero()
	for _, public := range publics {
		if given, err := secp256k1.ParsePubKey(public); err != nil || !given.IsEqual(key.PubKey()) {
			return ErrMaterial
		}
	}
	return nil
}

func publicSECG(spec string, material []byte) ([]byte, error) {
	key, _, err := parseSECG(spec, material)
	if err != nil {
		return nil, err
	}
	defer key.Zero()
	return asn1.Marshal(subjectPublicKeyInfo{secgAlgorithm, bits(key.PubKey().SerializeUncompressed())})
}

func signSECG(spec string, material []byte, m message) ([]byte, error) {
	key, _, err := parseSECG(spec, material)
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
