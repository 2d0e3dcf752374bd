package primitive

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"slices"
	"testing"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

// TestECForms: keys on all curves are taken in the same forms, whatever tool wrote
// them, and refused for the same faults.
func TestECForms(t *testing.T) {
	t.Parallel()
	for spec, c := range curves {
		order := secp256k1.Params().N
		if nist, ok := nistCurves[spec]; ok {
			order = nist.Params().N
		}
		// A scalar with zeros in front, which some tools drop.
		scalar := make([]byte, c.size)
		for i := 2; i < c.size; i++ {
			scalar[i] = byte(i)
		}
		foreign := curves["ECC_NIST_P256"].oid
		if spec == "ECC_NIST_P256" {
			foreign = oidSECP256K1
		}
		der := func(change func(outer *pkcs8, inner *ecPrivateKey)) []byte {
			outer := pkcs8{Algorithm: ecAlgorithm{oidECPublicKey, c.oid}}
			inner := ecPrivateKey{Version: 1, PrivateKey: scalar}
			change(&outer, &inner)
			var err error
			if outer.PrivateKey, err = asn1.Marshal(inner); err != nil {
				t.Fatal(err)
			}
			b, err := asn1.Marshal(outer)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		plain := der(func(*pkcs8, *ecPrivateKey) {})
		spki, err := Public(spec, plain)
		if err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
		point := spki[len(spki)-2*c.size-1:]
		compressed := append([]byte{2 + point[len(point)-1]&1}, point[1:c.size+1]...)
		other := bytes.Clone(point)
		if _, theirs := pair(t, spec); len(theirs) == len(spki) {
			other = theirs[len(theirs)-2*c.size-1:]
		}
		good := map[string]func(*pkcs8, *ecPrivateKey){
			"plain":                   func(*pkcs8, *ecPrivateKey) {},
			"the curve twice":         func(_ *pkcs8, i *ecPrivateKey) { i.Curve = c.oid },
			"with its public key":     func(_ *pkcs8, i *ecPrivateKey) { i.PublicKey = bits(point) },
			"a compressed public key": func(_ *pkcs8, i *ecPrivateKey) { i.PublicKey = bits(compressed) },
			"RFC 5958":                func(o *pkcs8, _ *ecPrivateKey) { o.Version, o.PublicKey = 1, bits(point) },
			"attributes": func(o *pkcs8, _ *ecPrivateKey) {
				o.Attributes = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{0x30, 0}}
			},
			"a short scalar": func(_ *pkcs8, i *ecPrivateKey) { i.PrivateKey = scalar[2:] },
			"a long scalar":  func(_ *pkcs8, i *ecPrivateKey) { i.PrivateKey = slices.Concat(make([]byte, 3), scalar) },
		}
		for name, change := range good {
			b := der(change)
			if err := Check(spec, b); err != nil {
				t.Errorf("%s, %s: %v", spec, name, err)
			}
			if got, err := Public(spec, b); err != nil || !bytes.Equal(got, spki) {
				t.Errorf("%s, %s: another key (%v)", spec, name, err)
			}
			if _, err := Sign(spec, b, SigningAlgorithms(spec)[0], Raw, []byte("m")); err != nil {
				t.Errorf("%s, %s: %v", spec, name, err)
			}
		}
		bad := map[string]func(*pkcs8, *ecPrivateKey){
			"zero":                         func(_ *pkcs8, i *ecPrivateKey) { i.PrivateKey = make([]byte, c.size) },
			"the order":                    func(_ *pkcs8, i *ecPrivateKey) { i.PrivateKey = order.FillBytes(make([]byte, c.size)) },
			"too long":                     func(_ *pkcs8, i *ecPrivateKey) { i.PrivateKey = slices.Concat([]byte{1}, scalar) },
			"empty":                        func(_ *pkcs8, i *ecPrivateKey) { i.PrivateKey = nil },
			"another curve":                func(o *pkcs8, _ *ecPrivateKey) { o.Algorithm.Curve = foreign },
			"another curve inside":         func(_ *pkcs8, i *ecPrivateKey) { i.Curve = foreign },
			"another algorithm":            func(o *pkcs8, _ *ecPrivateKey) { o.Algorithm.Algorithm = c.oid },
			"another public key":           func(_ *pkcs8, i *ecPrivateKey) { i.PublicKey = bits(other) },
			"another public key outside":   func(o *pkcs8, _ *ecPrivateKey) { o.Version, o.PublicKey = 1, bits(other) },
			"no point":                     func(_ *pkcs8, i *ecPrivateKey) { i.PublicKey = bits(scalar) },
			"a version that there is not":  func(o *pkcs8, _ *ecPrivateKey) { o.Version = 2 },
			"another version of the inner": func(_ *pkcs8, i *ecPrivateKey) { i.Version = 0 },
		}
		for name, change := range bad {
			if err := Check(spec, der(change)); !errors.Is(err, ErrMaterial) {
				t.Errorf("%s, %s: %v", spec, name, err)
			}
		}
		if other := bytes.Equal(other, point); other {
			t.Errorf("%s: the other key is the same", spec)
		}
	}
}
