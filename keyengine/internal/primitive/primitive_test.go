package primitive

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/mldsa"
	pkix "filippo.io/mldsa/x509"

	"github.com/conclavekms/conclave/integration/optional"
)

func allSpecs() []string { return slices.Sorted(maps.Keys(specs)) }

// pair makes a key of the spec and its public half.
func pair(t testing.TB, spec string) (material, spki []byte) {
	t.Helper()
	material, err := Generate(spec)
	if err != nil {
		t.Fatal(err)
	}
	if spki, err = Public(spec, material); err != nil {
		t.Fatal(err)
	}
	return material, spki
}

// messageOf is what a message looks like to an algorithm as the given type.
func messageOf(spki []byte, algorithm, kind string, raw []byte) []byte {
	switch kind {
	case Digest:
		h := hashes[algorithm].New()
		h.Write(raw)
		return h.Sum(nil)
	case ExternalMu:
		key, _ := pkix.ParsePKIXPublicKey(spki)
		return externalMu(key.(*mldsa.PublicKey).Bytes(), raw)
	}
	return raw
}

func typesOf(algorithm string) []string {
	if types, ok := messageTypes[algorithm]; ok {
		return types
	}
	return []string{Raw, Digest}
}

func TestSignVerify(t *testing.T) {
	t.Parallel()
	raw := []byte("a message to sign")
	for _, spec := range allSpecs() {
		algorithms := SigningAlgorithms(spec)
		if algorithms == nil {
			continue
		}
		t.Run(spec, func(t *testing.T) {
			t.Parallel()
			material, spki := pair(t, spec)
			if err := Check(spec, material); err != nil {
				t.Fatalf("our own key: %v", err)
			}
			for _, algorithm := range algorithms {
				types := typesOf(algorithm)
				for _, kind := range types {
					msg := messageOf(spki, algorithm, kind, raw)
					sig, err := Sign(spec, material, algorithm, kind, msg)
					if err != nil {
						t.Fatalf("%s %s: %v", algorithm, kind, err)
					}
					// Signed in one form, verified in every form.
					for _, other := range types {
						if err := Verify(spec, spki, algorithm, other, messageOf(spki, algorithm, other, raw), sig); err != nil {
							t.Errorf("%s signed %s, verified %s: %v", algorithm, kind, other, err)
						}
					}
					refuses(t, spec, spki, algorithm, kind, msg, sig)
				}
			}
		})
	}
}

// refuses holds Verify to refuse what differs in the message, the signature, the
// key or the lengths.
func refuses(t *testing.T, spec string, spki []byte, algorithm, kind string, msg, sig []byte) {
	t.Helper()
	flipped := func(b []byte, i int) []byte {
		c := bytes.Clone(b)
		c[i] ^= 1
		return c
	}
	step := max(1, len(sig)/64)
	for i := 0; i < len(sig); i += step {
		if err := Verify(spec, spki, algorithm, kind, msg, flipped(sig, i)); !errors.Is(err, ErrSignature) {
			t.Errorf("%s %s: byte %d of the signature flipped: %v", algorithm, kind, i, err)
		}
	}
	for name, s := range map[string][]byte{"nil": nil, "short": sig[:len(sig)-1], "long": append(bytes.Clone(sig), 0)} {
		if err := Verify(spec, spki, algorithm, kind, msg, s); !errors.Is(err, ErrSignature) {
			t.Errorf("%s %s: %s signature: %v", algorithm, kind, name, err)
		}
	}
	if err := Verify(spec, spki, algorithm, kind, flipped(msg, 0), sig); !errors.Is(err, ErrSignature) {
		t.Errorf("%s %s: another message: %v", algorithm, kind, err)
	}
	if err := Verify(spec, flipped(spki, 3), algorithm, kind, msg, sig); err == nil {
		t.Errorf("%s %s: another public key passed", algorithm, kind)
	}
}

func TestCheckMessage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		algorithm, kind string
		size            int
		want            error
	}{
		{"ECDSA_SHA_256", Digest, 32, nil},
		{"ECDSA_SHA_256", Digest, 31, ErrDigestLength},
		{"ECDSA_SHA_384", Digest, 32, ErrDigestLength},
		{"RSASSA_PSS_SHA_512", Digest, 64, nil},
		{"RSASSA_PSS_SHA_512", ExternalMu, 64, ErrMessageType},
		{"ED25519_SHA_512", Digest, 64, ErrMessageType},
		{"ED25519_PH_SHA_512", Raw, 64, ErrMessageType},
		{"ED25519_PH_SHA_512", Digest, 63, ErrDigestLength},
		{"ML_DSA_SHAKE_256", Digest, 64, ErrMessageType},
		{"ML_DSA_SHAKE_256", ExternalMu, 64, nil},
		{"ML_DSA_SHAKE_256", ExternalMu, 65, ErrDigestLength},
		{"ECDSA_SHA_256", "", 32, ErrMessageType},
	} {
		if err := CheckMessage(c.algorithm, c.kind, make([]byte, c.size)); !errors.Is(err, c.want) {
			t.Errorf("%s %s %d: %v", c.algorithm, c.kind, c.size, err)
		}
	}
}

func TestMac(t *testing.T) {
	t.Parallel()
	for _, spec := range allSpecs() {
		for _, algorithm := range MacAlgorithms(spec) {
			key, _ := pair(t, spec)
			mac, err := Mac(spec, key, algorithm, []byte("m"))
			if err != nil {
				t.Fatal(err)
			}
			if err := VerifyMac(spec, key, algorithm, []byte("m"), mac); err != nil {
				t.Error(err)
			}
			for _, bad := range [][]byte{nil, mac[:len(mac)-1], append(bytes.Clone(mac), 0)} {
				if err := VerifyMac(spec, key, algorithm, []byte("m"), bad); !errors.Is(err, ErrMac) {
					t.Errorf("%s, %d bytes: %v", spec, len(bad), err)
				}
			}
			if err := VerifyMac(spec, key, algorithm, []byte("n"), mac); !errors.Is(err, ErrMac) {
				t.Errorf("%s, another message: %v", spec, err)
			}
			if _, err := Mac(spec, key, "HMAC_SHA_1", nil); err == nil {
				t.Errorf("%s: an algorithm of none of the specs", spec)
			}
		}
	}
}

func TestOAEP(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	for _, spec := range allSpecs() {
		for _, algorithm := range EncryptionAlgorithms(spec) {
			material, spki := pair(t, spec)
			largest := MaxPlaintext(spec, algorithm)
			plaintext := make([]byte, largest)
			rand.Read(plaintext)
			ct, err := EncryptRSA(spec, spki, algorithm, plaintext)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := DecryptRSA(spec, material, algorithm, ct); err != nil || !bytes.Equal(got, plaintext) {
				t.Errorf("%s %s: %v", spec, algorithm, err)
			}
			if _, err := EncryptRSA(spec, spki, algorithm, make([]byte, largest+1)); err == nil {
				t.Errorf("%s %s: one byte too much was encrypted", spec, algorithm)
			}
			ct[len(ct)/2] ^= 1
			for _, bad := range [][]byte{ct, nil, ct[1:], append(bytes.Clone(ct), 0)} {
				if _, err := DecryptRSA(spec, material, algorithm, bad); !errors.Is(err, ErrCiphertext) {
					t.Errorf("%s %s: %v", spec, algorithm, err)
				}
			}
		}
	}
}

func TestSharedSecret(t *testing.T) {
	t.Parallel()
	others := map[string]string{"ECC_NIST_P256": "ECC_NIST_P384", "ECC_NIST_P384": "ECC_NIST_P521", "ECC_NIST_P521": "ECC_NIST_P256"}
	for spec, other := range others {
		a, aPub := pair(t, spec)
		b, bPub := pair(t, spec)
		_, foreign := pair(t, other)
		x, err := SharedSecret(spec, a, bPub)
		if err != nil {
			t.Fatal(err)
		}
		if y, err := SharedSecret(spec, b, aPub); err != nil || !bytes.Equal(x, y) {
			t.Errorf("%s: the two sides differ (%v)", spec, err)
		}
		for name, peer := range map[string][]byte{"other curve": foreign, "empty": nil, "trailing": append(bytes.Clone(bPub), 0), "cut": bPub[:len(bPub)-1]} {
			if _, err := SharedSecret(spec, a, peer); !errors.Is(err, ErrPublicKey) {
				t.Errorf("%s, %s: %v", spec, name, err)
			}
		}
	}
}

// Material from outside must be a key of exactly this spec.
func TestCheckRefuses(t *testing.T) {
	t.Parallel()
	keys := map[string][]byte{}
	for _, spec := range allSpecs() {
		keys[spec], _ = pair(t, spec)
	}
	seeds := func(s string, size int) bool {
		return (strings.HasPrefix(s, "ML_DSA_") && size == 32) || (strings.HasPrefix(s, "ML_KEM_") && size == 64)
	}
	for _, spec := range allSpecs() {
		for other, material := range keys {
			// What has no structure of its own is told apart by length only.
			sameForm := other == spec || MacAlgorithms(spec) != nil && len(material) == len(keys[spec]) || seeds(spec, len(material))
			if err := Check(spec, material); (err == nil) != sameForm {
				t.Errorf("a key of %s as %s: %v", other, spec, err)
			}
		}
		own := keys[spec]
		for name, bad := range map[string][]byte{
			"empty":    nil,
			"cut":      own[:len(own)-1],
			"trailing": append(bytes.Clone(own), 0),
			"huge":     make([]byte, maxMaterial+1),
		} {
			if err := Check(spec, bad); !errors.Is(err, ErrMaterial) {
				t.Errorf("%s, %s: %v", spec, name, err)
			}
		}
	}
}

// The vector of RFC 8032 section 7.3 is over the message "abc", of which a caller of
// KMS hands in the digest; KMS takes that digest as the message of Ed25519ph.
func TestEd25519ph(t *testing.T) {
	t.Parallel()
	const spec, algorithm = "ECC_NIST_EDWARDS25519", "ED25519_PH_SHA_512"
	seed, _ := hex.DecodeString("833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42")
	material, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum512([]byte("abc"))
	sig, err := Sign(spec, material, algorithm, Digest, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	again := sha512.Sum512(digest[:])
	public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	if err := ed25519.VerifyWithOptions(public, again[:], sig, &ed25519.Options{Hash: hashes[algorithm]}); err != nil {
		t.Error("not Ed25519ph over the digest: ", err)
	}
}

// What OpenSSL makes and takes is what we take and make.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	openssl := optional.Program(t, "openssl")
	for _, spec := range []string{"RSA_2048", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1", "ECC_NIST_EDWARDS25519"} {
		t.Run(spec, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := func(name string) string { return filepath.Join(dir, name) }
			write := func(name string, b []byte) string {
				if err := os.WriteFile(path(name), b, 0o600); err != nil {
					t.Fatal(err)
				}
				return path(name)
			}
			run := func(args ...string) []byte {
				out, err := exec.Command(openssl, args...).CombinedOutput()
				if err != nil {
					t.Errorf("openssl %v: %v: %s", args, err, out)
				}
				return out
			}
			material, spki := pair(t, spec)
			private := write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: material}))
			public := write("pub.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}))
			msg := []byte("for both of us")
			for _, algorithm := range SigningAlgorithms(spec) {
				if algorithm == "ED25519_PH_SHA_512" {
					continue // this OpenSSL has the pure form only
				}
				in, kind, opts := msg, Raw, []string{"-rawin"}
				if h, ok := hashes[algorithm]; ok {
					in, kind = messageOf(spki, algorithm, Digest, msg), Digest
					opts = []string{"-pkeyopt", "digest:" + map[int]string{32: "sha256", 48: "sha384", 64: "sha512"}[h.Size()]}
				}
				if len(algorithm) > 10 && algorithm[:10] == "RSASSA_PSS" {
					opts = append(opts, "-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", "rsa_pss_saltlen:digest")
				}
				sig, err := Sign(spec, material, algorithm, kind, in)
				if err != nil {
					t.Fatal(err)
				}
				data := write(algorithm+".in", in)
				run(append([]string{"pkeyutl", "-verify", "-pubin", "-inkey", public, "-in", data, "-sigfile", write(algorithm+".sig", sig)}, opts...)...)
				run(append([]string{"pkeyutl", "-sign", "-inkey", private, "-in", data, "-out", path("theirs")}, opts...)...)
				theirs, err := os.ReadFile(path("theirs"))
				if err != nil {
					t.Fatal(err)
				}
				if err := Verify(spec, spki, algorithm, kind, in, theirs); err != nil {
					t.Errorf("%s by OpenSSL: %v", algorithm, err)
				}
			}
			for _, algorithm := range EncryptionAlgorithms(spec) {
				hash := map[string]string{"RSAES_OAEP_SHA_1": "sha1", "RSAES_OAEP_SHA_256": "sha256"}[algorithm]
				opts := []string{"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:" + hash, "-pkeyopt", "rsa_mgf1_md:" + hash}
				ct, err := EncryptRSA(spec, spki, algorithm, msg)
				if err != nil {
					t.Fatal(err)
				}
				run(append([]string{"pkeyutl", "-decrypt", "-inkey", private, "-in", write("ct", ct), "-out", path("pt")}, opts...)...)
				if got, _ := os.ReadFile(path("pt")); !bytes.Equal(got, msg) {
					t.Errorf("%s: OpenSSL read %q", algorithm, got)
				}
				run(append([]string{"pkeyutl", "-encrypt", "-pubin", "-inkey", public, "-in", write("msg", msg), "-out", path("ct2")}, opts...)...)
				ct2, _ := os.ReadFile(path("ct2"))
				if got, err := DecryptRSA(spec, material, algorithm, ct2); err != nil || !bytes.Equal(got, msg) {
					t.Errorf("%s by OpenSSL: %v", algorithm, err)
				}
			}
		})
	}
}

func BenchmarkSign(b *testing.B) {
	for spec, algorithm := range map[string]string{"RSA_2048": "RSASSA_PSS_SHA_256", "ECC_NIST_P256": "ECDSA_SHA_256"} {
		b.Run(spec, func(b *testing.B) {
			material, _ := pair(b, spec)
			for b.Loop() {
				if _, err := Sign(spec, material, algorithm, Raw, []byte("m")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
