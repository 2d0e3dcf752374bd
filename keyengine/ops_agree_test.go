package keyengine

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// A MAC has the size of its hash, is the same each time, and is verified only in whole and with its
// own key.
func TestMacs(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	for _, tt := range []struct {
		spec, algorithm string
		size            int
	}{
		{"HMAC_224", "HMAC_SHA_224", 28}, {"HMAC_256", "HMAC_SHA_256", 32}, {"HMAC_384", "HMAC_SHA_384", 48}, {"HMAC_512", "HMAC_SHA_512", 64},
	} {
		t.Run(tt.spec, func(t *testing.T) {
			c.t = t
			id, arn := c.newKeyOf(tt.spec, kmsapi.UsageMac)
			other, _ := c.newKeyOf(tt.spec, kmsapi.UsageMac)
			in := &kmsapi.GenerateMacInput{KeyId: &id, Message: []byte("message"), MacAlgorithm: &tt.algorithm}
			out := must[kmsapi.GenerateMacOutput](c, "GenerateMac", in)
			if *out.KeyId != arn || *out.MacAlgorithm != tt.algorithm || len(out.Mac) != tt.size {
				t.Errorf("GenerateMac returned key %s, algorithm %s, and a MAC of %d bytes", *out.KeyId, *out.MacAlgorithm, len(out.Mac))
			}
			if again := must[kmsapi.GenerateMacOutput](c, "GenerateMac", in); !bytes.Equal(again.Mac, out.Mac) {
				t.Error("GenerateMac returned two MACs for the same message")
			}
			verify := func(id string, message, mac []byte) error {
				v, err := call[kmsapi.VerifyMacOutput](c, "VerifyMac", &kmsapi.VerifyMacInput{KeyId: &id, Message: message, Mac: mac, MacAlgorithm: &tt.algorithm})
				if err == nil && (!*v.MacValid || *v.KeyId != arn || *v.MacAlgorithm != tt.algorithm) {
					t.Errorf("VerifyMac returned valid %v, key %s, algorithm %s", *v.MacValid, *v.KeyId, *v.MacAlgorithm)
				}
				return err
			}
			if err := verify(id, in.Message, out.Mac); err != nil {
				t.Errorf("VerifyMac of a genuine MAC: %v", err)
			}
			wantError(t, verify(other, in.Message, out.Mac), kmsapi.ErrInvalidMac, "")
			wantError(t, verify(id, []byte("messagf"), out.Mac), kmsapi.ErrInvalidMac, "")
			for n := 1; n < tt.size; n++ {
				wantError(t, verify(id, in.Message, out.Mac[:n]), kmsapi.ErrInvalidMac, "")
			}
			wantError(t, verify(id, in.Message, append(bytes.Clone(out.Mac), 0)), kmsapi.ErrInvalidMac, "")
			for i := range out.Mac {
				b := bytes.Clone(out.Mac)
				b[i] ^= 1 << (i % 8)
				wantError(t, verify(id, in.Message, b), kmsapi.ErrInvalidMac, "")
			}
			for _, algorithm := range kmsapi.EnumOf("MacAlgorithmSpec").Values() {
				if algorithm == tt.algorithm {
					continue
				}
				want := "Algorithm " + algorithm + " is incompatible with key spec " + tt.spec + "."
				_, err := call[request.None](c, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &id, Message: []byte("m"), MacAlgorithm: &algorithm})
				wantError(t, err, kmsapi.ErrInvalidKeyUsage, want)
				_, err = call[request.None](c, "VerifyMac", &kmsapi.VerifyMacInput{KeyId: &id, Message: []byte("m"), Mac: out.Mac, MacAlgorithm: &algorithm})
				wantError(t, err, kmsapi.ErrInvalidKeyUsage, want)
			}
			for _, size := range []int{0, 4097} {
				_, err := call[request.None](c, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &id, Message: make([]byte, size), MacAlgorithm: &tt.algorithm})
				wantError(t, err, kmsapi.ErrValidation, "…")
			}
		})
	}
}

var agreeing = []struct {
	spec  string
	curve ecdh.Curve
	size  int
}{
	{"ECC_NIST_P256", ecdh.P256(), 32}, {"ECC_NIST_P384", ecdh.P384(), 48}, {"ECC_NIST_P521", ecdh.P521(), 66},
}

func (c *testCluster) deriveSharedSecret(id string, peer []byte) (*kmsapi.DeriveSharedSecretOutput, error) {
	c.t.Helper()
	return call[kmsapi.DeriveSharedSecretOutput](c, "DeriveSharedSecret", &kmsapi.DeriveSharedSecretInput{KeyId: &id, KeyAgreementAlgorithm: new("ECDH"), PublicKey: peer})
}

// Both sides derive the same secret, where the other side is the standard library or another key.
func TestSharedSecrets(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	for _, tt := range agreeing {
		t.Run(tt.spec, func(t *testing.T) {
			c.t = t
			id, arn := c.newKeyOf(tt.spec, kmsapi.UsageAgree)
			second, _ := c.newKeyOf(tt.spec, kmsapi.UsageAgree)
			own := parsePeerKey(t, c.publicKey(id))
			private, err := tt.curve.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			want, err := private.ECDH(own)
			if err != nil {
				t.Fatal(err)
			}
			out, err := c.deriveSharedSecret(id, encodePeerKey(t, private.PublicKey()))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out.SharedSecret, want) || len(out.SharedSecret) != tt.size {
				t.Errorf("got a secret of %d bytes that is not that of the other side", len(out.SharedSecret))
			}
			if *out.KeyId != arn || *out.KeyAgreementAlgorithm != "ECDH" || *out.KeyOrigin != kmsapi.OriginKMS || out.CiphertextForRecipient != nil {
				t.Errorf("DeriveSharedSecret returned key %s, algorithm %s, origin %s", *out.KeyId, *out.KeyAgreementAlgorithm, *out.KeyOrigin)
			}
			a, err := c.deriveSharedSecret(id, c.publicKey(second))
			if err != nil {
				t.Fatal(err)
			}
			b, err := c.deriveSharedSecret(second, c.publicKey(id))
			if err != nil || !bytes.Equal(a.SharedSecret, b.SharedSecret) || bytes.Equal(a.SharedSecret, want) {
				t.Errorf("two keys derive different secrets (%v)", err)
			}
		})
	}
}

// Leading zeros of a secret are kept.
func TestSharedSecretZeros(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKeyOf("ECC_NIST_P256", kmsapi.UsageAgree)
	own := parsePeerKey(t, c.publicKey(id))
	for range 1 << 14 {
		private, err := ecdh.P256().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		want, err := private.ECDH(own)
		if err != nil {
			t.Fatal(err)
		}
		if want[0] != 0 {
			continue
		}
		out, err := c.deriveSharedSecret(id, encodePeerKey(t, private.PublicKey()))
		if err != nil || !bytes.Equal(out.SharedSecret, want) {
			t.Errorf("got secret %x, want %x (%v)", out.SharedSecret, want, err)
		}
		return
	}
	t.Fatal("none of 16384 secrets begins with a zero byte")
}

// Every public key that is not a point of the key's curve is refused with the same error,
// also in a dry run.
func TestBadPeers(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKeyOf("ECC_NIST_P256", kmsapi.UsageAgree)
	other, _ := c.newKeyOf("ECC_NIST_P384", kmsapi.UsageAgree)
	good := c.publicKey(id)
	point := func(edit func(point []byte) []byte) []byte {
		var info struct {
			Algorithm pkix.AlgorithmIdentifier
			Point     asn1.BitString
		}
		if _, err := asn1.Unmarshal(good, &info); err != nil {
			t.Fatal(err)
		}
		b := edit(bytes.Clone(info.Point.Bytes))
		info.Point = asn1.BitString{Bytes: b, BitLength: 8 * len(b)}
		der, err := asn1.Marshal(info)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	if !bytes.Equal(point(func(b []byte) []byte { return b }), good) {
		t.Fatal("encoding an unchanged point made another public key")
	}
	public := func(spec string) []byte {
		material, err := primitive.Generate(spec)
		if err != nil {
			t.Fatal(err)
		}
		spki, err := primitive.Public(spec, material)
		if err != nil {
			t.Fatal(err)
		}
		return spki
	}
	private, err := primitive.Generate("ECC_NIST_P256")
	if err != nil {
		t.Fatal(err)
	}
	for name, peer := range map[string][]byte{
		"another curve":     c.publicKey(other),
		"secp256k1":         public("ECC_SECG_P256K1"),
		"RSA":               public("RSA_2048"),
		"Ed25519":           public("ECC_NIST_EDWARDS25519"),
		"ML-DSA":            public("ML_DSA_44"),
		"off the curve":     point(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }),
		"the origin":        point(func(b []byte) []byte { clear(b[1:]); return b }),
		"beyond the field":  point(func(b []byte) []byte { copy(b[1:], bytes.Repeat([]byte{0xff}, 32)); return b }),
		"infinity":          point(func([]byte) []byte { return []byte{0} }),
		"no point":          point(func([]byte) []byte { return nil }),
		"compressed":        point(func(b []byte) []byte { return append([]byte{2 | b[64]&1}, b[1:33]...) }),
		"hybrid":            point(func(b []byte) []byte { b[0] = 6 | b[64]&1; return b }),
		"a bare point":      point(func(b []byte) []byte { return b })[len(good)-65:],
		"a private key":     private,
		"garbage":           []byte("x"),
		"cut":               good[:len(good)-1],
		"something after":   append(bytes.Clone(good), 0),
		"PEM":               []byte("-----BEGIN PUBLIC KEY-----"),
		"as long as may be": bytes.Repeat([]byte{0x30}, 8192),
	} {
		for _, dry := range []bool{false, true} {
			_, err := call[request.None](c, "DeriveSharedSecret", &kmsapi.DeriveSharedSecretInput{
				KeyId: &id, KeyAgreementAlgorithm: new("ECDH"), PublicKey: peer, DryRun: &dry,
			})
			if e, ok := errors.AsType[*kmsapi.Error](err); !ok || *e != *badPeer("ECC_NIST_P256") {
				t.Errorf("%s: got error %v, want %v", name, err, badPeer("ECC_NIST_P256"))
			}
			if rec := c.lastRecord(); rec.ErrorCode != "ValidationException" || !strings.HasSuffix(rec.Resources[0].Arn, id) {
				t.Errorf("%s: got record of %s with error %q", name, rec.EventName, rec.ErrorCode)
			}
		}
	}
	for _, size := range []int{0, 8193} {
		_, err := c.deriveSharedSecret(id, make([]byte, size))
		wantError(t, err, kmsapi.ErrValidation, "…")
	}
	_, err = call[request.None](c, "DeriveSharedSecret", &kmsapi.DeriveSharedSecretInput{KeyId: &id, KeyAgreementAlgorithm: new("SM2"), PublicKey: good})
	wantError(t, err, kmsapi.ErrValidation, "…")
}

func parsePeerKey(t testing.TB, spki []byte) *ecdh.PublicKey {
	t.Helper()
	parsed, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		t.Fatal(err)
	}
	key, err := parsed.(interface {
		ECDH() (*ecdh.PublicKey, error)
	}).ECDH()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func encodePeerKey(t testing.TB, key *ecdh.PublicKey) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return spki
}
