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

	"github.com/conclavekms/conclave/integration/optional"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// An openSSL runs OpenSSL on files in a directory.
type openSSL struct {
	testing.TB
	dir string
}

func newOpenSSL(t testing.TB) *openSSL {
	t.Helper()
	optional.Program(t, "openssl")
	return &openSSL{t, t.TempDir()}
}

// write writes a file and returns its path.
func (b *openSSL) write(name string, content []byte) string {
	b.Helper()
	if err := os.WriteFile(b.path(name), content, 0o600); err != nil {
		b.Fatal(err)
	}
	return b.path(name)
}

func (b *openSSL) path(name string) string { return filepath.Join(b.dir, name) }

func (b *openSSL) read(name string) []byte {
	b.Helper()
	content, err := os.ReadFile(b.path(name))
	if err != nil {
		b.Fatal(err)
	}
	return content
}

// run runs a command of OpenSSL, which must succeed, and returns its output.
func (b *openSSL) run(args ...string) []byte {
	b.Helper()
	out, err := b.try(args...)
	if err != nil {
		b.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (b *openSSL) try(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return exec.CommandContext(ctx, "openssl", args...).CombinedOutput()
}

// signatureOptions returns the options of pkeyutl for an algorithm, to sign a whole message.
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

// verify verifies a signature with a public key in DER.
func (b *openSSL) verify(algorithm string, public, message, signature []byte) error {
	b.Helper()
	args := []string{"pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", b.write("public", public),
		"-in", b.write("message", message), "-sigfile", b.write("signature", signature)}
	_, err := b.try(append(args, signatureOptions(algorithm)...)...)
	return err
}

// opensslSpecs are the specs of signing keys that OpenSSL 3.0 supports, which are all but Ed25519ph
// and ML-DSA.
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

// generate returns a new private key in PKCS #8 and DER.
func (b *openSSL) generate(options []string) []byte {
	b.Helper()
	b.run(append([]string{"genpkey", "-outform", "DER", "-out", b.path("made")}, options...)...)
	b.run("pkcs8", "-topk8", "-nocrypt", "-inform", "DER", "-outform", "DER", "-in", b.path("made"), "-out", b.path("made.p8"))
	return b.read("made.p8")
}

func (b *openSSL) publicOf(private []byte) []byte {
	b.Helper()
	b.run("pkey", "-inform", "DER", "-in", b.write("whole", private), "-pubout", "-outform", "DER", "-out", b.path("half"))
	return b.read("half")
}

// OpenSSL verifies the signatures of Sign, and Verify those of OpenSSL, for keys that either made.
func TestOpenSSLSignatures(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	message := []byte("for both of us")
	for _, tt := range opensslSpecs {
		t.Run(tt.spec, func(t *testing.T) {
			b := newOpenSSL(t)
			c.t = t
			ours, _ := c.newKeyOf(tt.spec, kmsapi.UsageSign)
			private := b.generate(tt.generate)
			theirs := c.keyFromVector(true, tt.spec, kmsapi.UsageSign, private)
			if !bytes.Equal(c.publicKey(theirs), b.publicOf(private)) {
				t.Error("GetPublicKey of an imported key returned another public key than OpenSSL's")
			}
			algorithms := []string{tt.algorithm}
			if tt.spec == "RSA_2048" {
				algorithms = rsaSigning
			}
			for _, algorithm := range algorithms {
				for name, id := range map[string]string{"made here": ours, "imported": theirs} {
					public, sig := c.publicKey(id), c.sign(id, algorithm, "RAW", message)
					if err := b.verify(algorithm, public, message, sig); err != nil {
						t.Errorf("%s with a key %s: OpenSSL refuses the signature: %v", algorithm, name, err)
					}
					if b.verify(algorithm, public, []byte("for another"), sig) == nil {
						t.Errorf("%s with a key %s: OpenSSL accepts the signature for another message", algorithm, name)
					}
				}
				args := []string{"pkeyutl", "-sign", "-keyform", "DER", "-inkey", b.write("key", private), "-in", b.write("message", message), "-out", b.path("theirs")}
				b.run(append(args, signatureOptions(algorithm)...)...)
				if err := c.verify(theirs, algorithm, "RAW", message, b.read("theirs")); err != nil {
					t.Errorf("%s: Verify refuses OpenSSL's signature: %v", algorithm, err)
				}
			}
		})
	}
}

// mac returns OpenSSL's HMAC of a message.
func (b *openSSL) mac(size string, key, message []byte) []byte {
	b.Helper()
	b.run("mac", "-digest", "SHA"+size, "-macopt", "hexkey:"+hex.EncodeToString(key), "-binary",
		"-in", b.write("message", message), "-out", b.path("mac"), "HMAC")
	return b.read("mac")
}

func TestOpenSSLMacs(t *testing.T) {
	t.Parallel()
	b := newOpenSSL(t)
	c := newTestCluster(t)
	for size, n := range map[string]string{"224": "28", "256": "32", "384": "48", "512": "64"} {
		b.run("rand", "-out", b.path("key"), n)
		id := c.keyFromVector(true, "HMAC_"+size, kmsapi.UsageMac, b.read("key"))
		message := []byte("for both of us")
		want := b.mac(size, b.read("key"), message)
		algorithm := "HMAC_SHA_" + size
		got := must[kmsapi.GenerateMacOutput](c, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &id, Message: message, MacAlgorithm: &algorithm}).Mac
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, OpenSSL's is %x", algorithm, got, want)
		}
		must[kmsapi.VerifyMacOutput](c, "VerifyMac", &kmsapi.VerifyMacInput{KeyId: &id, Message: message, Mac: want, MacAlgorithm: &algorithm})
	}
}

func oaepOptions(digest string) []string {
	return []string{"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:" + digest, "-pkeyopt", "rsa_mgf1_md:" + digest}
}

// encrypt encrypts with OAEP and a public key in DER.
func (b *openSSL) encrypt(digest string, public, plaintext []byte) []byte {
	b.Helper()
	args := []string{"pkeyutl", "-encrypt", "-pubin", "-keyform", "DER", "-inkey", b.write("public", public),
		"-in", b.write("plaintext", plaintext), "-out", b.path("ciphertext")}
	b.run(append(args, oaepOptions(digest)...)...)
	return b.read("ciphertext")
}

func TestOpenSSLEncryption(t *testing.T) {
	t.Parallel()
	b := newOpenSSL(t)
	c := newTestCluster(t)
	private := b.generate(opensslSpecs[0].generate)
	id := c.keyFromVector(true, "RSA_2048", kmsapi.UsageEncrypt, private)
	plaintext := []byte("for both of us")
	for algorithm, digest := range map[string]string{oaepSHA1: "sha1", oaepSHA256: "sha256"} {
		args := []string{"pkeyutl", "-decrypt", "-keyform", "DER", "-inkey", b.write("key", private),
			"-in", b.write("ours", c.encryptRSA(id, algorithm, plaintext)), "-out", b.path("opened")}
		b.run(append(args, oaepOptions(digest)...)...)
		if got := b.read("opened"); !bytes.Equal(got, plaintext) {
			t.Errorf("%s: OpenSSL decrypts the ciphertext to %q, want %q", algorithm, got, plaintext)
		}
		got, err := c.decryptRSA(id, algorithm, b.encrypt(digest, c.publicKey(id), plaintext))
		if err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("%s: Decrypt of OpenSSL's ciphertext: got %q, error %v; want %q", algorithm, got, err, plaintext)
		}
	}
}

func TestOpenSSLAgreement(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	for i, tt := range agreeing {
		t.Run(tt.spec, func(t *testing.T) {
			b := newOpenSSL(t)
			c.t = t
			private := b.generate(opensslSpecs[1+i].generate)
			id, _ := c.newKeyOf(tt.spec, kmsapi.UsageAgree)
			b.run("pkeyutl", "-derive", "-keyform", "DER", "-inkey", b.write("key", private),
				"-peerform", "DER", "-peerkey", b.write("peer", c.publicKey(id)), "-out", b.path("secret"))
			out, err := c.deriveSharedSecret(id, b.publicOf(private))
			if err != nil || !bytes.Equal(out.SharedSecret, b.read("secret")) {
				t.Errorf("DeriveSharedSecret returned another secret than OpenSSL (%v)", err)
			}
		})
	}
}

// OpenSSL accepts the private keys of GenerateDataKeyPair and derives the same public keys.
func TestOpenSSLKeyPairs(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	for _, tt := range opensslSpecs {
		t.Run(tt.spec, func(t *testing.T) {
			b := newOpenSSL(t)
			c.t = t
			out := must[kmsapi.GenerateDataKeyPairOutput](c, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: &tt.spec})
			if tt.spec != "ECC_NIST_EDWARDS25519" { // has no check
				b.run("pkey", "-check", "-noout", "-inform", "DER", "-in", b.write("key", out.PrivateKeyPlaintext))
			}
			if !bytes.Equal(b.publicOf(out.PrivateKeyPlaintext), out.PublicKey) {
				t.Error("OpenSSL derives another public key")
			}
		})
	}
}

// wrap wraps material with the commands of AWS's developer guide.
func (b *openSSL) wrap(algorithm string, public, material []byte) []byte {
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

// Material that OpenSSL generated and wrapped can be imported and used, with every wrapping
// algorithm and size of wrapping key.
func TestOpenSSLImport(t *testing.T) {
	t.Parallel()
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
			t.Parallel()
			b := newOpenSSL(t)
			c := newTestCluster(t)
			id, _ := c.newKeyForImport(tt.spec, tt.usage)
			p := must[kmsapi.GetParametersForImportOutput](c, "GetParametersForImport", &kmsapi.GetParametersForImportInput{
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
			c.importMaterial(&kmsapi.ImportKeyMaterialInput{
				KeyId: &id, ImportToken: p.ImportToken, EncryptedKeyMaterial: b.wrap(tt.algorithm, p.PublicKey, material), ExpirationModel: new(ops.ModelForever),
			})
			switch tt.usage {
			case kmsapi.UsageEncrypt:
				c.wantDecrypt(c.encrypt(id, "x"), "x")
				if want := hex.EncodeToString(vault.KeyMaterialID(c.storedKey(id), material)); c.currentMaterialID(id) != want {
					t.Error("the key has another material than was wrapped")
				}
			case kmsapi.UsageMac:
				size := tt.spec[len(tt.spec)-3:]
				out := must[kmsapi.GenerateMacOutput](c, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &id, Message: message, MacAlgorithm: new("HMAC_SHA_" + size)})
				if !bytes.Equal(out.Mac, b.mac(size, material, message)) {
					t.Error("GenerateMac returned another MAC than OpenSSL")
				}
			case kmsapi.UsageSign:
				if err := b.verify(algorithm, b.publicOf(material), message, c.sign(id, algorithm, "RAW", message)); err != nil {
					t.Errorf("OpenSSL refuses the signature: %v", err)
				}
			}
		})
	}
}
