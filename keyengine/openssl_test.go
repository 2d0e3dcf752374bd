package keyengine

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// missingTool skips a test for want of a tool that not every machine has, or fails
// it where the tools are promised to be there.
func missingTool(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CONCLAVE_NO_SKIP") == "1" {
		t.Fatalf("CONCLAVE_NO_SKIP is set, but "+format, args...)
	}
	t.Skipf(format, args...)
}

// bench is a folder in which OpenSSL works on files.
type bench struct {
	testing.TB
	dir string
}

func newBench(t testing.TB) *bench {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		missingTool(t, "there is no openssl to compare with")
	}
	return &bench{t, t.TempDir()}
}

// write puts a file there and returns its path.
func (b *bench) write(name string, content []byte) string {
	b.Helper()
	if err := os.WriteFile(b.path(name), content, 0o600); err != nil {
		b.Fatal(err)
	}
	return b.path(name)
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

func (b *bench) read(name string) []byte {
	b.Helper()
	content, err := os.ReadFile(b.path(name))
	if err != nil {
		b.Fatal(err)
	}
	return content
}

// run is a command of OpenSSL that has to succeed; it returns the output.
func (b *bench) run(args ...string) []byte {
	b.Helper()
	out, err := b.try(args...)
	if err != nil {
		b.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (b *bench) try(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return exec.CommandContext(ctx, "openssl", args...).CombinedOutput()
}

// signatureOptions are those of pkeyutl for an algorithm over the whole message.
func signatureOptions(algorithm string) []string {
	if algorithm == "ED25519_SHA_512" {
		return []string{"-rawin"}
	}
	opts := []string{"-rawin", "-digest", "sha" + algorithm[len(algorithm)-3:]}
	if strings.HasPrefix(algorithm, "RSASSA_PSS") {
		opts = append(opts, "-pkeyopt", "rsa_padding_mode:pss", "-pkeyopt", "rsa_pss_saltlen:digest")
	}
	return opts
}

// verify has OpenSSL check a signature with a public key in DER.
func (b *bench) verify(algorithm string, public, message, signature []byte) error {
	b.Helper()
	args := []string{"pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", b.write("public", public),
		"-in", b.write("message", message), "-sigfile", b.write("signature", signature)}
	_, err := b.try(append(args, signatureOptions(algorithm)...)...)
	return err
}

// opensslSpecs are the signing keys that OpenSSL 3.0 knows; Ed25519ph and ML-DSA came later.
var opensslSpecs = []struct {
	spec, algorithm string
	generate        []string // of pkey
}{
	{"RSA_2048", "RSASSA_PSS_SHA_256", []string{"-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}},
	{"ECC_NIST_P256", "ECDSA_SHA_256", []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"}},
	{"ECC_NIST_P384", "ECDSA_SHA_384", []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"}},
	{"ECC_NIST_P521", "ECDSA_SHA_512", []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"}},
	{"ECC_SECG_P256K1", "ECDSA_SHA_256", []string{"-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"}},
	{"ECC_NIST_EDWARDS25519", "ED25519_SHA_512", []string{"-algorithm", "ED25519"}},
}

// generate has OpenSSL make a key, in PKCS #8 and DER.
func (b *bench) generate(options []string) []byte {
	b.Helper()
	b.run(append([]string{"genpkey", "-outform", "DER", "-out", b.path("made")}, options...)...)
	b.run("pkcs8", "-topk8", "-nocrypt", "-inform", "DER", "-outform", "DER", "-in", b.path("made"), "-out", b.path("made.p8"))
	return b.read("made.p8")
}

func (b *bench) publicOf(private []byte) []byte {
	b.Helper()
	b.run("pkey", "-inform", "DER", "-in", b.write("whole", private), "-pubout", "-outform", "DER", "-out", b.path("half"))
	return b.read("half")
}

// TestOpenSSLSignatures: OpenSSL takes every signature of Sign, and Verify takes
// OpenSSL's, with keys that were made here and there.
func TestOpenSSLSignatures(t *testing.T) {
	r := newRoom(t)
	message := []byte("for both of us")
	for _, tt := range opensslSpecs {
		t.Run(tt.spec, func(t *testing.T) {
			b := newBench(t)
			r.t = t
			ours, _ := r.newKeyOf(tt.spec, kmsapi.UsageSign)
			private := b.generate(tt.generate)
			theirs := r.vectorKey(true, tt.spec, kmsapi.UsageSign, private)
			if !bytes.Equal(r.publicKey(theirs), b.publicOf(private)) {
				t.Error("the public key of an imported key is another one")
			}
			algorithms := []string{tt.algorithm}
			if tt.spec == "RSA_2048" {
				algorithms = rsaSigning
			}
			for _, algorithm := range algorithms {
				for name, id := range map[string]string{"made here": ours, "imported": theirs} {
					public, sig := r.publicKey(id), r.signs(id, algorithm, "RAW", message)
					if err := b.verify(algorithm, public, message, sig); err != nil {
						t.Errorf("%s with a key %s: %v", algorithm, name, err)
					}
					if b.verify(algorithm, public, []byte("for another"), sig) == nil {
						t.Errorf("%s with a key %s: OpenSSL takes it for another message", algorithm, name)
					}
				}
				args := []string{"pkeyutl", "-sign", "-keyform", "DER", "-inkey", b.write("key", private), "-in", b.write("message", message), "-out", b.path("theirs")}
				b.run(append(args, signatureOptions(algorithm)...)...)
				if err := r.verifies(theirs, algorithm, "RAW", message, b.read("theirs")); err != nil {
					t.Errorf("%s by OpenSSL: %v", algorithm, err)
				}
			}
		})
	}
}

// mac is OpenSSL's HMAC.
func (b *bench) mac(size string, key, message []byte) []byte {
	b.Helper()
	b.run("mac", "-digest", "SHA"+size, "-macopt", "hexkey:"+hex.EncodeToString(key), "-binary",
		"-in", b.write("message", message), "-out", b.path("mac"), "HMAC")
	return b.read("mac")
}

func TestOpenSSLMacs(t *testing.T) {
	b := newBench(t)
	r := newRoom(t)
	for size, n := range map[string]string{"224": "28", "256": "32", "384": "48", "512": "64"} {
		b.run("rand", "-out", b.path("key"), n)
		id := r.vectorKey(true, "HMAC_"+size, kmsapi.UsageMac, b.read("key"))
		message := []byte("for both of us")
		want := b.mac(size, b.read("key"), message)
		algorithm := "HMAC_SHA_" + size
		got := must[kmsapi.GenerateMacOutput](r, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &id, Message: message, MacAlgorithm: &algorithm}).Mac
		if !bytes.Equal(got, want) {
			t.Errorf("%s is %x, OpenSSL's is %x", algorithm, got, want)
		}
		must[kmsapi.VerifyMacOutput](r, "VerifyMac", &kmsapi.VerifyMacInput{KeyId: &id, Message: message, Mac: want, MacAlgorithm: &algorithm})
	}
}

func oaepOptions(digest string) []string {
	return []string{"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:" + digest, "-pkeyopt", "rsa_mgf1_md:" + digest}
}

// encrypt is OpenSSL's OAEP with a public key in DER.
func (b *bench) encrypt(digest string, public, plaintext []byte) []byte {
	b.Helper()
	args := []string{"pkeyutl", "-encrypt", "-pubin", "-keyform", "DER", "-inkey", b.write("public", public),
		"-in", b.write("plaintext", plaintext), "-out", b.path("ciphertext")}
	b.run(append(args, oaepOptions(digest)...)...)
	return b.read("ciphertext")
}

func TestOpenSSLEncryption(t *testing.T) {
	b := newBench(t)
	r := newRoom(t)
	private := b.generate(opensslSpecs[0].generate)
	id := r.vectorKey(true, "RSA_2048", kmsapi.UsageEncrypt, private)
	plaintext := []byte("for both of us")
	for algorithm, digest := range map[string]string{oaepSHA1: "sha1", oaepSHA256: "sha256"} {
		args := []string{"pkeyutl", "-decrypt", "-keyform", "DER", "-inkey", b.write("key", private),
			"-in", b.write("ours", r.encryptRSA(id, algorithm, plaintext)), "-out", b.path("opened")}
		b.run(append(args, oaepOptions(digest)...)...)
		if got := b.read("opened"); !bytes.Equal(got, plaintext) {
			t.Errorf("%s: OpenSSL opens it to %q", algorithm, got)
		}
		got, err := r.decryptRSA(id, algorithm, b.encrypt(digest, r.publicKey(id), plaintext))
		if err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("%s by OpenSSL opens to %q, %v", algorithm, got, err)
		}
	}
}

func TestOpenSSLAgreement(t *testing.T) {
	r := newRoom(t)
	for i, tt := range agreeing {
		t.Run(tt.spec, func(t *testing.T) {
			b := newBench(t)
			r.t = t
			private := b.generate(opensslSpecs[1+i].generate)
			id, _ := r.newKeyOf(tt.spec, kmsapi.UsageAgree)
			b.run("pkeyutl", "-derive", "-keyform", "DER", "-inkey", b.write("key", private),
				"-peerform", "DER", "-peerkey", b.write("peer", r.publicKey(id)), "-out", b.path("secret"))
			out, err := r.derives(id, b.publicOf(private))
			if err != nil || !bytes.Equal(out.SharedSecret, b.read("secret")) {
				t.Errorf("OpenSSL has another secret (%v)", err)
			}
		})
	}
}

// TestOpenSSLKeyPairs: OpenSSL reads the private half, finds it sound, and comes to
// the same public half.
func TestOpenSSLKeyPairs(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	for _, tt := range opensslSpecs {
		t.Run(tt.spec, func(t *testing.T) {
			b := newBench(t)
			r.t = t
			out := must[kmsapi.GenerateDataKeyPairOutput](r, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: &tt.spec})
			if tt.spec != "ECC_NIST_EDWARDS25519" { // has no check
				b.run("pkey", "-check", "-noout", "-inform", "DER", "-in", b.write("key", out.PrivateKeyPlaintext))
			}
			if !bytes.Equal(b.publicOf(out.PrivateKeyPlaintext), out.PublicKey) {
				t.Error("OpenSSL has another public key")
			}
		})
	}
}

// wrap wraps material as AWS's guide tells users to.
func (b *bench) wrap(algorithm string, public, material []byte) []byte {
	b.Helper()
	digest := "sha256"
	if strings.HasSuffix(algorithm, "SHA_1") {
		digest = "sha1"
	}
	if !strings.HasPrefix(algorithm, "RSA_AES") {
		return b.encrypt(digest, public, material)
	}
	b.run("rand", "-out", b.path("kek"), "32")
	kek := b.read("kek")
	b.run("enc", "-id-aes256-wrap-pad", "-K", hex.EncodeToString(kek), "-iv", "A65959A6",
		"-in", b.write("material", material), "-out", b.path("wrapped"))
	return append(b.encrypt(digest, public, kek), b.read("wrapped")...)
}

// TestOpenSSLImport: material that OpenSSL made and wrapped, with every wrapping
// algorithm and size of wrapping key, is the key's and works.
func TestOpenSSLImport(t *testing.T) {
	message := []byte("with a key from elsewhere")
	for _, tt := range []struct{ algorithm, wrapping, spec, usage string }{
		{"RSAES_OAEP_SHA_1", "RSA_2048", kmsapi.SpecSymmetric, kmsapi.UsageEncrypt},
		{"RSAES_OAEP_SHA_256", "RSA_3072", kmsapi.SpecSymmetric, kmsapi.UsageEncrypt},
		{"RSAES_OAEP_SHA_1", "RSA_2048", "HMAC_512", kmsapi.UsageMac},
		{"RSAES_OAEP_SHA_256", "RSA_2048", "HMAC_256", kmsapi.UsageMac},
		{"RSAES_OAEP_SHA_1", "RSA_2048", "ECC_NIST_P256", kmsapi.UsageSign},
		{"RSAES_OAEP_SHA_256", "RSA_2048", "ECC_NIST_P256", kmsapi.UsageSign},
		{"RSA_AES_KEY_WRAP_SHA_1", "RSA_2048", "RSA_2048", kmsapi.UsageSign},
		{"RSA_AES_KEY_WRAP_SHA_256", "RSA_4096", "RSA_2048", kmsapi.UsageSign},
		{"RSA_AES_KEY_WRAP_SHA_1", "RSA_2048", "ECC_SECG_P256K1", kmsapi.UsageSign},
		{"RSA_AES_KEY_WRAP_SHA_256", "RSA_2048", "ECC_NIST_P521", kmsapi.UsageSign},
		{"RSA_AES_KEY_WRAP_SHA_256", "RSA_2048", "ECC_NIST_EDWARDS25519", kmsapi.UsageSign},
	} {
		t.Run(tt.algorithm+"/"+tt.spec, func(t *testing.T) {
			b := newBench(t)
			r := newRoom(t)
			id, _ := r.keyToImport(tt.spec, tt.usage)
			p := must[kmsapi.GetParametersForImportOutput](r, "GetParametersForImport", &kmsapi.GetParametersForImportInput{
				KeyId: &id, WrappingAlgorithm: &tt.algorithm, WrappingKeySpec: &tt.wrapping,
			})
			var material []byte
			algorithm := ""
			for _, k := range opensslSpecs {
				if k.spec == tt.spec {
					material, algorithm = b.generate(k.generate), k.algorithm
				}
			}
			if material == nil {
				size := map[string]string{kmsapi.SpecSymmetric: "32", "HMAC_256": "32", "HMAC_512": "64"}[tt.spec]
				b.run("rand", "-out", b.path("random"), size)
				material = b.read("random")
			}
			r.imports(&kmsapi.ImportKeyMaterialInput{
				KeyId: &id, ImportToken: p.ImportToken, EncryptedKeyMaterial: b.wrap(tt.algorithm, p.PublicKey, material), ExpirationModel: new(ops.ModelForever),
			})
			switch tt.usage {
			case kmsapi.UsageEncrypt:
				r.opens(r.seal(id, "x"), "x")
				if want := hex.EncodeToString(vault.KeyMaterialID(r.stored(id), material)); r.current(id) != want {
					t.Error("the material is not what was wrapped")
				}
			case kmsapi.UsageMac:
				size := tt.spec[len(tt.spec)-3:]
				out := must[kmsapi.GenerateMacOutput](r, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &id, Message: message, MacAlgorithm: new("HMAC_SHA_" + size)})
				if !bytes.Equal(out.Mac, b.mac(size, material, message)) {
					t.Error("OpenSSL has another MAC with the key")
				}
			case kmsapi.UsageSign:
				if err := b.verify(algorithm, b.publicOf(material), message, r.signs(id, algorithm, "RAW", message)); err != nil {
					t.Errorf("the signature to OpenSSL: %v", err)
				}
			}
		})
	}
}
