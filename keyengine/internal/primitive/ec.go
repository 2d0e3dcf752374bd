package primitive

import (
	"bytes"
	"crypto/subtle"
	"encoding/asn1"
)

// The PKCS #8 structure in which keys on all curves in Weierstrass form are imported and
// stored.

var oidECPublicKey = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}

// curve describes the curve of a spec.
type curve struct {
	oid  asn1.ObjectIdentifier
	size int // of a scalar and of a coordinate in bytes
}

var curves = map[string]curve{
	"ECC_NIST_P256":   {asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, 32},
	"ECC_NIST_P384":   {asn1.ObjectIdentifier{1, 3, 132, 0, 34}, 48},
	"ECC_NIST_P521":   {asn1.ObjectIdentifier{1, 3, 132, 0, 35}, 66},
	"ECC_SECG_P256K1": {oidSECP256K1, 32},
}

type ecAlgorithm struct {
	Algorithm asn1.ObjectIdentifier
	Curve     asn1.ObjectIdentifier
}

// pkcs8 is the OneAsymmetricKey of RFC 5958.
type pkcs8 struct {
	Version    int
	Algorithm  ecAlgorithm
	PrivateKey []byte
	Attributes asn1.RawValue  `asn1:"optional,tag:0"`
	PublicKey  asn1.BitString `asn1:"optional,tag:1"`
}

// ecPrivateKey is the ECPrivateKey of RFC 5915, section 3.
type ecPrivateKey struct {
	Version    int
	PrivateKey []byte
	Curve      asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
	PublicKey  asn1.BitString        `asn1:"optional,explicit,tag:1"`
}

func bits(b []byte) asn1.BitString { return asn1.BitString{Bytes: b, BitLength: 8 * len(b)} }

// unmarshal refuses trailing bytes.
func unmarshal(der []byte, into any) bool {
	rest, err := asn1.Unmarshal(der, into)
	return err == nil && len(rest) == 0
}

// parseEC parses a private key on the spec's curve. It accepts the forms that tools write:
// the version of RFC 5208 or of RFC 5958, the curve named once or twice, and a scalar with
// too few or too many leading zeros. It returns the scalar with the curve's length, which
// the caller must wipe, and whose range the curve must check. publics are up to two public
// keys in the structure.
func parseEC(spec string, material []byte) (scalar []byte, publics [][]byte, err error) {
	c := curves[spec]
	var outer pkcs8
	if !unmarshal(material, &outer) || outer.Version != 0 && outer.Version != 1 ||
		!outer.Algorithm.Algorithm.Equal(oidECPublicKey) || !outer.Algorithm.Curve.Equal(c.oid) {
		return nil, nil, ErrMaterial
	}
	defer clear(outer.PrivateKey)
	var inner ecPrivateKey
	if !unmarshal(outer.PrivateKey, &inner) || inner.Version != 1 || inner.Curve != nil && !inner.Curve.Equal(c.oid) {
		return nil, nil, ErrMaterial
	}
	defer clear(inner.PrivateKey)
	given := inner.PrivateKey
	if extra := len(given) - c.size; extra > 0 {
		if subtle.ConstantTimeCompare(given[:extra], make([]byte, extra)) != 1 {
			return nil, nil, ErrMaterial
		}
		given = given[extra:]
	}
	if len(given) == 0 {
		return nil, nil, ErrMaterial
	}
	for _, public := range []asn1.BitString{inner.PublicKey, outer.PublicKey} {
		if public.BitLength > 0 {
			publics = append(publics, bytes.Clone(public.RightAlign())) // copied, as the structure is wiped
		}
	}
	scalar = make([]byte, c.size)
	copy(scalar[c.size-len(given):], given)
	return scalar, publics, nil
}
