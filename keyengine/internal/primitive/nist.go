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

// parseNIST also returns the public keys in the structure.
func parseNIST(spec string, material []byte) (key *ecdsa.PrivateKey, publics [][]byte, err error) {
	scalar, publics, err := parseEC(spec, material)
	if err != nil {
		return nil, nil, err
	}
	defer clear(scalar)
	if key, err = ecdsa.ParseRawPrivateKey(nistCurves[spec], scalar); err != nil {
		return nil, nil, ErrMaterial // not in the range of the curve's order
	}
	return key, publics, nil
}

func checkNIST(spec string, material []byte) error {
	key, publics, err := parseNIST(spec, material)
	if err != nil {
		return err
	}
	for _, public := range publics {
		if given, err := parsePoint(nistCurves[spec], public); err != nil || !key.PublicKey.Equal(given) {
			return ErrMaterial
		}
	}
	return nil
}

// parsePoint parses a point in either of its forms.
func parsePoint(c elliptic.Curve, point []byte) (*ecdsa.PublicKey, error) {
	if len(point) > 0 && point[0] == 4 {
		return ecdsa.ParseUncompressedPublicKey(c, point)
	}
	x, y := elliptic.UnmarshalCompressed(c, point)
	if x == nil {
		return nil, ErrMaterial
	}
	size := (c.Params().BitSize + 7) / 8
	whole := make([]byte, 1+2*size)
	whole[0] = 4
	x.FillBytes(whole[1 : 1+size])
	y.FillBytes(whole[1+size:])
	return ecdsa.ParseUncompressedPublicKey(c, whole)
}

func publicNIST(spec string, material []byte) ([]byte, error) {
	key, _, err := parseNIST(spec, material)
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
	key, _, err := parseNIST(spec, material)
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

// CheckPeer checks that a peer's public key is usable for key agreement with a key of the
// spec: a point of the same curve in uncompressed form. It returns ErrPublicKey if not.
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

// SharedSecret returns the raw ECDH secret: the x coordinate, as long as the field (SEC 1,
// section 3.3.1). It returns ErrPublicKey for a peer that CheckPeer refuses.
func SharedSecret(spec string, material, peerSPKI []byte) ([]byte, error) {
	peer, err := parsePeer(spec, peerSPKI)
	if err != nil {
		return nil, err
	}
	key, _, err := parseNIST(spec, material)
	if err != nil {
		return nil, err
	}
	own, err := key.ECDH()
	if err != nil {
		return nil, ErrMaterial
	}
	return own.ECDH(peer)
}
