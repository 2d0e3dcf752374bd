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

// Wycheproof's vectors through the engine: a key of the vector, then the operation
// as a caller asks for it. internal/primitive tests the algorithms alone.

// tally counts what was tested, so that a file that tests nothing is noticed.
type tally struct{ valid, invalid, left int }

// judge compares the outcome of a request with what the vector asks for; refusal is
// the one that an invalid vector has to end with. Acceptable ones may go either way.
func (n *tally) judge(t *testing.T, v vectors.Vector, err error, refusal *kmsapi.Error) {
	t.Helper()
	refused := false
	if e, ok := errors.AsType[*kmsapi.Error](err); ok {
		refused = *e == *refusal
	}
	if err != nil && !refused {
		t.Errorf("vector %d (%s, %v): %v", v.TcID, v.Comment, v.Flags, err)
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
		t.Errorf("vector %d (%s, %v) is %s, got error %v", v.TcID, v.Comment, v.Flags, v.Result, err)
	}
}

func (n *tally) report(t *testing.T) {
	t.Helper()
	t.Logf("%d valid, %d invalid, %d left out", n.valid, n.invalid, n.left)
	if n.valid == 0 || n.invalid == 0 {
		t.Error("vectors of a kind are missing")
	}
}

func fitsAWS(message []byte) bool { return len(message) > 0 && len(message) <= 4096 }

// withPublic gives a key another public half. Its private half stays, so that it is
// good for Verify only.
func (r *room) withPublic(id string, public []byte) string {
	r.t.Helper()
	return r.another(id, func(k *fsmpb.Key) { k.Materials[0].PublicKey = public })
}

func TestVectorsSignatures(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	for _, c := range []struct{ file, spec, algorithm string }{
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
		t.Run(c.file, func(t *testing.T) {
			r := newRoom(t)
			r.manyRefusals()
			verifier := r.verifier(c.spec)
			var n tally
			for _, g := range vectors.Wycheproof(t, c.file) {
				if len(g.PublicKeyDer) == 0 {
					n.left += len(g.Tests) // a public key that is none
					continue
				}
				id := r.withPublic(verifier, g.PublicKeyDer)
				for _, v := range g.Tests {
					kind := "RAW"
					if !fitsAWS(v.Msg) {
						kind = messageTypesOf(c.algorithm)[len(messageTypesOf(c.algorithm))-1]
					}
					// KMS knows no context, no empty signature and no public keys that are none.
					m := messageAs(kind, c.algorithm, g.PublicKeyDer, v.Msg)
					if len(v.Ctx) > 0 || len(v.Sig) == 0 || !fitsAWS(m) || slices.Contains(v.Flags, "IncorrectPublicKeyLength") {
						n.left++
						continue
					}
					n.judge(t, v, r.verifies(id, c.algorithm, kind, m, v.Sig), kmsapi.ErrInvalidSignatureValue)
					if c.algorithm == "ML_DSA_SHAKE_256" && kind == "RAW" { // another implementation
						mu := messageAs("EXTERNAL_MU", c.algorithm, g.PublicKeyDer, v.Msg)
						n.judge(t, v, r.verifies(id, c.algorithm, "EXTERNAL_MU", mu, v.Sig), kmsapi.ErrInvalidSignatureValue)
					}
				}
			}
			n.report(t)
		})
	}
}

// verifier makes a key of a spec to give public halves to.
func (r *room) verifier(spec string) string {
	r.t.Helper()
	if strings.HasPrefix(spec, "RSA") {
		id, _ := r.holding(spec, kmsapi.UsageSign, rsaKey(r.t, spec))
		return id
	}
	id, _ := r.newKeyOf(spec, kmsapi.UsageSign)
	return id
}

// rsaKey is a key of the vectors, as new ones take long to make.
func rsaKey(t testing.TB, spec string) []byte {
	t.Helper()
	return vectors.Wycheproof(t, "rsa_oaep_"+strings.TrimPrefix(spec, "RSA_")+"_sha256_mgf1sha256")[0].PrivateKeyPkcs8
}

// TestVectorsMLDSASeeds: the vectors' signatures over mu, and ours with their keys.
func TestVectorsMLDSASeeds(t *testing.T) {
	const algorithm = "ML_DSA_SHAKE_256"
	for _, size := range []string{"44", "65", "87"} {
		t.Run(size, func(t *testing.T) {
			r := newRoom(t)
			spec, used := "ML_DSA_"+size, 0
			for _, g := range vectors.Wycheproof(t, "mldsa_"+size+"_sign_seed") {
				if len(g.PrivateSeed) != 32 || bytes.Equal(g.PrivateSeed, make([]byte, 32)) {
					continue // the vault takes no key that is all zero
				}
				like, _ := r.newKeyOf(spec, kmsapi.UsageSign)
				id := r.refilled(like, g.PrivateSeed)
				for _, v := range g.Tests {
					if len(v.Ctx) > 0 || v.Result != "valid" || !fitsAWS(v.Msg) {
						continue
					}
					used++
					if err := r.verifies(id, algorithm, "RAW", v.Msg, v.Sig); err != nil {
						t.Errorf("vector %d: %v", v.TcID, err)
					}
					if err := r.verifies(id, algorithm, "EXTERNAL_MU", v.Mu, v.Sig); err != nil {
						t.Errorf("vector %d over mu: %v", v.TcID, err)
					}
					if err := r.verifies(id, algorithm, "RAW", v.Msg, r.signs(id, algorithm, "EXTERNAL_MU", v.Mu)); err != nil {
						t.Errorf("vector %d, our signature over mu: %v", v.TcID, err)
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

// vectorKey makes a key of a vector's bytes: the first of a file is imported as a
// user does it, the others are put into the state, as the wrapping takes long.
func (r *room) vectorKey(first bool, spec, usage string, material []byte) string {
	r.t.Helper()
	if !first {
		id, _ := r.holding(spec, usage, material)
		return id
	}
	id, _ := r.keyToImport(spec, usage)
	algorithm := "RSA_AES_KEY_WRAP_SHA_256"
	if usage == kmsapi.UsageMac {
		algorithm = "RSAES_OAEP_SHA_256"
	}
	r.imports(r.wrapped(id, "RSA_2048", algorithm, material))
	return id
}

func TestVectorsHMAC(t *testing.T) {
	for _, size := range []string{"224", "256", "384", "512"} {
		t.Run(size, func(t *testing.T) {
			r := newRoom(t)
			r.manyRefusals()
			spec, algorithm := "HMAC_"+size, "HMAC_SHA_"+size
			var n tally
			for _, g := range vectors.Wycheproof(t, "hmac_sha"+size) {
				for _, v := range g.Tests {
					// KMS's keys are as long as the digest.
					if primitive.Check(spec, v.Key) != nil || !fitsAWS(v.Msg) {
						n.left++
						continue
					}
					id := r.vectorKey(n == tally{left: n.left}, spec, kmsapi.UsageMac, v.Key)
					if g.TagSize != 8*len(v.Key) {
						v.Result = "invalid" // to KMS, as its MACs are not shortened
					}
					_, err := call[kmsapi.VerifyMacOutput](r, "VerifyMac", &kmsapi.VerifyMacInput{KeyId: &id, Message: v.Msg, Mac: v.Tag, MacAlgorithm: &algorithm})
					n.judge(t, v, err, kmsapi.ErrInvalidMac)
					mac := must[kmsapi.GenerateMacOutput](r, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &id, Message: v.Msg, MacAlgorithm: &algorithm}).Mac
					if (v.Result == "valid") != bytes.Equal(mac, v.Tag) {
						t.Errorf("vector %d: MAC is %x, the %s one %x", v.TcID, mac, v.Result, v.Tag)
					}
				}
			}
			n.report(t)
		})
	}
}

func TestVectorsOAEP(t *testing.T) {
	for _, c := range []struct{ file, spec, algorithm string }{
		{"rsa_oaep_2048_sha1_mgf1sha1", "RSA_2048", oaepSHA1},
		{"rsa_oaep_2048_sha256_mgf1sha256", "RSA_2048", oaepSHA256},
		{"rsa_oaep_3072_sha256_mgf1sha256", "RSA_3072", oaepSHA256},
		{"rsa_oaep_4096_sha256_mgf1sha256", "RSA_4096", oaepSHA256},
	} {
		t.Run(c.file, func(t *testing.T) {
			r := newRoom(t)
			r.manyRefusals()
			var n tally
			for i, g := range vectors.Wycheproof(t, c.file) {
				id := r.vectorKey(i == 0, c.spec, kmsapi.UsageEncrypt, g.PrivateKeyPkcs8)
				for _, v := range g.Tests {
					if len(v.Label) > 0 || len(v.Ct) == 0 {
						n.left++ // KMS's label is empty, and a ciphertext never is
						continue
					}
					got, err := r.decryptRSA(id, c.algorithm, v.Ct)
					n.judge(t, v, err, kmsapi.ErrInvalidCiphertext)
					if err == nil && !bytes.Equal(got, v.Msg) {
						t.Errorf("vector %d opened to %x", v.TcID, got)
					}
				}
			}
			n.report(t)
		})
	}
}

func TestVectorsECDH(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	for i, file := range []string{"ecdh_secp256r1", "ecdh_secp384r1", "ecdh_secp521r1"} {
		t.Run(file, func(t *testing.T) {
			r := newRoom(t)
			r.manyRefusals()
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
						id = r.vectorKey(len(keys) == 0, agreeing[i].spec, kmsapi.UsageAgree, scalarKey(t, agreeing[i].curve, agreeing[i].size, v.Private))
						keys[v.Private] = id
					}
					out, err := r.derives(id, v.Public)
					n.judge(t, v, err, badPeer(agreeing[i].spec))
					if err != nil {
						continue
					}
					if !bytes.Equal(out.SharedSecret, v.Shared) || *out.KeyOrigin != kmsapi.OriginImported {
						t.Errorf("vector %d: %x by a key of %s", v.TcID, out.SharedSecret, *out.KeyOrigin)
					}
					if slices.Contains(v.Flags, "UnnamedCurve") {
						t.Errorf("vector %d: explicit curve parameters were taken", v.TcID)
					}
				}
			}
			n.report(t)
		})
	}
}

// scalarKey is a private key of a curve from its number.
func scalarKey(t testing.TB, curve ecdh.Curve, size int, scalar string) []byte {
	t.Helper()
	d, ok := new(big.Int).SetString(scalar, 16)
	if !ok {
		t.Fatalf("scalar %q", scalar)
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

// badPeer is the answer to a public key that is not on the curve of a spec.
func badPeer(spec string) *kmsapi.Error {
	return kmsapi.Errorf(kmsapi.ErrValidation, "PublicKey is not a public key in DER on the curve of %s.", spec)
}
