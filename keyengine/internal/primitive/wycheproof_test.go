package primitive

import (
	"bytes"
	"crypto/ecdh"
	"crypto/sha3"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"
	"slices"
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/vectors"
)

func TestWycheproofSignatures(t *testing.T) {
	t.Parallel()
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
	} {
		t.Run(c.file, func(t *testing.T) {
			t.Parallel()
			for _, g := range vectors.Wycheproof(t, c.file) {
				for _, v := range g.Tests {
					v.Judge(t, Verify(c.spec, g.PublicKeyDer, c.algorithm, Raw, v.Msg, v.Sig))
				}
			}
		})
	}
}

// Both ways to verify ML-DSA agree: the library over the message and our own over mu.
func TestWycheproofMLDSA(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	const algorithm = "ML_DSA_SHAKE_256"
	for _, size := range []string{"44", "65", "87"} {
		spec := "ML_DSA_" + size
		t.Run(spec+"/verify", func(t *testing.T) {
			t.Parallel()
			for _, g := range vectors.Wycheproof(t, "mldsa_"+size+"_verify") {
				for _, v := range g.Tests {
					if len(v.Ctx) > 0 {
						continue // KMS signs with the empty context
					}
					v.Judge(t, Verify(spec, g.PublicKeyDer, algorithm, Raw, v.Msg, v.Sig))
					if len(g.PublicKeyDer) > 0 {
						v.Judge(t, Verify(spec, g.PublicKeyDer, algorithm, ExternalMu, externalMu(g.PublicKey, v.Msg), v.Sig))
					}
				}
			}
		})
		t.Run(spec+"/sign", func(t *testing.T) {
			t.Parallel()
			for _, g := range vectors.Wycheproof(t, "mldsa_"+size+"_sign_seed") {
				if len(g.PrivateSeed) != 32 {
					if Check(spec, g.PrivateSeed) == nil {
						t.Errorf("a seed of %d bytes passed", len(g.PrivateSeed))
					}
					continue
				}
				spki, err := Public(spec, g.PrivateSeed)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.HasSuffix(spki, g.PublicKey) {
					t.Error("the seed gave another public key")
				}
				for _, v := range g.Tests {
					if len(v.Ctx) > 0 || v.Result != "valid" || len(v.Msg) == 0 {
						continue
					}
					// Ours are randomised, so only verification can be compared.
					if err := Verify(spec, spki, algorithm, ExternalMu, v.Mu, v.Sig); err != nil {
						t.Errorf("vector %d over mu: %v", v.TcID, err)
					}
					sig, err := Sign(spec, g.PrivateSeed, algorithm, ExternalMu, v.Mu)
					if err != nil {
						t.Fatal(err)
					}
					if err := Verify(spec, spki, algorithm, Raw, v.Msg, sig); err != nil {
						t.Errorf("vector %d, our signature over mu: %v", v.TcID, err)
					}
				}
			}
		})
	}
}

// externalMu is mu of FIPS 204 (algorithm 7, line 6) for the empty context.
func externalMu(publicKey, msg []byte) []byte {
	tr := sha3.SumSHAKE256(publicKey, muSize)
	return sha3.SumSHAKE256(slices.Concat(tr, []byte{0, 0}, msg), muSize)
}

func TestWycheproofHMAC(t *testing.T) {
	t.Parallel()
	for _, size := range []string{"224", "256", "384", "512"} {
		spec, algorithm := "HMAC_"+size, "HMAC_SHA_"+size
		used := 0
		for _, g := range vectors.Wycheproof(t, "hmac_sha"+size) {
			for _, v := range g.Tests {
				// KMS's keys and MACs are as long as the digest.
				if Check(spec, v.Key) != nil || g.TagSize != 8*len(v.Key) {
					continue
				}
				used++
				v.Judge(t, VerifyMac(spec, v.Key, algorithm, v.Msg, v.Tag))
				mac, err := Mac(spec, v.Key, algorithm, v.Msg)
				if err != nil || v.Result == "valid" && !bytes.Equal(mac, v.Tag) {
					t.Errorf("vector %d: %x, %v", v.TcID, mac, err)
				}
			}
		}
		if used == 0 {
			t.Errorf("no vector for %s", spec)
		}
	}
}

func TestWycheproofOAEP(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	for _, c := range []struct{ file, spec, algorithm string }{
		{"rsa_oaep_2048_sha1_mgf1sha1", "RSA_2048", "RSAES_OAEP_SHA_1"},
		{"rsa_oaep_2048_sha256_mgf1sha256", "RSA_2048", "RSAES_OAEP_SHA_256"},
		{"rsa_oaep_3072_sha256_mgf1sha256", "RSA_3072", "RSAES_OAEP_SHA_256"},
		{"rsa_oaep_4096_sha256_mgf1sha256", "RSA_4096", "RSAES_OAEP_SHA_256"},
	} {
		for _, g := range vectors.Wycheproof(t, c.file) {
			for _, v := range g.Tests {
				if len(v.Label) > 0 {
					continue // KMS uses the empty label
				}
				got, err := DecryptRSA(c.spec, g.PrivateKeyPkcs8, c.algorithm, v.Ct)
				v.Judge(t, err)
				if err == nil && !bytes.Equal(got, v.Msg) {
					t.Errorf("%s %d: %x", c.file, v.TcID, got)
				}
				if err != nil && !errors.Is(err, ErrCiphertext) {
					t.Errorf("%s %d: %v", c.file, v.TcID, err)
				}
			}
		}
	}
}

// Of the acceptable public keys, we take those that are the same curve by name and
// nothing else: no explicit parameters, no compressed points.
func TestWycheproofECDH(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	for _, c := range []struct {
		file, spec string
		curve      ecdh.Curve
		size       int
	}{
		{"ecdh_secp256r1", "ECC_NIST_P256", ecdh.P256(), 32},
		{"ecdh_secp384r1", "ECC_NIST_P384", ecdh.P384(), 48},
		{"ecdh_secp521r1", "ECC_NIST_P521", ecdh.P521(), 66},
	} {
		for _, g := range vectors.Wycheproof(t, c.file) {
			for _, v := range g.Tests {
				d, _ := new(big.Int).SetString(v.Private, 16)
				key, err := c.curve.NewPrivateKey(d.FillBytes(make([]byte, c.size)))
				if err != nil {
					t.Fatal(err)
				}
				material, err := x509.MarshalPKCS8PrivateKey(key)
				if err != nil {
					t.Fatal(err)
				}
				got, err := SharedSecret(c.spec, material, v.Public)
				v.Judge(t, err)
				if err == nil && !bytes.Equal(got, v.Shared) {
					t.Errorf("%s %d: %x", c.file, v.TcID, got)
				}
				if err == nil && slices.Contains(v.Flags, "UnnamedCurve") {
					t.Errorf("%s %d: explicit curve parameters were taken", c.file, v.TcID)
				}
			}
		}
	}
}

// A signature in DER is taken in one form only.
func TestECDSAStrictDER(t *testing.T) {
	t.Parallel()
	material, spki := pair(t, "ECC_NIST_P256")
	sig, err := Sign("ECC_NIST_P256", material, "ECDSA_SHA_256", Raw, []byte("m"))
	if err != nil {
		t.Fatal(err)
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(sig, &rs); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"trailing byte": append(bytes.Clone(sig), 0),
		"long length":   append([]byte{0x30, 0x81, sig[1]}, sig[2:]...),
		"empty":         {},
		"zeros":         {0x30, 6, 2, 1, 0, 2, 1, 0},
	} {
		if err := Verify("ECC_NIST_P256", spki, "ECDSA_SHA_256", Raw, []byte("m"), bad); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
