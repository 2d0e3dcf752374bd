package keyengine

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	oaepSHA1   = "RSAES_OAEP_SHA_1"
	oaepSHA256 = "RSAES_OAEP_SHA_256"
)

func (c *testCluster) encryptRSA(id, algorithm string, plaintext []byte) []byte {
	c.t.Helper()
	return must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: plaintext, EncryptionAlgorithm: &algorithm}).CiphertextBlob
}

func (c *testCluster) decryptRSA(id, algorithm string, blob []byte) ([]byte, error) {
	c.t.Helper()
	out, err := call[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{KeyId: &id, CiphertextBlob: blob, EncryptionAlgorithm: &algorithm})
	if err != nil {
		return nil, err
	}
	if out.KeyMaterialId != nil || *out.EncryptionAlgorithm != algorithm {
		c.t.Errorf("Decrypt returned algorithm %s, material %v", *out.EncryptionAlgorithm, out.KeyMaterialId)
	}
	return out.Plaintext, nil
}

// Ciphertexts of Encrypt with an RSA key are decrypted by Decrypt and by the standard
// library, and plaintexts may be as large as OAEP allows.
func TestEncryptRSA(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	for _, tt := range []struct {
		spec         string
		sha1, sha256 int
	}{
		{"RSA_2048", 214, 190}, {"RSA_3072", 342, 318}, {"RSA_4096", 470, 446},
	} {
		t.Run(tt.spec, func(t *testing.T) {
			c.t = t
			m := rsaKey(t, tt.spec)
			id, arn := c.newKeyWithMaterial(tt.spec, kmsapi.UsageEncrypt, m)
			parsed, err := x509.ParsePKCS8PrivateKey(m)
			if err != nil {
				t.Fatal(err)
			}
			private := parsed.(*rsa.PrivateKey)
			for algorithm, most := range map[string]int{oaepSHA1: tt.sha1, oaepSHA256: tt.sha256} {
				h := map[string]crypto.Hash{oaepSHA1: crypto.SHA1, oaepSHA256: crypto.SHA256}[algorithm]
				for _, size := range []int{1, most} {
					plaintext := bytes.Repeat([]byte{7}, size)
					out := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: plaintext, EncryptionAlgorithm: &algorithm})
					if *out.KeyId != arn || *out.EncryptionAlgorithm != algorithm || len(out.CiphertextBlob) != private.Size() {
						t.Errorf("Encrypt returned key %s, algorithm %s, and %d bytes", *out.KeyId, *out.EncryptionAlgorithm, len(out.CiphertextBlob))
					}
					if got, err := rsa.DecryptOAEP(h.New(), nil, private, out.CiphertextBlob, nil); err != nil || !bytes.Equal(got, plaintext) {
						t.Errorf("%s, %d bytes: the standard library decrypts %x (%v)", algorithm, size, got, err)
					}
					if got, err := c.decryptRSA(id, algorithm, out.CiphertextBlob); err != nil || !bytes.Equal(got, plaintext) {
						t.Errorf("%s, %d bytes: Decrypt returned %x (%v)", algorithm, size, got, err)
					}
				}
				for _, dry := range []bool{false, true} {
					_, err := call[request.None](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: make([]byte, most+1), EncryptionAlgorithm: &algorithm, DryRun: &dry})
					wantError(t, err, kmsapi.ErrValidation, fmt.Sprintf("Algorithm %s and key spec %s cannot encrypt data larger than %d bytes.", algorithm, tt.spec, most))
				}
			}
		})
	}
}

// Every invalid ciphertext is refused with the same error.
func TestDecryptRSARefuses(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKeyOf("RSA_2048", kmsapi.UsageEncrypt)
	other, _ := c.newKeyOf("RSA_2048", kmsapi.UsageEncrypt)
	blob := c.encryptRSA(id, oaepSHA256, []byte("x"))
	if a := c.encryptRSA(id, oaepSHA256, []byte("x")); bytes.Equal(a, blob) {
		t.Error("Encrypt returned the same ciphertext twice")
	}
	flipped := bytes.Clone(blob)
	flipped[100] ^= 1
	for name, b := range map[string][]byte{
		"flipped bit": flipped, "cut": blob[:255], "longer": append(bytes.Clone(blob), 0), "one byte": {1},
		"zeros": make([]byte, 256), "above the modulus": bytes.Repeat([]byte{0xff}, 256), "by SHA-1": c.encryptRSA(id, oaepSHA1, []byte("x")),
		"another key's": c.encryptRSA(other, oaepSHA256, []byte("x")),
	} {
		_, err := c.decryptRSA(id, oaepSHA256, b)
		if e, ok := errors.AsType[*kmsapi.Error](err); !ok || *e != *kmsapi.ErrInvalidCiphertext {
			t.Errorf("%s: got error %v, want InvalidCiphertextException", name, err)
		}
	}
	symmetric, _ := c.newKey()
	_, err := c.decryptRSA(id, oaepSHA256, c.encrypt(symmetric, "x"))
	wantError(t, err, kmsapi.ErrIncorrectKey, "…")
	_, err = call[request.None](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionAlgorithm: new(oaepSHA256)})
	wantError(t, err, kmsapi.ErrValidation, "KeyId is required with the algorithm RSAES_OAEP_SHA_256.")
	_, err = call[request.None](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	wantError(t, err, kmsapi.ErrInvalidCiphertext, "")
	// The default algorithm is that of symmetric keys.
	for _, algorithm := range []*string{nil, new(kmsapi.AlgorithmSymmetric)} {
		_, err = call[request.None](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob, KeyId: &id, EncryptionAlgorithm: algorithm})
		wantError(t, err, kmsapi.ErrInvalidCiphertext, "")
		_, err = call[request.None](c, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: blob, SourceKeyId: &id, SourceEncryptionAlgorithm: algorithm, DestinationKeyId: &symmetric})
		wantError(t, err, kmsapi.ErrInvalidCiphertext, "")
	}
	_, err = call[request.None](c, "Decrypt", &kmsapi.DecryptInput{KeyId: &id, DryRun: new(true), DryRunModifiers: []string{kmsapi.IgnoreCiphertext}})
	wantError(t, err, kmsapi.ErrInvalidKeyUsage, "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048.")
	_, err = c.decryptRSA(symmetric, oaepSHA256, blob)
	wantError(t, err, kmsapi.ErrInvalidKeyUsage, "Algorithm RSAES_OAEP_SHA_256 is incompatible with key spec SYMMETRIC_DEFAULT.")
}

// An encryption context is refused with an asymmetric key, also in a dry run without a ciphertext.
func TestRSAWithoutContext(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKeyOf("RSA_2048", kmsapi.UsageEncrypt)
	symmetric, _ := c.newKey()
	blob, sealed := c.encryptRSA(id, oaepSHA256, []byte("x")), c.encrypt(symmetric, "x")
	alg, context, ignore := new(oaepSHA256), map[string]string{"a": "b"}, []string{kmsapi.IgnoreCiphertext}
	for name, tt := range map[string]struct {
		op string
		in any
	}{
		"Encrypt": {"Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionAlgorithm: alg, EncryptionContext: context}},
		"Decrypt": {"Decrypt", &kmsapi.DecryptInput{KeyId: &id, CiphertextBlob: blob, EncryptionAlgorithm: alg, EncryptionContext: context}},
		"Decrypt, dry": {"Decrypt", &kmsapi.DecryptInput{KeyId: &id, EncryptionAlgorithm: alg, EncryptionContext: context,
			DryRun: new(true), DryRunModifiers: ignore}},
		"source": {"ReEncrypt", &kmsapi.ReEncryptInput{SourceKeyId: &id, CiphertextBlob: blob, SourceEncryptionAlgorithm: alg,
			SourceEncryptionContext: context, DestinationKeyId: &symmetric}},
		"destination": {"ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: sealed, DestinationKeyId: &id, DestinationEncryptionAlgorithm: alg,
			DestinationEncryptionContext: context}},
	} {
		t.Run(name, func(t *testing.T) {
			c.t = t
			_, err := call[request.None](c, tt.op, tt.in)
			wantError(t, err, kmsapi.ErrValidation, "EncryptionContext is not supported when encrypting/decrypting with asymmetric CMKs.")
		})
	}
}

// ReEncrypt works from and to symmetric and RSA keys.
func TestReEncryptKinds(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	symmetric, symmetricARN := c.newKey()
	first, firstARN := c.newKeyOf("RSA_2048", kmsapi.UsageEncrypt)
	second, secondARN := c.newKeyOf("RSA_2048", kmsapi.UsageEncrypt)
	context := map[string]string{"a": "b"}
	plaintext := bytes.Repeat([]byte{3}, 190)

	out := must[kmsapi.ReEncryptOutput](c, "ReEncrypt", &kmsapi.ReEncryptInput{
		CiphertextBlob: c.encrypt(symmetric, string(plaintext)), DestinationKeyId: &first, DestinationEncryptionAlgorithm: new(oaepSHA256),
	})
	if *out.SourceKeyId != symmetricARN || *out.KeyId != firstARN || *out.SourceEncryptionAlgorithm != kmsapi.AlgorithmSymmetric ||
		*out.DestinationEncryptionAlgorithm != oaepSHA256 || *out.SourceKeyMaterialId != c.currentMaterialID(symmetric) || out.DestinationKeyMaterialId != nil {
		t.Errorf("symmetric to RSA: ReEncrypt returned %+v", out)
	}
	out = must[kmsapi.ReEncryptOutput](c, "ReEncrypt", &kmsapi.ReEncryptInput{
		CiphertextBlob: out.CiphertextBlob, SourceKeyId: &first, SourceEncryptionAlgorithm: new(oaepSHA256),
		DestinationKeyId: &second, DestinationEncryptionAlgorithm: new(oaepSHA1),
	})
	if *out.SourceKeyId != firstARN || *out.KeyId != secondARN || out.SourceKeyMaterialId != nil || out.DestinationKeyMaterialId != nil {
		t.Errorf("RSA to RSA: ReEncrypt returned %+v", out)
	}
	if got, err := c.decryptRSA(second, oaepSHA1, out.CiphertextBlob); err != nil || !bytes.Equal(got, plaintext) {
		t.Errorf("RSA to RSA: got plaintext %x (%v), want %x", got, err, plaintext)
	}
	out = must[kmsapi.ReEncryptOutput](c, "ReEncrypt", &kmsapi.ReEncryptInput{
		CiphertextBlob: out.CiphertextBlob, SourceKeyId: &second, SourceEncryptionAlgorithm: new(oaepSHA1),
		DestinationKeyId: &symmetric, DestinationEncryptionContext: context,
	})
	if *out.SourceKeyId != secondARN || *out.KeyId != symmetricARN || out.SourceKeyMaterialId != nil || *out.DestinationKeyMaterialId != c.currentMaterialID(symmetric) {
		t.Errorf("RSA to symmetric: ReEncrypt returned %+v", out)
	}
	got := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: out.CiphertextBlob, EncryptionContext: context})
	if !bytes.Equal(got.Plaintext, plaintext) {
		t.Errorf("RSA to symmetric: got plaintext %x, want %x", got.Plaintext, plaintext)
	}

	_, err := call[request.None](c, "ReEncrypt", &kmsapi.ReEncryptInput{
		CiphertextBlob: c.encrypt(symmetric, string(plaintext)+"x"), DestinationKeyId: &first, DestinationEncryptionAlgorithm: new(oaepSHA256),
	})
	wantError(t, err, kmsapi.ErrValidation, "Algorithm RSAES_OAEP_SHA_256 and key spec RSA_2048 cannot encrypt data larger than 190 bytes.")
	_, err = call[request.None](c, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: c.encryptRSA(first, oaepSHA256, []byte("x")), SourceEncryptionAlgorithm: new(oaepSHA256), DestinationKeyId: &symmetric})
	wantError(t, err, kmsapi.ErrValidation, "SourceKeyId is required with the algorithm RSAES_OAEP_SHA_256.")
	_, err = call[request.None](c, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: c.encrypt(symmetric, "x"), DestinationKeyId: &first})
	wantError(t, err, kmsapi.ErrInvalidKeyUsage, "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048.")
}
