package keyengine

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha3"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"

	"filippo.io/mldsa"
	pkix "filippo.io/mldsa/x509"
	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	secgecdsa "github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"

	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// signingSpecs are AWS's tables of what keys can sign with, in AWS's order.
var signingSpecs = []struct {
	spec       string
	algorithms []string
}{
	{"RSA_2048", rsaSigning}, {"RSA_3072", rsaSigning}, {"RSA_4096", rsaSigning},
	{"ECC_NIST_P256", []string{"ECDSA_SHA_256"}}, {"ECC_NIST_P384", []string{"ECDSA_SHA_384"}}, {"ECC_NIST_P521", []string{"ECDSA_SHA_512"}},
	{"ECC_SECG_P256K1", []string{"ECDSA_SHA_256"}},
	{"ECC_NIST_EDWARDS25519", []string{"ED25519_SHA_512", "ED25519_PH_SHA_512"}},
	{"ML_DSA_44", []string{"ML_DSA_SHAKE_256"}}, {"ML_DSA_65", []string{"ML_DSA_SHAKE_256"}}, {"ML_DSA_87", []string{"ML_DSA_SHAKE_256"}},
}

var rsaSigning = []string{
	"RSASSA_PKCS1_V1_5_SHA_256", "RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512",
	"RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512",
}

// messageTypesOf are the types of message that an algorithm takes.
func messageTypesOf(algorithm string) []string {
	switch algorithm {
	case "ED25519_SHA_512":
		return []string{"RAW"}
	case "ED25519_PH_SHA_512":
		return []string{"DIGEST"}
	case "ML_DSA_SHAKE_256":
		return []string{"RAW", "EXTERNAL_MU"}
	}
	return []string{"RAW", "DIGEST"}
}

// hashOf is the hash that an algorithm's name ends with; for ML-DSA that of no use.
func hashOf(algorithm string) crypto.Hash {
	switch algorithm[len(algorithm)-3:] {
	case "384":
		return crypto.SHA384
	case "512":
		return crypto.SHA512
	}
	return crypto.SHA256
}

func hashed(h crypto.Hash, b []byte) []byte {
	d := h.New()
	d.Write(b)
	return d.Sum(nil)
}

// messageAs is a message as Sign takes it by a type.
func messageAs(kind, algorithm string, public, message []byte) []byte {
	switch kind {
	case "DIGEST":
		return hashed(hashOf(algorithm), message)
	case "EXTERNAL_MU":
		key, err := pkix.ParsePKIXPublicKey(public)
		if err != nil {
			return nil
		}
		tr := sha3.SumSHAKE256(key.(*mldsa.PublicKey).Bytes(), 64)
		return sha3.SumSHAKE256(slices.Concat(tr, []byte{0, 0}, message), 64) // FIPS 204, algorithm 7
	}
	return message
}

// verifiesElsewhere checks a signature of a message with code that is not ours.
func verifiesElsewhere(spec, algorithm string, public, message, signature []byte) error {
	wrong, h := errors.New("not a signature"), hashOf(algorithm)
	if spec == "ECC_SECG_P256K1" {
		key, err := secp256k1.ParsePubKey(public[len(public)-65:])
		if err != nil {
			return err
		}
		s, err := secgecdsa.ParseDERSignature(signature)
		if err == nil && !s.Verify(hashed(h, message), key) {
			err = wrong
		}
		return err
	}
	parsed, err := pkix.ParsePKIXPublicKey(public)
	if err != nil {
		return err
	}
	switch key := parsed.(type) {
	case *rsa.PublicKey:
		if strings.HasPrefix(algorithm, "RSASSA_PSS") {
			return rsa.VerifyPSS(key, h, hashed(h, message), signature, &rsa.PSSOptions{SaltLength: h.Size(), Hash: h})
		}
		return rsa.VerifyPKCS1v15(key, h, hashed(h, message), signature)
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(key, hashed(h, message), signature) {
			return wrong
		}
		return nil
	case ed25519.PublicKey:
		if algorithm == "ED25519_PH_SHA_512" {
			// The digest is the message, which Ed25519ph hashes.
			return ed25519.VerifyWithOptions(key, hashed(h, hashed(h, message)), signature, &ed25519.Options{Hash: h})
		}
		return ed25519.VerifyWithOptions(key, message, signature, &ed25519.Options{})
	case *mldsa.PublicKey:
		return mldsa.Verify(key, message, signature, nil)
	}
	return errors.New("a key of a kind that is not known here")
}

func (r *room) signs(id, algorithm, kind string, message []byte) []byte {
	r.t.Helper()
	out := must[kmsapi.SignOutput](r, "Sign", &kmsapi.SignInput{KeyId: &id, SigningAlgorithm: &algorithm, MessageType: &kind, Message: message})
	if !strings.HasSuffix(*out.KeyId, "key/"+id) || *out.SigningAlgorithm != algorithm {
		r.t.Errorf("Sign answered with %s and %s", *out.KeyId, *out.SigningAlgorithm)
	}
	return out.Signature
}

// verifies asks Verify; a signature that is none is an error, never an answer.
func (r *room) verifies(id, algorithm, kind string, message, signature []byte) error {
	r.t.Helper()
	out, err := call[kmsapi.VerifyOutput](r, "Verify", &kmsapi.VerifyInput{
		KeyId: &id, SigningAlgorithm: &algorithm, MessageType: &kind, Message: message, Signature: signature,
	})
	if err == nil && (!*out.SignatureValid || !strings.HasSuffix(*out.KeyId, "key/"+id) || *out.SigningAlgorithm != algorithm) {
		r.t.Errorf("Verify answered %v of %s with %s", *out.SignatureValid, *out.KeyId, *out.SigningAlgorithm)
	}
	return err
}

// TestSignAndVerify: what each kind of key signs, in each form of the message, is a
// signature to us and to others, and nothing else is.
func TestSignAndVerify(t *testing.T) {
	r := newRoom(t)
	r.manyRefusals()
	message := []byte("to be signed")
	for _, tt := range signingSpecs {
		t.Run(tt.spec, func(t *testing.T) {
			r.t = t
			id, _ := r.newKeyOf(tt.spec, kmsapi.UsageSign)
			public := r.publicKey(id)
			other := id // a key that the signatures are not of
			if !strings.HasPrefix(tt.spec, "RSA") {
				other, _ = r.newKeyOf(tt.spec, kmsapi.UsageSign)
			}
			for _, algorithm := range tt.algorithms {
				for _, kind := range messageTypesOf(algorithm) {
					sig := r.signs(id, algorithm, kind, messageAs(kind, algorithm, public, message))
					if err := verifiesElsewhere(tt.spec, algorithm, public, message, sig); err != nil {
						t.Errorf("%s of %s, elsewhere: %v", algorithm, kind, err)
					}
					for _, again := range messageTypesOf(algorithm) {
						m := messageAs(again, algorithm, public, message)
						if err := r.verifies(id, algorithm, again, m, sig); err != nil {
							t.Errorf("%s of %s, verified as %s: %v", algorithm, kind, again, err)
						}
						changed := bytes.Clone(m)
						changed[0] ^= 1
						wantError(t, r.verifies(id, algorithm, again, changed, sig), kmsapi.ErrInvalidSignatureValue, "")
					}
					r.refusesAltered(id, algorithm, kind, messageAs(kind, algorithm, public, message), sig)
					if other != id {
						otherMessage := messageAs(kind, algorithm, r.publicKey(other), message)
						wantError(t, r.verifies(other, algorithm, kind, otherMessage, sig), kmsapi.ErrInvalidSignatureValue, "")
					}
				}
			}
		})
	}
}

// refusesAltered offers everything near a signature in its place.
func (r *room) refusesAltered(id, algorithm, kind string, message, sig []byte) {
	r.t.Helper()
	for name, edit := range map[string]func([]byte) []byte{
		"first byte":  func(b []byte) []byte { b[0] ^= 1; return b },
		"middle byte": func(b []byte) []byte { b[len(b)/2] ^= 0x10; return b },
		"last byte":   func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"cut":         func(b []byte) []byte { return b[:len(b)-1] },
		"longer":      func(b []byte) []byte { return append(b, 0) },
		"one byte":    func(b []byte) []byte { return b[:1] },
		"zeros":       func(b []byte) []byte { return make([]byte, len(b)) },
		"too long":    func([]byte) []byte { return bytes.Repeat([]byte{1}, 6144) },
	} {
		err := r.verifies(id, algorithm, kind, message, edit(bytes.Clone(sig)))
		if !errors.Is(err, kmsapi.ErrInvalidSignatureValue) {
			r.t.Errorf("%s of %s with another %s: %v", algorithm, kind, name, err)
		}
	}
	if !strings.HasPrefix(algorithm, "RSASSA") || kind != "RAW" {
		return
	}
	for _, o := range rsaSigning {
		if err := r.verifies(id, o, kind, message, sig); o != algorithm && !errors.Is(err, kmsapi.ErrInvalidSignatureValue) {
			r.t.Errorf("%s as %s: %v", algorithm, o, err)
		}
	}
}

// TestSignatureIsFresh: all but PKCS #1 and Ed25519 (and secp256k1's of RFC 6979)
// sign the same message otherwise each time.
func TestSignatureIsFresh(t *testing.T) {
	r := newRoom(t)
	for _, tt := range []struct {
		spec, algorithm string
		fresh           bool
	}{
		{"RSA_2048", "RSASSA_PSS_SHA_256", true}, {"RSA_2048", "RSASSA_PKCS1_V1_5_SHA_256", false},
		{"ECC_NIST_P256", "ECDSA_SHA_256", true}, {"ECC_SECG_P256K1", "ECDSA_SHA_256", false},
		{"ECC_NIST_EDWARDS25519", "ED25519_SHA_512", false}, {"ML_DSA_44", "ML_DSA_SHAKE_256", true},
	} {
		id, _ := r.newKeyOf(tt.spec, kmsapi.UsageSign)
		a, b := r.signs(id, tt.algorithm, "RAW", []byte("m")), r.signs(id, tt.algorithm, "RAW", []byte("m"))
		if bytes.Equal(a, b) == tt.fresh {
			t.Errorf("%s: two signatures are the same: %v", tt.algorithm, !tt.fresh)
		}
	}
}

// TestMessages: what an algorithm does not take, Sign and Verify refuse alike, and
// before a dry run says that it would have gone well.
func TestMessages(t *testing.T) {
	r := newRoom(t)
	ids := make(map[string]string)
	const noType, noTypeOf, noLength = "Message type %k is incompatible with algorithm %a.", "Message type %k is incompatible with key spec %s.", "Digest is invalid length for algorithm %a."
	for _, tt := range []struct {
		spec, algorithm, kind string
		size                  int
		message               string
	}{
		{"RSA_2048", "RSASSA_PSS_SHA_256", "DIGEST", 31, noLength},
		{"RSA_2048", "RSASSA_PSS_SHA_256", "DIGEST", 33, noLength},
		{"RSA_2048", "RSASSA_PSS_SHA_384", "DIGEST", 32, noLength},
		{"RSA_2048", "RSASSA_PKCS1_V1_5_SHA_512", "DIGEST", 48, noLength},
		{"RSA_2048", "RSASSA_PKCS1_V1_5_SHA_256", "EXTERNAL_MU", 64, noType},
		{"ECC_NIST_P256", "ECDSA_SHA_256", "DIGEST", 48, noLength},
		{"ECC_NIST_P384", "ECDSA_SHA_384", "DIGEST", 32, noLength},
		{"ECC_NIST_P521", "ECDSA_SHA_512", "DIGEST", 66, noLength},
		{"ECC_SECG_P256K1", "ECDSA_SHA_256", "DIGEST", 1, noLength},
		{"ECC_SECG_P256K1", "ECDSA_SHA_256", "EXTERNAL_MU", 64, noType},
		{"ECC_NIST_EDWARDS25519", "ED25519_SHA_512", "DIGEST", 64, noType},
		{"ECC_NIST_EDWARDS25519", "ED25519_SHA_512", "EXTERNAL_MU", 64, noType},
		{"ECC_NIST_EDWARDS25519", "ED25519_PH_SHA_512", "RAW", 64, noType},
		{"ECC_NIST_EDWARDS25519", "ED25519_PH_SHA_512", "DIGEST", 32, noLength},
		{"ML_DSA_65", "ML_DSA_SHAKE_256", "DIGEST", 64, noTypeOf},
		{"ML_DSA_65", "ML_DSA_SHAKE_256", "EXTERNAL_MU", 63, noLength},
		{"ML_DSA_65", "ML_DSA_SHAKE_256", "EXTERNAL_MU", 65, noLength},
	} {
		id, ok := ids[tt.spec]
		if !ok {
			id, _ = r.newKeyOf(tt.spec, kmsapi.UsageSign)
			ids[tt.spec] = id
		}
		want := strings.NewReplacer("%k", tt.kind, "%a", tt.algorithm, "%s", tt.spec).Replace(tt.message)
		for _, dry := range []bool{false, true} {
			_, err := call[kmsapi.SignOutput](r, "Sign", &kmsapi.SignInput{
				KeyId: &id, SigningAlgorithm: &tt.algorithm, MessageType: &tt.kind, Message: make([]byte, tt.size), DryRun: &dry,
			})
			wantError(t, err, kmsapi.ErrValidation, want)
			_, err = call[kmsapi.VerifyOutput](r, "Verify", &kmsapi.VerifyInput{
				KeyId: &id, SigningAlgorithm: &tt.algorithm, MessageType: &tt.kind, Message: make([]byte, tt.size), Signature: []byte("s"), DryRun: &dry,
			})
			wantError(t, err, kmsapi.ErrValidation, want)
		}
	}
	id := ids["ECC_NIST_P256"]
	for _, size := range []int{1, 4096} {
		b := make([]byte, size)
		if err := r.verifies(id, "ECDSA_SHA_256", "RAW", b, r.signs(id, "ECDSA_SHA_256", "RAW", b)); err != nil {
			t.Errorf("a message of %d bytes: %v", size, err)
		}
	}
	for _, size := range []int{0, 4097} {
		_, err := call[kmsapi.SignOutput](r, "Sign", &kmsapi.SignInput{KeyId: &id, SigningAlgorithm: new("ECDSA_SHA_256"), Message: make([]byte, size)})
		wantError(t, err, kmsapi.ErrValidation, "…")
	}
	// Without a type a message is raw.
	sig := must[kmsapi.SignOutput](r, "Sign", &kmsapi.SignInput{KeyId: &id, SigningAlgorithm: new("ECDSA_SHA_256"), Message: make([]byte, 32)}).Signature
	if err := r.verifies(id, "ECDSA_SHA_256", "RAW", make([]byte, 32), sig); err != nil {
		t.Errorf("a message without a type: %v", err)
	}
}

// TestSigningAlgorithms: a key signs with its spec's algorithms and no others.
func TestSigningAlgorithms(t *testing.T) {
	r := newRoom(t)
	for _, tt := range signingSpecs {
		if tt.spec == "RSA_3072" || tt.spec == "RSA_4096" {
			continue // as RSA_2048, and slow to make
		}
		id, _ := r.newKeyOf(tt.spec, kmsapi.UsageSign)
		for _, algorithm := range kmsapi.EnumOf("SigningAlgorithmSpec").Values() {
			if slices.Contains(tt.algorithms, algorithm) {
				continue
			}
			want := "Algorithm " + algorithm + " is incompatible with key spec " + tt.spec + "."
			_, err := call[kmsapi.SignOutput](r, "Sign", &kmsapi.SignInput{KeyId: &id, SigningAlgorithm: &algorithm, Message: []byte("m")})
			wantError(t, err, kmsapi.ErrInvalidKeyUsage, want)
			wantError(t, r.verifies(id, algorithm, "RAW", []byte("m"), []byte("s")), kmsapi.ErrInvalidKeyUsage, want)
		}
		_, err := call[kmsapi.SignOutput](r, "Sign", &kmsapi.SignInput{KeyId: &id, SigningAlgorithm: new("ECDSA_SHA_1"), Message: []byte("m")})
		wantError(t, err, kmsapi.ErrValidation, "…")
	}
}

// TestPublicKeys: an answer says which key it is and what for; it has the list of
// algorithms of the key's usage and no other.
func TestPublicKeys(t *testing.T) {
	r := newRoom(t)
	for _, tt := range []struct {
		spec, usage                                   string
		encryption, signing, agreement, encapsulation []string
	}{
		{"RSA_2048", kmsapi.UsageEncrypt, []string{"RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"}, nil, nil, nil},
		{"RSA_2048", kmsapi.UsageSign, nil, rsaSigning, nil, nil},
		{"ECC_NIST_P256", kmsapi.UsageSign, nil, []string{"ECDSA_SHA_256"}, nil, nil},
		{"ECC_NIST_P384", kmsapi.UsageAgree, nil, nil, []string{"ECDH"}, nil},
		{"ECC_SECG_P256K1", kmsapi.UsageSign, nil, []string{"ECDSA_SHA_256"}, nil, nil},
		{"ECC_NIST_EDWARDS25519", kmsapi.UsageSign, nil, []string{"ED25519_SHA_512", "ED25519_PH_SHA_512"}, nil, nil},
		{"ML_DSA_44", kmsapi.UsageSign, nil, []string{"ML_DSA_SHAKE_256"}, nil, nil},
		{"ML_KEM_512", kmsapi.UsageEncapsulate, nil, nil, nil, []string{"ML_KEM"}},
		{"ML_KEM_1024", kmsapi.UsageEncapsulate, nil, nil, nil, []string{"ML_KEM"}},
	} {
		id, arn := r.newKeyOf(tt.spec, tt.usage)
		out := must[kmsapi.GetPublicKeyOutput](r, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &arn})
		if *out.KeyId != arn || *out.KeySpec != tt.spec || *out.KeyUsage != tt.usage {
			t.Errorf("%s for %s: answer is of %s, %s, %s", tt.spec, tt.usage, *out.KeyId, *out.KeySpec, *out.KeyUsage)
		}
		if !slices.Equal(out.EncryptionAlgorithms, tt.encryption) || !slices.Equal(out.SigningAlgorithms, tt.signing) || !slices.Equal(out.KeyAgreementAlgorithms, tt.agreement) ||
			!slices.Equal(out.EncapsulationAlgorithms, tt.encapsulation) {
			t.Errorf("%s for %s: algorithms %v, %v, %v, %v", tt.spec, tt.usage, out.EncryptionAlgorithms, out.SigningAlgorithms, out.KeyAgreementAlgorithms, out.EncapsulationAlgorithms)
		}
		old := kmsapi.EnumOf("CustomerMasterKeySpec").Has(tt.spec)
		if (out.CustomerMasterKeySpec != nil) != old || old && *out.CustomerMasterKeySpec != tt.spec {
			t.Errorf("%s: the older name of its spec is wrong", tt.spec)
		}
		if tt.spec != "ECC_SECG_P256K1" && !strings.HasPrefix(tt.spec, "ML") {
			if _, err := x509.ParsePKIXPublicKey(out.PublicKey); err != nil {
				t.Errorf("%s: %v", tt.spec, err)
			}
		}
		if !bytes.Equal(r.publicKey(id), out.PublicKey) {
			t.Errorf("%s: the public key is another one the second time", tt.spec)
		}
	}
	symmetric, symmetricARN := r.newKey()
	mac, macARN := r.newKeyOf("HMAC_256", kmsapi.UsageMac)
	for id, arn := range map[string]string{symmetric: symmetricARN, mac: macARN} {
		_, err := call[kmsapi.GetPublicKeyOutput](r, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &id})
		wantError(t, err, kmsapi.ErrUnsupported, arn+" is not an asymmetric KMS key.")
	}
}

// TestWrongUsage: each operation on keys of each usage.
func TestWrongUsage(t *testing.T) {
	r := newRoom(t)
	peer, _ := r.newKeyOf("ECC_NIST_P256", kmsapi.UsageAgree)
	public := r.publicKey(peer)
	operations := []struct {
		name, usage string
		in          func(id string) any
	}{
		{"Sign", kmsapi.UsageSign, func(id string) any { return r.signInput(id) }},
		{"Verify", kmsapi.UsageSign, func(id string) any {
			return &kmsapi.VerifyInput{KeyId: &id, Message: []byte("m"), Signature: []byte("s"), SigningAlgorithm: new("ECDSA_SHA_256")}
		}},
		{"GenerateMac", kmsapi.UsageMac, func(id string) any { return r.macInput(id) }},
		{"VerifyMac", kmsapi.UsageMac, func(id string) any {
			return &kmsapi.VerifyMacInput{KeyId: &id, Message: []byte("m"), Mac: []byte("m"), MacAlgorithm: new("HMAC_SHA_256")}
		}},
		{"DeriveSharedSecret", kmsapi.UsageAgree, func(id string) any {
			return &kmsapi.DeriveSharedSecretInput{KeyId: &id, KeyAgreementAlgorithm: new("ECDH"), PublicKey: public}
		}},
		{"Encapsulate", kmsapi.UsageEncapsulate, func(id string) any { return encapsulateInput(id) }},
		{"Decapsulate", kmsapi.UsageEncapsulate, func(id string) any { return decapsulateInput(id, make([]byte, 768)) }},
		{"Encrypt", kmsapi.UsageEncrypt, func(id string) any {
			return &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionAlgorithm: new("RSAES_OAEP_SHA_256")}
		}},
		{"Decrypt", kmsapi.UsageEncrypt, func(id string) any {
			return &kmsapi.DecryptInput{KeyId: &id, CiphertextBlob: make([]byte, 256), EncryptionAlgorithm: new("RSAES_OAEP_SHA_256")}
		}},
		{"GenerateDataKeyPair", kmsapi.UsageEncrypt, func(id string) any {
			return &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")}
		}},
		{"GenerateDataKeyPairWithoutPlaintext", kmsapi.UsageEncrypt, func(id string) any {
			return &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")}
		}},
	}
	for _, k := range []struct{ spec, usage string }{
		{kmsapi.SpecSymmetric, kmsapi.UsageEncrypt}, {"RSA_2048", kmsapi.UsageEncrypt}, {"RSA_2048", kmsapi.UsageSign},
		{"ECC_NIST_P256", kmsapi.UsageSign}, {"ECC_NIST_P256", kmsapi.UsageAgree}, {"HMAC_256", kmsapi.UsageMac}, {"ML_KEM_512", kmsapi.UsageEncapsulate},
	} {
		id, arn := r.newKeyOf(k.spec, k.usage)
		for _, op := range operations {
			if op.usage == k.usage {
				continue
			}
			_, err := call[request.None](r, op.name, op.in(id))
			wantError(t, err, kmsapi.ErrInvalidKeyUsage, arn+" key usage is "+k.usage+" which is not valid for "+op.name+".")
		}
	}
	// The right usage, but the other kind of encryption.
	const other = "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048."
	id, _ := r.newKeyOf("RSA_2048", kmsapi.UsageEncrypt)
	for op, in := range map[string]any{
		"GenerateDataKey":                     &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256")},
		"GenerateDataKeyWithoutPlaintext":     &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: new("AES_256")},
		"GenerateDataKeyPair":                 &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")},
		"GenerateDataKeyPairWithoutPlaintext": &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")},
	} {
		_, err := call[request.None](r, op, in)
		wantError(t, err, kmsapi.ErrInvalidKeyUsage, "You cannot generate a data key with an asymmetric CMK")
	}
	_, err := call[request.None](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, kmsapi.ErrInvalidKeyUsage, other)
}
