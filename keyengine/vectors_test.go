package keyengine

import (
	"bytes"
	"crypto/ecdh"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/primitive"
	"github.com/conclavekms/conclave/keyengine/internal/vectors"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// The vectors of Wycheproof, with requests to the engine. The tests of internal/primitive use
// them for the algorithms alone.

// A tally counts the vectors that were used, since a test that uses none must fail.
type tally struct{ valid, invalid, left int }

// judge compares the outcome of a request with the vector. An invalid vector must be refused
// with the error refusal. One that is acceptable may be refused or not.
func (n *tally) judge(t *testing.T, v vectors.Vector, err error, refusal *kmsapi.Error) {
	t.Helper()
	refused := false
	if e, ok := errors.AsType[*kmsapi.Error](err); ok {
		refused = *e == *refusal
	}
	if err != nil && !refused {
		t.Errorf("vector %d (%s, %v): got error %v, want none or %v", v.TcID, v.Comment, v.Flags, err, refusal)
	}
	switch v.Result {
	case "valid":
		n.valid++
	case "invalid":
		n.invalid++
	default:
		return
	}
	if (v.Result == "valid") != (err == nil) {
		t.Errorf("vector %d (%s, %v) is %s: got error %v", v.TcID, v.Comment, v.Flags, v.Result, err)
	}
}

func (n *tally) report(t *testing.T) {
	t.Helper()
	t.Logf("%d valid, %d invalid, %d left out", n.valid, n.invalid, n.left)
	if n.valid == 0 || n.invalid == 0 {
		t.Error("there are no valid or no invalid vectors")
	}
}

func fitsAWS(message []byte) bool { return len(message) > 0 && len(message) <= 4096 }

// copyKeyWithPublicKey adds a copy of a key with another public key to the state. It is of
// use only for Verify, as its private key is not changed.
func (c *testCluster) copyKeyWithPublicKey(id string, public []byte) string {
	c.t.Helper()
	return c.copyKey(id, func(k *fsmpb.Key) { k.Materials[0].PublicKey = public })
}

func TestVectorsSignatures(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	for _, tt := range []struct{ file, spec, algorithm string }{
		{"ecdsa_secp256r1_sha256", "ECC_NIST_P256", "ECDSA_SHA_256"},
		{"ecdsa_secp384r1_sha384", "ECC_NIST_P384", "ECDSA_SHA_384"},
		{"ecdsa_secp521r1_sha512", "ECC_NIST_P521", "ECDSA_SHA_512"},
		{"ecdsa_secp256k1_sha256", "ECC_SECG_P256K1", "ECDSA_SHA_256"},
		{"ed25519", "ECC_NIST_EDWARDS25519", "ED25519_SHA_512"},
		{"rsa_signature_2048_sha256", "RSA_2048", "RSASSA_PKCS1_V1_5_SHA_256"},
		{"rsa_signature_2048_sha384", "RSA_2048", "RSASSA_PKCS1_V1_5_SHA_384"},
		{"rsa_signature_2048_sha512", "RSA_2048", "RSASSA_PKCS1_V1_5_SHA_512"},
		{"rsa_signature_3072_sha256", "RSA_3072", "RSASSA_PKCS1_V1_5_SHA_256"},
		{"rsa_signature_3072_sha384", "RSA_3072", "RSASSA_PKCS1_V1_5_SHA_384"},
		{"rsa_signature_3072_sha512", "RSA_3072", "RSASSA_PKCS1_V1_5_SHA_512"},
		{"rsa_signature_4096_sha256", "RSA_4096", "RSASSA_PKCS1_V1_5_SHA_256"},
		{"rsa_signature_4096_sha384", "RSA_4096", "RSASSA_PKCS1_V1_5_SHA_384"},
		{"rsa_signature_4096_sha512", "RSA_4096", "RSASSA_PKCS1_V1_5_SHA_512"},
		{"rsa_pss_2048_sha256_mgf1_32", "RSA_2048", "RSASSA_PSS_SHA_256"},
		{"rsa_pss_2048_sha384_mgf1_48", "RSA_2048", "RSASSA_PSS_SHA_384"},
		{"rsa_pss_3072_sha256_mgf1_32", "RSA_3072", "RSASSA_PSS_SHA_256"},
		{"rsa_pss_4096_sha256_mgf1_32", "RSA_4096", "RSASSA_PSS_SHA_256"},
		{"rsa_pss_4096_sha384_mgf1_48", "RSA_4096", "RSASSA_PSS_SHA_384"},
		{"rsa_pss_4096_sha512_mgf1_64", "RSA_4096", "RSASSA_PSS_SHA_512"},
		{"mldsa_44_verify", "ML_DSA_44", "ML_DSA_SHAKE_256"},
		{"mldsa_65_verify", "ML_DSA_65", "ML_DSA_SHAKE_256"},
		{"mldsa_87_verify", "ML_DSA_87", "ML_DSA_SHAKE_256"},
	} {
		t.Run(tt.file, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t)
			c.allowManyRefusals()
			verifier := c.newVerifyKey(tt.spec)
			var n tally
			for _, g := range vectors.Wycheproof(t, tt.file) {
				if len(g.PublicKeyDer) == 0 {
					n.left += len(g.Tests) // a public key that is none
					continue
				}
				id := c.copyKeyWithPublicKey(verifier, g.PublicKeyDer)
				for _, v := range g.Tests {
					kind := "RAW"
					if !fitsAWS(v.Msg) {
						kind = messageTypesOf(tt.algorithm)[len(messageTypesOf(tt.algorithm))-1]
					}
					// KMS has no contexts, and no empty signatures or invalid public keys.
					m := messageAs(kind, tt.algorithm, g.PublicKeyDer, v.Msg)
					if len(v.Ctx) > 0 || len(v.Sig) == 0 || !fitsAWS(m) || slices.Contains(v.Flags, "IncorrectPublicKeyLength") {
						n.left++
						continue
					}
					n.judge(t, v, c.verify(id, tt.algorithm, kind, m, v.Sig), kmsapi.ErrInvalidSignatureValue)
					if tt.algorithm == "ML_DSA_SHAKE_256" && kind == "RAW" { // another implementation
						mu := messageAs("EXTERNAL_MU", tt.algorithm, g.PublicKeyDer, v.Msg)
						n.judge(t, v, c.verify(id, tt.algorithm, "EXTERNAL_MU", mu, v.Sig), kmsapi.ErrInvalidSignatureValue)
					}
				}
			}
			n.report(t)
		})
	}
}

// newVerifyKey creates a key of a spec for copyKeyWithPublicKey.
func (c *testCluster) newVerifyKey(spec string) string {
	c.t.Helper()
	if strings.HasPrefix(spec, "RSA") {
		id, _ := c.newKeyWithMaterial(spec, kmsapi.UsageSign, rsaKey(c.t, spec))
		return id
	}
	id, _ := c.newKeyOf(spec, kmsapi.UsageSign)
	return id
}

// rsaKey returns an RSA key of the vectors, which is faster than generating one.
func rsaKey(t testing.TB, spec string) []byte {
	t.Helper()
	return vectors.Wycheproof(t, "rsa_oaep_"+strings.TrimPrefix(spec, "RSA_")+"_sha256_mgf1sha256")[0].PrivateKeyPkcs8
}

// TestVectorsMLDSASeeds verifies the signatures over mu of the vectors, and ours with the
// same keys.
func TestVectorsMLDSASeeds(t *testing.T) {
	t.Parallel()
	const algorithm = "ML_DSA_SHAKE_256"
	for _, size := range []string{"44", "65", "87"} {
		t.Run(size, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t)
			spec, used := "ML_DSA_"+size, 0
			for _, g := range vectors.Wycheproof(t, "mldsa_"+size+"_sign_seed") {
				if len(g.PrivateSeed) != 32 || bytes.Equal(g.PrivateSeed, make([]byte, 32)) {
					continue // the vault takes no key that is all zero
				}
				like, _ := c.newKeyOf(spec, kmsapi.UsageSign)
				id := c.copyKeyWithMaterial(like, g.PrivateSeed)
				for _, v := range g.Tests {
					if len(v.Ctx) > 0 || v.Result != "valid" || !fitsAWS(v.Msg) {
						continue
					}
					used++
					if err := c.verify(id, algorithm, "RAW", v.Msg, v.Sig); err != nil {
						t.Errorf("vector %d: Verify: %v", v.TcID, err)
					}
					if err := c.verify(id, algorithm, "EXTERNAL_MU", v.Mu, v.Sig); err != nil {
						t.Errorf("vector %d: Verify with EXTERNAL_MU: %v", v.TcID, err)
					}
					if err := c.verify(id, algorithm, "RAW", v.Msg, c.sign(id, algorithm, "EXTERNAL_MU", v.Mu)); err != nil {
						t.Errorf("vector %d: Verify of our signature over mu: %v", v.TcID, err)
					}
				}
			}
			t.Logf("%d valid", used)
			if used == 0 {
				t.Error("no vector was used")
			}
		})
	}
}

// keyFromVector makes a key with the material of a vector. The first is imported, the others
// are put into the state, since wrapping is slow.
func (c *testCluster) keyFromVector(first bool, spec, usage string, material []byte) string {
	c.t.Helper()
	if !first {
		id, _ := c.newKeyWithMaterial(spec, usage, material)
		return id
	}
	id, _ := c.newKeyForImport(spec, usage)
	algorithm := "RSA_AES_KEY_WRAP_SHA_256"
	if usage == kmsapi.UsageMac {
		algorithm = "RSAES_OAEP_SHA_256"
	}
	c.importMaterial(c.importRequest(id, "RSA_2048", algorithm, material))
	return id
}

func TestVectorsHMAC(t *testing.T) {
	t.Parallel()
	for _, size := range []string{"224", "256", "384", "512"} {
		t.Run(size, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t)
			c.allowManyRefusals()
			spec, algorithm := "HMAC_"+size, "HMAC_SHA_"+size
			var n tally
			for _, g := range vectors.Wycheproof(t, "hmac_sha"+size) {
				for _, v := range g.Tests {
					// Keys of KMS have the size of the digest.
					if primitive.Check(spec, v.Key) != nil || !fitsAWS(v.Msg) {
						n.left++
						continue
					}
					id := c.keyFromVector(n == tally{left: n.left}, spec, kmsapi.UsageMac, v.Key)
					if g.TagSize != 8*len(v.Key) {
						v.Result = "invalid" // to KMS, as its MACs are not shortened
					}
					_, err := call[kmsapi.VerifyMacOutput](c, "VerifyMac", &kmsapi.VerifyMacInput{KeyId: &id, Message: v.Msg, Mac: v.Tag, MacAlgorithm: &algorithm})
					n.judge(t, v, err, kmsapi.ErrInvalidMac)
					mac := must[kmsapi.GenerateMacOutput](c, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &id, Message: v.Msg, MacAlgorithm: &algorithm}).Mac
					if (v.Result == "valid") != bytes.Equal(mac, v.Tag) {
						t.Errorf("vector %d: got MAC %x, the %s one is %x", v.TcID, mac, v.Result, v.Tag)
					}
				}
			}
			n.report(t)
		})
	}
}

func TestVectorsOAEP(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ file, spec, algorithm string }{
		{"rsa_oaep_2048_sha1_mgf1sha1", "RSA_2048", oaepSHA1},
		{"rsa_oaep_2048_sha256_mgf1sha256", "RSA_2048", oaepSHA256},
		{"rsa_oaep_3072_sha256_mgf1sha256", "RSA_3072", oaepSHA256},
		{"rsa_oaep_4096_sha256_mgf1sha256", "RSA_4096", oaepSHA256},
	} {
		t.Run(tt.file, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t)
			c.allowManyRefusals()
			var n tally
			for i, g := range vectors.Wycheproof(t, tt.file) {
				id := c.keyFromVector(i == 0, tt.spec, kmsapi.UsageEncrypt, g.PrivateKeyPkcs8)
				for _, v := range g.Tests {
					if len(v.Label) > 0 || len(v.Ct) == 0 {
						n.left++ // KMS's label is empty, and a ciphertext never is
						continue
					}
					got, err := c.decryptRSA(id, tt.algorithm, v.Ct)
					n.judge(t, v, err, kmsapi.ErrInvalidCiphertext)
					if err == nil && !bytes.Equal(got, v.Msg) {
						t.Errorf("vector %d: Decrypt returned %x, want %x", v.TcID, got, v.Msg)
					}
				}
			}
			n.report(t)
		})
	}
}

func TestVectorsECDH(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	for i, file := range []string{"ecdh_secp256r1", "ecdh_secp384r1", "ecdh_secp521r1"} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t)
			c.allowManyRefusals()
			var n tally
			keys := make(map[string]string) // by private key
			for _, g := range vectors.Wycheproof(t, file) {
				for _, v := range g.Tests {
					if len(v.Public) == 0 {
						n.left++
						continue
					}
					id, ok := keys[v.Private]
					if !ok {
						id = c.keyFromVector(len(keys) == 0, agreeing[i].spec, kmsapi.UsageAgree, scalarKey(t, agreeing[i].curve, agreeing[i].size, v.Private))
						keys[v.Private] = id
					}
					out, err := c.deriveSharedSecret(id, v.Public)
					n.judge(t, v, err, badPeer(agreeing[i].spec))
					if err != nil {
						continue
					}
					if !bytes.Equal(out.SharedSecret, v.Shared) || *out.KeyOrigin != kmsapi.OriginImported {
						t.Errorf("vector %d: got secret %x with a key of origin %s, want %x", v.TcID, out.SharedSecret, *out.KeyOrigin, v.Shared)
					}
					if slices.Contains(v.Flags, "UnnamedCurve") {
						t.Errorf("vector %d: a public key with explicit curve parameters was accepted", v.TcID)
					}
				}
			}
			n.report(t)
		})
	}
}

// scalarKey returns a private key in PKCS #8 from its number.
func scalarKey(t testing.TB, curve ecdh.Curve, size int, scalar string) []byte {
	t.Helper()
	d, ok := new(big.Int).SetString(scalar, 16)
	if !ok {
		t.Fatalf("invalid scalar %q", scalar)
	}
	key, err := curve.NewPrivateKey(d.FillBytes(make([]byte, size)))
	if err != nil {
		t.Fatal(err)
	}
	material, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return material
}

// badPeer returns the error for a public key that is not on the curve of a spec.
func badPeer(spec string) *kmsapi.Error {
	return kmsapi.Errorf(kmsapi.ErrValidation, "PublicKey is not a public key in DER on the curve of %s.", spec)
}
