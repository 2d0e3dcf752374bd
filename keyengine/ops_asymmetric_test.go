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

// signingSpecs are the signing algorithms of each spec, in the order of AWS's tables.
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

// messageTypesOf returns the message types that an algorithm accepts.
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

// hashOf returns the hash in the name of an algorithm. It is of no use for ML-DSA.
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

// messageAs returns a message in the form of a message type.
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

// verifyElsewhere verifies a signature without our code.
func verifyElsewhere(spec, algorithm string, public, message, signature []byte) error {
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
			// Ed25519ph hashes its message, which is the digest.
			return ed25519.VerifyWithOptions(key, hashed(h, hashed(h, message)), signature, &ed25519.Options{Hash: h})
		}
		return ed25519.VerifyWithOptions(key, message, signature, &ed25519.Options{})
	case *mldsa.PublicKey:
		return mldsa.Verify(key, message, signature, nil)
	}
	return errors.New("a key of a kind that is not known here")
}

func (c *testCluster) sign(id, algorithm, kind string, message []byte) []byte {
	c.t.Helper()
	out := must[kmsapi.SignOutput](c, "Sign", &kmsapi.SignInput{KeyId: &id, SigningAlgorithm: &algorithm, MessageType: &kind, Message: message})
	if !strings.HasSuffix(*out.KeyId, "key/"+id) || *out.SigningAlgorithm != algorithm {
		c.t.Errorf("Sign returned key %s, algorithm %s", *out.KeyId, *out.SigningAlgorithm)
	}
	return out.Signature
}

// verify calls Verify, which answers an invalid signature with an error.
func (c *testCluster) verify(id, algorithm, kind string, message, signature []byte) error {
	c.t.Helper()
	out, err := call[kmsapi.VerifyOutput](c, "Verify", &kmsapi.VerifyInput{
		KeyId: &id, SigningAlgorithm: &algorithm, MessageType: &kind, Message: message, Signature: signature,
	})
	if err == nil && (!*out.SignatureValid || !strings.HasSuffix(*out.KeyId, "key/"+id) || *out.SigningAlgorithm != algorithm) {
		c.t.Errorf("Verify returned valid %v, key %s, algorithm %s", *out.SignatureValid, *out.KeyId, *out.SigningAlgorithm)
	}
	return err
}

// Signatures of each spec, algorithm and message type are verified by Verify and by other
// code, and no altered ones.
func TestSignAndVerify(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.allowManyRefusals()
	message := []byte("to be signed")
	for _, tt := range signingSpecs {
		t.Run(tt.spec, func(t *testing.T) {
			c.t = t
			id, _ := c.newKeyOf(tt.spec, kmsapi.UsageSign)
			public := c.publicKey(id)
			other := id // a key that the signatures are not of
			if !strings.HasPrefix(tt.spec, "RSA") {
				other, _ = c.newKeyOf(tt.spec, kmsapi.UsageSign)
			}
			for _, algorithm := range tt.algorithms {
				for _, kind := range messageTypesOf(algorithm) {
					sig := c.sign(id, algorithm, kind, messageAs(kind, algorithm, public, message))
					if err := verifyElsewhere(tt.spec, algorithm, public, message, sig); err != nil {
						t.Errorf("%s of %s: other code refuses the signature: %v", algorithm, kind, err)
					}
					for _, again := range messageTypesOf(algorithm) {
						m := messageAs(again, algorithm, public, message)
						if err := c.verify(id, algorithm, again, m, sig); err != nil {
							t.Errorf("%s of %s: Verify with %s: %v", algorithm, kind, again, err)
						}
						changed := bytes.Clone(m)
						changed[0] ^= 1
						wantError(t, c.verify(id, algorithm, again, changed, sig), kmsapi.ErrInvalidSignatureValue, "")
					}
					c.checkAlteredSignatures(id, algorithm, kind, messageAs(kind, algorithm, public, message), sig)
					if other != id {
						otherMessage := messageAs(kind, algorithm, c.publicKey(other), message)
						wantError(t, c.verify(other, algorithm, kind, otherMessage, sig), kmsapi.ErrInvalidSignatureValue, "")
					}
				}
			}
		})
	}
}

// checkAlteredSignatures checks that Verify refuses everything similar to a signature.
func (c *testCluster) checkAlteredSignatures(id, algorithm, kind string, message, sig []byte) {
	c.t.Helper()
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
		err := c.verify(id, algorithm, kind, message, edit(bytes.Clone(sig)))
		if !errors.Is(err, kmsapi.ErrInvalidSignatureValue) {
			c.t.Errorf("%s of %s with another %s: got error %v, want KMSInvalidSignatureException", algorithm, kind, name, err)
		}
	}
	if !strings.HasPrefix(algorithm, "RSASSA") || kind != "RAW" {
		return
	}
	for _, o := range rsaSigning {
		if err := c.verify(id, o, kind, message, sig); o != algorithm && !errors.Is(err, kmsapi.ErrInvalidSignatureValue) {
			c.t.Errorf("%s verified as %s: got error %v, want KMSInvalidSignatureException", algorithm, o, err)
		}
	}
}

// Two signatures of the same message differ, except with PKCS #1 v1.5, Ed25519, and
// secp256k1, which follows RFC 6979.
func TestSignatureIsFresh(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	for _, tt := range []struct {
		spec, algorithm string
		fresh           bool
	}{
		{"RSA_2048", "RSASSA_PSS_SHA_256", true}, {"RSA_2048", "RSASSA_PKCS1_V1_5_SHA_256", false},
		{"ECC_NIST_P256", "ECDSA_SHA_256", true}, {"ECC_SECG_P256K1", "ECDSA_SHA_256", false},
		{"ECC_NIST_EDWARDS25519", "ED25519_SHA_512", false}, {"ML_DSA_44", "ML_DSA_SHAKE_256", true},
	} {
		id, _ := c.newKeyOf(tt.spec, kmsapi.UsageSign)
		a, b := c.sign(id, tt.algorithm, "RAW", []byte("m")), c.sign(id, tt.algorithm, "RAW", []byte("m"))
		if bytes.Equal(a, b) == tt.fresh {
			t.Errorf("%s: two signatures are equal: %v, want %v", tt.algorithm, tt.fresh, !tt.fresh)
		}
	}
}

// Sign and Verify refuse a message that the algorithm does not accept in the same way, also
// in a dry run.
func TestMessages(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
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
			id, _ = c.newKeyOf(tt.spec, kmsapi.UsageSign)
			ids[tt.spec] = id
		}
		want := strings.NewReplacer("%k", tt.kind, "%a", tt.algorithm, "%s", tt.spec).Replace(tt.message)
		for _, dry := range []bool{false, true} {
			_, err := call[kmsapi.SignOutput](c, "Sign", &kmsapi.SignInput{
				KeyId: &id, SigningAlgorithm: &tt.algorithm, MessageType: &tt.kind, Message: make([]byte, tt.size), DryRun: &dry,
			})
			wantError(t, err, kmsapi.ErrValidation, want)
			_, err = call[kmsapi.VerifyOutput](c, "Verify", &kmsapi.VerifyInput{
				KeyId: &id, SigningAlgorithm: &tt.algorithm, MessageType: &tt.kind, Message: make([]byte, tt.size), Signature: []byte("s"), DryRun: &dry,
			})
			wantError(t, err, kmsapi.ErrValidation, want)
		}
	}
	id := ids["ECC_NIST_P256"]
	for _, size := range []int{1, 4096} {
		b := make([]byte, size)
		if err := c.verify(id, "ECDSA_SHA_256", "RAW", b, c.sign(id, "ECDSA_SHA_256", "RAW", b)); err != nil {
			t.Errorf("verifying a message of %d bytes: %v", size, err)
		}
	}
	for _, size := range []int{0, 4097} {
		_, err := call[kmsapi.SignOutput](c, "Sign", &kmsapi.SignInput{KeyId: &id, SigningAlgorithm: new("ECDSA_SHA_256"), Message: make([]byte, size)})
		wantError(t, err, kmsapi.ErrValidation, "…")
	}
	// The default message type is RAW.
	sig := must[kmsapi.SignOutput](c, "Sign", &kmsapi.SignInput{KeyId: &id, SigningAlgorithm: new("ECDSA_SHA_256"), Message: make([]byte, 32)}).Signature
	if err := c.verify(id, "ECDSA_SHA_256", "RAW", make([]byte, 32), sig); err != nil {
		t.Errorf("verifying a message that was signed without a type: %v", err)
	}
}

// A key signs only with the algorithms of its spec.
func TestSigningAlgorithms(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	for _, tt := range signingSpecs {
		if tt.spec == "RSA_3072" || tt.spec == "RSA_4096" {
			continue // as RSA_2048, and slow to make
		}
		id, _ := c.newKeyOf(tt.spec, kmsapi.UsageSign)
		for _, algorithm := range kmsapi.EnumOf("SigningAlgorithmSpec").Values() {
			if slices.Contains(tt.algorithms, algorithm) {
				continue
			}
			want := "Algorithm " + algorithm + " is incompatible with key spec " + tt.spec + "."
			_, err := call[kmsapi.SignOutput](c, "Sign", &kmsapi.SignInput{KeyId: &id, SigningAlgorithm: &algorithm, Message: []byte("m")})
			wantError(t, err, kmsapi.ErrInvalidKeyUsage, want)
			wantError(t, c.verify(id, algorithm, "RAW", []byte("m"), []byte("s")), kmsapi.ErrInvalidKeyUsage, want)
		}
		_, err := call[kmsapi.SignOutput](c, "Sign", &kmsapi.SignInput{KeyId: &id, SigningAlgorithm: new("ECDSA_SHA_1"), Message: []byte("m")})
		wantError(t, err, kmsapi.ErrValidation, "…")
	}
}

// GetPublicKey returns the key's spec, usage, and the algorithms of that usage.
func TestPublicKeys(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
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
		id, arn := c.newKeyOf(tt.spec, tt.usage)
		out := must[kmsapi.GetPublicKeyOutput](c, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &arn})
		if *out.KeyId != arn || *out.KeySpec != tt.spec || *out.KeyUsage != tt.usage {
			t.Errorf("%s for %s: got key %s, spec %s, usage %s", tt.spec, tt.usage, *out.KeyId, *out.KeySpec, *out.KeyUsage)
		}
		if !slices.Equal(out.EncryptionAlgorithms, tt.encryption) || !slices.Equal(out.SigningAlgorithms, tt.signing) || !slices.Equal(out.KeyAgreementAlgorithms, tt.agreement) ||
			!slices.Equal(out.EncapsulationAlgorithms, tt.encapsulation) {
			t.Errorf("%s for %s: got algorithms %v, %v, %v, %v", tt.spec, tt.usage, out.EncryptionAlgorithms, out.SigningAlgorithms, out.KeyAgreementAlgorithms, out.EncapsulationAlgorithms)
		}
		old := kmsapi.EnumOf("CustomerMasterKeySpec").Has(tt.spec)
		if (out.CustomerMasterKeySpec != nil) != old || old && *out.CustomerMasterKeySpec != tt.spec {
			t.Errorf("%s: CustomerMasterKeySpec is %v", tt.spec, out.CustomerMasterKeySpec)
		}
		if tt.spec != "ECC_SECG_P256K1" && !strings.HasPrefix(tt.spec, "ML") {
			if _, err := x509.ParsePKIXPublicKey(out.PublicKey); err != nil {
				t.Errorf("%s: parsing the public key: %v", tt.spec, err)
			}
		}
		if !bytes.Equal(c.publicKey(id), out.PublicKey) {
			t.Errorf("%s: GetPublicKey returned two different public keys", tt.spec)
		}
	}
	symmetric, symmetricARN := c.newKey()
	mac, macARN := c.newKeyOf("HMAC_256", kmsapi.UsageMac)
	for id, arn := range map[string]string{symmetric: symmetricARN, mac: macARN} {
		_, err := call[kmsapi.GetPublicKeyOutput](c, "GetPublicKey", &kmsapi.GetPublicKeyInput{KeyId: &id})
		wantError(t, err, kmsapi.ErrUnsupported, arn+" is not an asymmetric KMS key.")
	}
}

// Each operation refuses keys of other usages.
func TestWrongUsage(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	peer, _ := c.newKeyOf("ECC_NIST_P256", kmsapi.UsageAgree)
	public := c.publicKey(peer)
	operations := []struct {
		name, usage string
		in          func(id string) any
	}{
		{"Sign", kmsapi.UsageSign, func(id string) any { return c.signInput(id) }},
		{"Verify", kmsapi.UsageSign, func(id string) any {
			return &kmsapi.VerifyInput{KeyId: &id, Message: []byte("m"), Signature: []byte("s"), SigningAlgorithm: new("ECDSA_SHA_256")}
		}},
		{"GenerateMac", kmsapi.UsageMac, func(id string) any { return c.macInput(id) }},
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
		id, arn := c.newKeyOf(k.spec, k.usage)
		for _, op := range operations {
			if op.usage == k.usage {
				continue
			}
			_, err := call[request.None](c, op.name, op.in(id))
			wantError(t, err, kmsapi.ErrInvalidKeyUsage, arn+" key usage is "+k.usage+" which is not valid for "+op.name+".")
		}
	}
	// The right usage with the default algorithm, which is that of symmetric keys.
	const other = "Algorithm SYMMETRIC_DEFAULT is incompatible with key spec RSA_2048."
	id, _ := c.newKeyOf("RSA_2048", kmsapi.UsageEncrypt)
	for op, in := range map[string]any{
		"GenerateDataKey":                     &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256")},
		"GenerateDataKeyWithoutPlaintext":     &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: new("AES_256")},
		"GenerateDataKeyPair":                 &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")},
		"GenerateDataKeyPairWithoutPlaintext": &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")},
	} {
		_, err := call[request.None](c, op, in)
		wantError(t, err, kmsapi.ErrInvalidKeyUsage, "You cannot generate a data key with an asymmetric CMK")
	}
	_, err := call[request.None](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, kmsapi.ErrInvalidKeyUsage, other)
}
