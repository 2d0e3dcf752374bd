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

// holding makes a key for imported material that has some.
func (r *room) holding(spec, usage string, material []byte) (id, arn string) {
	r.t.Helper()
	id, arn = r.keyToImport(spec, usage)
	r.give(id, material)
	return id, arn
}

func (r *room) encryptRSA(id, algorithm string, plaintext []byte) []byte {
	r.t.Helper()
	return must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: plaintext, EncryptionAlgorithm: &algorithm}).CiphertextBlob
}

func (r *room) decryptRSA(id, algorithm string, blob []byte) ([]byte, error) {
	r.t.Helper()
	out, err := call[kmsapi.DecryptOutput](r, "Decrypt", &kmsapi.DecryptInput{KeyId: &id, CiphertextBlob: blob, EncryptionAlgorithm: &algorithm})
	if err != nil {
		return nil, err
	}
	if out.KeyMaterialId != nil || *out.EncryptionAlgorithm != algorithm {
		r.t.Errorf("Decrypt answered %s and material %v", *out.EncryptionAlgorithm, out.KeyMaterialId)
	}
	return out.Plaintext, nil
}

// TestEncryptRSA: what Encrypt makes, Decrypt and others open, up to the size that
// OAEP can take and no further.
func TestEncryptRSA(t *testing.T) {
	r := newRoom(t)
	for _, tt := range []struct {
		spec         string
		sha1, sha256 int
	}{
		{"RSA_2048", 214, 190}, {"RSA_3072", 342, 318}, {"RSA_4096", 470, 446},
	} {
		t.Run(tt.spec, func(t *testing.T) {
			r.t = t
			m := rsaKey(t, tt.spec)
			id, arn := r.holding(tt.spec, kmsapi.UsageEncrypt, m)
			parsed, err := x509.ParsePKCS8PrivateKey(m)
			if err != nil {
				t.Fatal(err)
			}
			private := parsed.(*rsa.PrivateKey)
			for algorithm, most := range map[string]int{oaepSHA1: tt.sha1, oaepSHA256: tt.sha256} {
				h := map[string]crypto.Hash{oaepSHA1: crypto.SHA1, oaepSHA256: crypto.SHA256}[algorithm]
				for _, size := range []int{1, most} {
					plaintext := bytes.Repeat([]byte{7}, size)
					out := must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: plaintext, EncryptionAlgorithm: &algorithm})
					if *out.KeyId != arn || *out.EncryptionAlgorithm != algorithm || len(out.CiphertextBlob) != private.Size() {
						t.Errorf("answer of %s with %s, %d bytes", *out.KeyId, *out.EncryptionAlgorithm, len(out.CiphertextBlob))
					}
					if got, err := rsa.DecryptOAEP(h.New(), nil, private, out.CiphertextBlob, nil); err != nil || !bytes.Equal(got, plaintext) {
						t.Errorf("%s, %d bytes, elsewhere: %v", algorithm, size, err)
					}
					if got, err := r.decryptRSA(id, algorithm, out.CiphertextBlob); err != nil || !bytes.Equal(got, plaintext) {
						t.Errorf("%s, %d bytes: %v", algorithm, size, err)
					}
				}
				for _, dry := range []bool{false, true} {
					_, err := call[request.None](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: make([]byte, most+1), EncryptionAlgorithm: &algorithm, DryRun: &dry})
					wantError(t, err, kmsapi.ErrValidation, fmt.Sprintf("Algorithm %s and key spec %s cannot encrypt data larger than %d bytes.", algorithm, tt.spec, most))
				}
			}
		})
	}
}

// TestDecryptRSARefuses: whatever is wrong with a ciphertext, the error is the same.
func TestDecryptRSARefuses(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKeyOf("RSA_2048", kmsapi.UsageEncrypt)
	other, _ := r.newKeyOf("RSA_2048", kmsapi.UsageEncrypt)
	blob := r.encryptRSA(id, oaepSHA256, []byte("x"))
	if a := r.encryptRSA(id, oaepSHA256, []byte("x")); bytes.Equal(a, blob) {
		t.Error("two ciphertexts are the same")
	}
	flipped := bytes.Clone(blob)
	flipped[100] ^= 1
	for name, b := range map[string][]byte{
		"flipped bit": flipped, "cut": blob[:255], "longer": append(bytes.Clone(blob), 0), "one byte": {1},
		"zeros": make([]byte, 256), "above the modulus": bytes.Repeat([]byte{0xff}, 256), "by SHA-1": r.encryptRSA(id, oaepSHA1, []byte("x")),
		"another key's": r.encryptRSA(other, oaepSHA256, []byte("x")),
	} {
		_, err := r.decryptRSA(id, oaepSHA256, b)
		if e, ok := errors.AsType[*kmsapi.Error](err); !ok || *e != *kmsapi.ErrInvalidCiphertext {
			t.Errorf("%s: %v", name, err)
		}
	}
	symmetric, _ := r.newKey()
	_, err := r.decryptRSA(id, oaepSHA256, r.seal(symmetric, "x"))
	wantError(t, err, kmsapi.ErrIncorrectKey, "…")
	_, err = call[request.None](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionAlgorithm: new(oaepSHA256)})
	wantError(t, err, kmsapi.ErrValidation, "KeyId is required with the algorithm RSAES_OAEP_SHA_256.")
	_, err = call[request.None](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	wantError(t, err, kmsapi.ErrInvalidCiphertext, "")
	// The algorithm's default is that of other ciphertexts, which this is not.
	for _, algorithm := range []*string{nil, new(kmsapi.AlgorithmSymmetric)} {
		_, err = call[request.None](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob, KeyId: &id, EncryptionAlgorithm: algorithm})
		wantError(t, err, kmsapi.ErrInvalidCiphertext, "")
		_, err = call[request.None](r, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: blob, SourceKeyId: &id, SourceEncryptionAlgorithm: algorithm, DestinationKeyId: &symmetric})
		wantError(t, err, kmsapi.ErrInvalidCiphertext, "")
	}
	_, err = call[request.None](r, "Decrypt", &kmsapi.DecryptInput{KeyId: &id, DryRun: new(true), DryRunModifiers: []string{kmsapi.IgnoreCiphertext}})
	wantError(t, err, kmsapi.ErrInvalidKeyUsage, "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048.")
	_, err = r.decryptRSA(symmetric, oaepSHA256, blob)
	wantError(t, err, kmsapi.ErrInvalidKeyUsage, "Algorithm RSAES_OAEP_SHA_256 is incompatible with key spec SYMMETRIC_DEFAULT.")
}

// TestRSAWithoutContext: an asymmetric key binds no context, so that none may be
// given, also where a dry run leaves out the ciphertext.
func TestRSAWithoutContext(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKeyOf("RSA_2048", kmsapi.UsageEncrypt)
	symmetric, _ := r.newKey()
	blob, sealed := r.encryptRSA(id, oaepSHA256, []byte("x")), r.seal(symmetric, "x")
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
			r.t = t
			_, err := call[request.None](r, tt.op, tt.in)
			wantError(t, err, kmsapi.ErrValidation, "EncryptionContext is not supported when encrypting/decrypting with asymmetric CMKs.")
		})
	}
}

// TestReEncryptKinds: either side may be symmetric or RSA.
func TestReEncryptKinds(t *testing.T) {
	r := newRoom(t)
	symmetric, symmetricARN := r.newKey()
	first, firstARN := r.newKeyOf("RSA_2048", kmsapi.UsageEncrypt)
	second, secondARN := r.newKeyOf("RSA_2048", kmsapi.UsageEncrypt)
	context := map[string]string{"a": "b"}
	plaintext := bytes.Repeat([]byte{3}, 190)

	out := must[kmsapi.ReEncryptOutput](r, "ReEncrypt", &kmsapi.ReEncryptInput{
		CiphertextBlob: r.seal(symmetric, string(plaintext)), DestinationKeyId: &first, DestinationEncryptionAlgorithm: new(oaepSHA256),
	})
	if *out.SourceKeyId != symmetricARN || *out.KeyId != firstARN || *out.SourceEncryptionAlgorithm != kmsapi.AlgorithmSymmetric ||
		*out.DestinationEncryptionAlgorithm != oaepSHA256 || *out.SourceKeyMaterialId != r.current(symmetric) || out.DestinationKeyMaterialId != nil {
		t.Errorf("symmetric to RSA: %+v", out)
	}
	out = must[kmsapi.ReEncryptOutput](r, "ReEncrypt", &kmsapi.ReEncryptInput{
		CiphertextBlob: out.CiphertextBlob, SourceKeyId: &first, SourceEncryptionAlgorithm: new(oaepSHA256),
		DestinationKeyId: &second, DestinationEncryptionAlgorithm: new(oaepSHA1),
	})
	if *out.SourceKeyId != firstARN || *out.KeyId != secondARN || out.SourceKeyMaterialId != nil || out.DestinationKeyMaterialId != nil {
		t.Errorf("RSA to RSA: %+v", out)
	}
	if got, err := r.decryptRSA(second, oaepSHA1, out.CiphertextBlob); err != nil || !bytes.Equal(got, plaintext) {
		t.Errorf("RSA to RSA opened to %x, %v", got, err)
	}
	out = must[kmsapi.ReEncryptOutput](r, "ReEncrypt", &kmsapi.ReEncryptInput{
		CiphertextBlob: out.CiphertextBlob, SourceKeyId: &second, SourceEncryptionAlgorithm: new(oaepSHA1),
		DestinationKeyId: &symmetric, DestinationEncryptionContext: context,
	})
	if *out.SourceKeyId != secondARN || *out.KeyId != symmetricARN || out.SourceKeyMaterialId != nil || *out.DestinationKeyMaterialId != r.current(symmetric) {
		t.Errorf("RSA to symmetric: %+v", out)
	}
	got := must[kmsapi.DecryptOutput](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: out.CiphertextBlob, EncryptionContext: context})
	if !bytes.Equal(got.Plaintext, plaintext) {
		t.Errorf("RSA to symmetric opened to %x", got.Plaintext)
	}

	_, err := call[request.None](r, "ReEncrypt", &kmsapi.ReEncryptInput{
		CiphertextBlob: r.seal(symmetric, string(plaintext)+"x"), DestinationKeyId: &first, DestinationEncryptionAlgorithm: new(oaepSHA256),
	})
	wantError(t, err, kmsapi.ErrValidation, "Algorithm RSAES_OAEP_SHA_256 and key spec RSA_2048 cannot encrypt data larger than 190 bytes.")
	_, err = call[request.None](r, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: r.encryptRSA(first, oaepSHA256, []byte("x")), SourceEncryptionAlgorithm: new(oaepSHA256), DestinationKeyId: &symmetric})
	wantError(t, err, kmsapi.ErrValidation, "SourceKeyId is required with the algorithm RSAES_OAEP_SHA_256.")
	_, err = call[request.None](r, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: r.seal(symmetric, "x"), DestinationKeyId: &first})
	wantError(t, err, kmsapi.ErrInvalidKeyUsage, "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048.")
}
