package primitive

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"slices"
)

var nistFamily = family{generate: newNIST, check: checkNIST, public: publicNIST, sign: signNIST, verify: verifyNIST}

var nistCurves = map[string]elliptic.Curve{
	"ECC_NIST_P256": elliptic.P256(),
	"ECC_NIST_P384": elliptic.P384(),
	"ECC_NIST_P521": elliptic.P521(),
}

func newNIST(spec string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(nistCurves[spec], rand.Reader)
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKCS8PrivateKey(key)
}

func parseNIST(spec string, material []byte) (*ecdsa.PrivateKey, error) {
	parsed, err := parsePKCS8(material)
	if err != nil {
		return nil, ErrMaterial
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != nistCurves[spec] {
		return nil, ErrMaterial
	}
	return key, nil
}

// checkNIST relies on the standard library for the range of the scalar. The public
// key in the structure, if there is one, is never used: it is computed.
func checkNIST(spec string, material []byte) error {
	_, err := parseNIST(spec, material)
	return err
}

func publicNIST(spec string, material []byte) ([]byte, error) {
	key, err := parseNIST(spec, material)
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(&key.PublicKey)
}

func parsePublicNIST(spec string, spki []byte) (*ecdsa.PublicKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, ErrPublicKey
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok || key.Curve != nistCurves[spec] {
		return nil, ErrPublicKey
	}
	return key, nil
}

func signNIST(spec string, material []byte, m message) ([]byte, error) {
	key, err := parseNIST(spec, material)
	if err != nil {
		return nil, err
	}
	return ecdsa.SignASN1(rand.Reader, key, m.digest())
}

func verifyNIST(spec string, spki []byte, m message, signature []byte) error {
	key, err := parsePublicNIST(spec, spki)
	if err != nil {
		return err
	}
	if !ecdsa.VerifyASN1(key, m.digest(), signature) {
		return ErrSignature
	}
	return nil
}

// CheckPeer says whether a peer's public key is one that a key of the spec can agree
// on a secret with: a point of the same curve in the uncompressed form. It returns
// ErrPublicKey if not.
func CheckPeer(spec string, spki []byte) error {
	_, err := parsePeer(spec, spki)
	return err
}

func parsePeer(spec string, spki []byte) (*ecdh.PublicKey, error) {
	if !slices.Contains(specs[spec].agreement, ecdhAlgorithm) {
		return nil, errSpec
	}
	key, err := parsePublicNIST(spec, spki)
	if err != nil {
		return nil, err
	}
	peer, err := key.ECDH()
	if err != nil {
		return nil, ErrPublicKey
	}
	return peer, nil
}

// SharedSecret is the raw secret of ECDH: the x coordinate, as long as the field
// (SEC 1, section 3.3.1). It returns ErrPublicKey for a peer that CheckPeer refuses.
func SharedSecret(spec string, material, peerSPKI []byte) ([]byte, error) {
	peer, err := parsePeer(spec, peerSPKI)
	if err != nil {
		return nil, err
	}
	key, err := parseNIST(spec, material)
	if err != nil {
		return nil, err
	}
	own, err := key.ECDH()
	if err != nil {
		return nil, ErrMaterial
	}
	return own.ECDH(peer)
}
