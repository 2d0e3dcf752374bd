package keyengine

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"reflect"
	"slices"
	"testing"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// wantPair checks, without our code, that a private key in PKCS #8 and a SubjectPublicKeyInfo
// belong together.
func wantPair(t testing.TB, spec string, private, public []byte) {
	t.Helper()
	if spec == "ECC_SECG_P256K1" {
		var outer struct {
			Version   int
			Algorithm asn1.RawValue
			Key       []byte
		}
		var inner struct {
			Version int
			Scalar  []byte
			Public  asn1.BitString `asn1:"optional,explicit,tag:1"`
		}
		if _, err := asn1.Unmarshal(private, &outer); err != nil {
			t.Fatal(err)
		}
		if _, err := asn1.Unmarshal(outer.Key, &inner); err != nil {
			t.Fatal(err)
		}
		point := secp256k1.PrivKeyFromBytes(inner.Scalar).PubKey().SerializeUncompressed()
		if len(inner.Scalar) != 32 || !bytes.HasSuffix(public, point) || !bytes.Equal(inner.Public.Bytes, point) {
			t.Error("the public key is not that of the private key")
		}
		return
	}
	for _, k := range kemSpecs {
		if k.spec != spec {
			continue
		}
		var outer struct {
			Version   int
			Algorithm asn1.RawValue
			Key       []byte
		}
		if rest, err := asn1.Unmarshal(private, &outer); err != nil || len(rest) > 0 || len(private) != 86 || outer.Version != 0 {
			t.Fatalf("got a private key of %d bytes, version %d (%v)", len(private), outer.Version, err)
		}
		seed, ok := bytes.CutPrefix(outer.Key, []byte{0x80, 64})
		if !ok || len(seed) != 64 {
			t.Fatalf("private key %x is not a seed", outer.Key)
		}
		key, _ := k.scheme.DeriveKeyPair(seed)
		if !bytes.Contains(public, outer.Algorithm.FullBytes) || !parseKEMKey(t, k.scheme, public).Equal(key) {
			t.Error("the public key is not that of the private key")
		}
		return
	}
	parsed, err := x509.ParsePKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(parsed.(crypto.Signer).Public())
	if err != nil || !bytes.Equal(spki, public) {
		t.Errorf("the public key is not that of the private key (%v)", err)
	}
}

func pairSpecs() []string {
	return slices.DeleteFunc(slices.Clone(kmsapi.EnumOf("DataKeyPairSpec").Values()), func(s string) bool { return s == kmsapi.SpecSM2 })
}

// GenerateDataKeyPair and GenerateDataKeyPairWithoutPlaintext return key pairs of each spec, whose
// encrypted private keys can be decrypted.
func TestDataKeyPairs(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKey()
	context, other := map[string]string{"for": "you"}, map[string]string{"for": "me"}
	for _, spec := range pairSpecs() {
		t.Run(spec, func(t *testing.T) {
			c.t = t
			out := must[kmsapi.GenerateDataKeyPairOutput](c, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: &spec, EncryptionContext: context})
			if *out.KeyId != arn || *out.KeyPairSpec != spec || *out.KeyMaterialId != c.currentMaterialID(id) || out.CiphertextForRecipient != nil {
				t.Errorf("got key %s, spec %s, material %s", *out.KeyId, *out.KeyPairSpec, *out.KeyMaterialId)
			}
			wantPair(t, spec, out.PrivateKeyPlaintext, out.PublicKey)
			if bytes.Contains(out.PrivateKeyCiphertextBlob, out.PrivateKeyPlaintext) {
				t.Error("the private key is not encrypted")
			}
			got := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: out.PrivateKeyCiphertextBlob, EncryptionContext: context})
			if !bytes.Equal(got.Plaintext, out.PrivateKeyPlaintext) {
				t.Error("the encrypted private key decrypts to another one")
			}
			_, err := call[request.None](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: out.PrivateKeyCiphertextBlob, EncryptionContext: other})
			wantError(t, err, kmsapi.ErrInvalidCiphertext, "")
			if spec == "RSA_3072" || spec == "RSA_4096" {
				return // slow to make, and the rest does not depend on the size
			}
			second := must[kmsapi.GenerateDataKeyPairWithoutPlaintextOutput](c, "GenerateDataKeyPairWithoutPlaintext", &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{
				KeyId: &id, KeyPairSpec: &spec, EncryptionContext: context,
			})
			if *second.KeyId != arn || *second.KeyPairSpec != spec || *second.KeyMaterialId != c.currentMaterialID(id) {
				t.Errorf("without plaintext: got key %s, spec %s, material %s", *second.KeyId, *second.KeyPairSpec, *second.KeyMaterialId)
			}
			if bytes.Equal(second.PublicKey, out.PublicKey) {
				t.Error("got the same key pair twice")
			}
			got = must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: second.PrivateKeyCiphertextBlob, EncryptionContext: context})
			wantPair(t, spec, got.Plaintext, second.PublicKey)
		})
	}
}

// Specs that are not supported are refused.
func TestDataKeyPairSpecs(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	for _, dry := range []bool{false, true} {
		const message = "KeyPairSpec SM2 is not supported in this Region."
		_, err := call[request.None](c, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: new(kmsapi.SpecSM2), DryRun: &dry})
		wantError(t, err, kmsapi.ErrUnsupported, message)
		_, err = call[request.None](c, "GenerateDataKeyPairWithoutPlaintext", &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: new(kmsapi.SpecSM2), DryRun: &dry})
		wantError(t, err, kmsapi.ErrUnsupported, message)
	}
	for _, spec := range []string{"HMAC_256", "ML_DSA_44", kmsapi.SpecSymmetric, "RSA_1024", ""} {
		_, err := call[request.None](c, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: &spec})
		wantError(t, err, kmsapi.ErrValidation, "…")
	}
}

// If the request is evaluated again because of a conflict, the answer is complete although
// the secrets of the first evaluation were wiped.
func TestDataKeyPairAgain(t *testing.T) {
	t.Parallel()
	for _, spec := range []string{"RSA_2048", "ECC_NIST_P256", "ML_KEM_768"} {
		c := newTestCluster(t)
		id, _ := c.newKey()
		changes := 0
		c.Replica("n1").BeforeCommit = func(*fsmpb.Record) {
			if changes < 2 {
				changes++
				c.modifyKey(id, func(k *fsmpb.Key) { k.Description += "x" })
			}
		}
		out := must[kmsapi.GenerateDataKeyPairOutput](c, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: &spec})
		wantPair(t, spec, out.PrivateKeyPlaintext, out.PublicKey)
		got := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: out.PrivateKeyCiphertextBlob})
		if changes != 2 || !bytes.Equal(got.Plaintext, out.PrivateKeyPlaintext) {
			t.Errorf("%s: after %d conflicts the encrypted private key decrypts to another one", spec, changes)
		}
		changes = 0
		second := must[kmsapi.GenerateDataKeyPairWithoutPlaintextOutput](c, "GenerateDataKeyPairWithoutPlaintext", &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: &spec})
		got = must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: second.PrivateKeyCiphertextBlob})
		wantPair(t, spec, got.Plaintext, second.PublicKey)
	}
}

// asymmetricCall is a request of an operation that accepts keys that are not symmetric.
type asymmetricCall struct {
	op  string
	key string // the key that its record names
	in  func(keyID string, dry *bool) any
}

// secretText is the message or plaintext in the requests of asymmetricCalls.
const secretText = "not for the record"

// asymmetricCalls returns a request of each of these operations, with a new key.
func (c *testCluster) asymmetricCalls() []asymmetricCall {
	c.t.Helper()
	signer, _ := c.newKeyOf("ECC_NIST_P256", kmsapi.UsageSign)
	mac, _ := c.newKeyOf("HMAC_256", kmsapi.UsageMac)
	agree, _ := c.newKeyOf("ECC_NIST_P256", kmsapi.UsageAgree)
	rsa, _ := c.newKeyOf("RSA_2048", kmsapi.UsageEncrypt)
	kem, _ := c.newKeyOf("ML_KEM_512", kmsapi.UsageEncapsulate)
	symmetric, _ := c.newKey()
	message, public := []byte(secretText), c.publicKey(agree)
	ecdsa, hmac, oaep, curve := new("ECDSA_SHA_256"), new("HMAC_SHA_256"), new(oaepSHA256), new("ECC_NIST_P256")
	signature := c.sign(signer, *ecdsa, "RAW", message)
	code := must[kmsapi.GenerateMacOutput](c, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &mac, Message: message, MacAlgorithm: hmac}).Mac
	blob := c.encryptRSA(rsa, *oaep, message)
	encapsulated := c.encapsulate(kem).SharedSecretCiphertextBlob
	return []asymmetricCall{
		{"Sign", signer, func(id string, dry *bool) any {
			return &kmsapi.SignInput{KeyId: &id, Message: message, SigningAlgorithm: ecdsa, DryRun: dry}
		}},
		{"Verify", signer, func(id string, dry *bool) any {
			return &kmsapi.VerifyInput{KeyId: &id, Message: message, Signature: signature, SigningAlgorithm: ecdsa, DryRun: dry}
		}},
		{"GenerateMac", mac, func(id string, dry *bool) any {
			return &kmsapi.GenerateMacInput{KeyId: &id, Message: message, MacAlgorithm: hmac, DryRun: dry}
		}},
		{"VerifyMac", mac, func(id string, dry *bool) any {
			return &kmsapi.VerifyMacInput{KeyId: &id, Message: message, Mac: code, MacAlgorithm: hmac, DryRun: dry}
		}},
		{"DeriveSharedSecret", agree, func(id string, dry *bool) any {
			return &kmsapi.DeriveSharedSecretInput{KeyId: &id, KeyAgreementAlgorithm: new("ECDH"), PublicKey: public, DryRun: dry}
		}},
		{"Encapsulate", kem, func(id string, dry *bool) any {
			return &kmsapi.EncapsulateInput{KeyId: &id, EncapsulationAlgorithm: new(algorithmMLKEM), DryRun: dry}
		}},
		{"Decapsulate", kem, func(id string, dry *bool) any {
			return &kmsapi.DecapsulateInput{KeyId: &id, SharedSecretCiphertextBlob: encapsulated, EncapsulationAlgorithm: new(algorithmMLKEM), DryRun: dry}
		}},
		{"GenerateDataKeyPair", symmetric, func(id string, dry *bool) any {
			return &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: curve, DryRun: dry}
		}},
		{"GenerateDataKeyPairWithoutPlaintext", symmetric, func(id string, dry *bool) any {
			return &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: curve, DryRun: dry}
		}},
		{"Encrypt", rsa, func(id string, dry *bool) any {
			return &kmsapi.EncryptInput{KeyId: &id, Plaintext: message, EncryptionAlgorithm: oaep, DryRun: dry}
		}},
		{"Decrypt", rsa, func(id string, dry *bool) any {
			return &kmsapi.DecryptInput{KeyId: &id, CiphertextBlob: blob, EncryptionAlgorithm: oaep, DryRun: dry}
		}},
		{"ReEncrypt", rsa, func(id string, dry *bool) any {
			return &kmsapi.ReEncryptInput{
				SourceKeyId: &id, CiphertextBlob: blob, SourceEncryptionAlgorithm: oaep,
				DestinationKeyId: &id, DestinationEncryptionAlgorithm: oaep, DryRun: dry,
			}
		}},
	}
}

// A dry run of each operation says that it would have succeeded, and does not count as a use of the
// key.
func TestAsymmetricDryRun(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.Clock.Advance(ops.Day)
	for _, tt := range c.asymmetricCalls() {
		before := c.lastUsage(tt.key)
		_, err := call[request.None](c, tt.op, tt.in(tt.key, new(true)))
		wantError(t, err, kmsapi.ErrDryRun, "The request would have succeeded, but the DryRun option is set.")
		if rec := c.lastRecord(); rec.ErrorCode != string(kmsapi.ErrDryRun.Code) || rec.EventName != tt.op {
			t.Errorf("%s: got record of %s with error %q", tt.op, rec.EventName, rec.ErrorCode)
		}
		if after := c.lastUsage(tt.key); (after.KeyLastUsage.Operation == nil) != (before.KeyLastUsage.Operation == nil) ||
			after.KeyLastUsage.Operation != nil && *after.KeyLastUsage.KmsRequestId != *before.KeyLastUsage.KmsRequestId {
			t.Errorf("GetKeyLastUsage counts a dry run of %s", tt.op)
		}
		must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &tt.key})
		_, err = call[request.None](c, tt.op, tt.in(tt.key, new(true)))
		wantError(t, err, kmsapi.ErrDisabled, "…")
		must[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &tt.key})
	}
}

// Each operation accepts an alias, its ARN and the key's ARN.
func TestAsymmetricByAlias(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	made := make(map[string]bool)
	for _, tt := range c.asymmetricCalls() {
		name := "alias/k" + tt.key
		if !made[name] {
			must[request.None](c, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: &name, TargetKeyId: &tt.key})
			made[name] = true
		}
		prefix := "arn:aws:kms:" + testRegion + ":" + testAccount + ":"
		for _, form := range []string{name, prefix + name, prefix + "key/" + tt.key} {
			if _, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, tt.op), tt.in(form, nil)); err != nil {
				t.Errorf("%s with key %s: %v", tt.op, form, err)
			}
			rec := c.lastRecord()
			if last := rec.Resources[len(rec.Resources)-1]; rec.EventName != tt.op || last.Arn != prefix+"key/"+tt.key {
				t.Errorf("%s with key %s: got record of %s with resources %v", tt.op, form, rec.EventName, rec.Resources)
			}
		}
		_, err := call[request.None](c, tt.op, tt.in("alias/nothing", nil))
		wantError(t, err, kmsapi.ErrNotFound, "…")
	}
}

// The audit record of each operation has the key, but not the message, plaintext, or result.
func TestAsymmetricRecords(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	for _, tt := range c.asymmetricCalls() {
		in := tt.in(tt.key, nil)
		out, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, tt.op), in)
		if err != nil {
			t.Fatalf("%s: %v", tt.op, err)
		}
		rec := c.lastRecord()
		want := "arn:aws:kms:" + testRegion + ":" + testAccount + ":key/" + tt.key
		if rec.EventName != tt.op || rec.ErrorCode != "" || len(rec.Resources) != 1 || rec.Resources[0].Arn != want {
			t.Errorf("%s: got record of %s with error %q and resources %v", tt.op, rec.EventName, rec.ErrorCode, rec.Resources)
		}
		b, err := proto.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		for name, secret := range blobsOf(in, out) {
			if len(secret) > 0 && bytes.Contains(b, secret) {
				t.Errorf("%s: the record has %s of the request or answer", tt.op, name)
			}
		}
		if bytes.Contains(b, []byte(secretText)) {
			t.Errorf("%s: the record has the message", tt.op)
		}
	}
}

// blobsOf returns the members of structures that are bytes.
func blobsOf(structures ...any) map[string][]byte {
	blobs := make(map[string][]byte)
	for _, s := range structures {
		v := reflect.ValueOf(s).Elem()
		for i := range v.NumField() {
			if b, ok := v.Field(i).Interface().([]byte); ok {
				blobs[v.Type().Field(i).Name] = b
			}
		}
	}
	return blobs
}
