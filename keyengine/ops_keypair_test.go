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

// wantPair checks that a PKCS #8 structure and a SubjectPublicKeyInfo are halves of
// one pair, with code that is not ours.
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
			t.Error("the halves are not of one pair")
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
			t.Fatalf("a private key of %d bytes, version %d: %v", len(private), outer.Version, err)
		}
		seed, ok := bytes.CutPrefix(outer.Key, []byte{0x80, 64})
		if !ok || len(seed) != 64 {
			t.Fatalf("%x is no seed", outer.Key)
		}
		key, _ := k.scheme.DeriveKeyPair(seed)
		if !bytes.Contains(public, outer.Algorithm.FullBytes) || !outsideKey(t, k.scheme, public).Equal(key) {
			t.Error("the halves are not of one pair")
		}
		return
	}
	parsed, err := x509.ParsePKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(parsed.(crypto.Signer).Public())
	if err != nil || !bytes.Equal(spki, public) {
		t.Errorf("the halves are not of one pair (%v)", err)
	}
}

func pairSpecs() []string {
	return slices.DeleteFunc(slices.Clone(kmsapi.EnumOf("DataKeyPairSpec").Values()), func(s string) bool { return s == kmsapi.SpecSM2 })
}

// TestDataKeyPairs: a pair of each spec, whose private half opens to itself.
func TestDataKeyPairs(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	context, other := map[string]string{"for": "you"}, map[string]string{"for": "me"}
	for _, spec := range pairSpecs() {
		t.Run(spec, func(t *testing.T) {
			r.t = t
			out := must[kmsapi.GenerateDataKeyPairOutput](r, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: &spec, EncryptionContext: context})
			if *out.KeyId != arn || *out.KeyPairSpec != spec || *out.KeyMaterialId != r.current(id) || out.CiphertextForRecipient != nil {
				t.Errorf("answer: %s, %s, %s", *out.KeyId, *out.KeyPairSpec, *out.KeyMaterialId)
			}
			wantPair(t, spec, out.PrivateKeyPlaintext, out.PublicKey)
			if bytes.Contains(out.PrivateKeyCiphertextBlob, out.PrivateKeyPlaintext) {
				t.Error("the private key is not encrypted")
			}
			got := must[kmsapi.DecryptOutput](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: out.PrivateKeyCiphertextBlob, EncryptionContext: context})
			if !bytes.Equal(got.Plaintext, out.PrivateKeyPlaintext) {
				t.Error("the encrypted private key opens to another one")
			}
			_, err := call[request.None](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: out.PrivateKeyCiphertextBlob, EncryptionContext: other})
			wantError(t, err, kmsapi.ErrInvalidCiphertext, "")
			if spec == "RSA_3072" || spec == "RSA_4096" {
				return // slow to make, and the rest does not depend on the size
			}
			second := must[kmsapi.GenerateDataKeyPairWithoutPlaintextOutput](r, "GenerateDataKeyPairWithoutPlaintext", &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{
				KeyId: &id, KeyPairSpec: &spec, EncryptionContext: context,
			})
			if *second.KeyId != arn || *second.KeyPairSpec != spec || *second.KeyMaterialId != r.current(id) {
				t.Errorf("answer without plaintext: %s, %s, %s", *second.KeyId, *second.KeyPairSpec, *second.KeyMaterialId)
			}
			if bytes.Equal(second.PublicKey, out.PublicKey) {
				t.Error("the same pair twice")
			}
			got = must[kmsapi.DecryptOutput](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: second.PrivateKeyCiphertextBlob, EncryptionContext: context})
			wantPair(t, spec, got.Plaintext, second.PublicKey)
		})
	}
}

// TestDataKeyPairSpecs: those that AWS does not have here either.
func TestDataKeyPairSpecs(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	for _, dry := range []bool{false, true} {
		const message = "KeyPairSpec SM2 is not supported in this Region."
		_, err := call[request.None](r, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: new(kmsapi.SpecSM2), DryRun: &dry})
		wantError(t, err, kmsapi.ErrUnsupported, message)
		_, err = call[request.None](r, "GenerateDataKeyPairWithoutPlaintext", &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: new(kmsapi.SpecSM2), DryRun: &dry})
		wantError(t, err, kmsapi.ErrUnsupported, message)
	}
	for _, spec := range []string{"HMAC_256", "ML_DSA_44", kmsapi.SpecSymmetric, "RSA_1024", ""} {
		_, err := call[request.None](r, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: &spec})
		wantError(t, err, kmsapi.ErrValidation, "…")
	}
}

// TestDataKeyPairAgain: a request that is evaluated twice, as what it read has
// changed, answers with a whole pair, though the first evaluation was wiped.
func TestDataKeyPairAgain(t *testing.T) {
	for _, spec := range []string{"RSA_2048", "ECC_NIST_P256", "ML_KEM_768"} {
		r := newRoom(t)
		id, _ := r.newKey()
		changes := 0
		r.cluster.replica("n1").before = func(*fsmpb.Record) {
			if changes < 2 {
				changes++
				r.mangle(id, func(k *fsmpb.Key) { k.Description += "x" })
			}
		}
		out := must[kmsapi.GenerateDataKeyPairOutput](r, "GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: &spec})
		wantPair(t, spec, out.PrivateKeyPlaintext, out.PublicKey)
		got := must[kmsapi.DecryptOutput](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: out.PrivateKeyCiphertextBlob})
		if changes != 2 || !bytes.Equal(got.Plaintext, out.PrivateKeyPlaintext) {
			t.Errorf("%s: after %d changes the encrypted half is another one", spec, changes)
		}
		changes = 0
		second := must[kmsapi.GenerateDataKeyPairWithoutPlaintextOutput](r, "GenerateDataKeyPairWithoutPlaintext", &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: &spec})
		got = must[kmsapi.DecryptOutput](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: second.PrivateKeyCiphertextBlob})
		wantPair(t, spec, got.Plaintext, second.PublicKey)
	}
}

// asymmetricCall is a request of an operation that is not of symmetric keys alone.
type asymmetricCall struct {
	op  string
	key string // the key that its record names
	in  func(keyID string, dry *bool) any
}

// secretText is the message or plaintext of each of asymmetricCalls.
const secretText = "not for the record"

// asymmetricCalls are one each, on keys made for them.
func (r *room) asymmetricCalls() []asymmetricCall {
	r.t.Helper()
	signer, _ := r.newKeyOf("ECC_NIST_P256", kmsapi.UsageSign)
	mac, _ := r.newKeyOf("HMAC_256", kmsapi.UsageMac)
	agree, _ := r.newKeyOf("ECC_NIST_P256", kmsapi.UsageAgree)
	rsa, _ := r.newKeyOf("RSA_2048", kmsapi.UsageEncrypt)
	kem, _ := r.newKeyOf("ML_KEM_512", kmsapi.UsageEncapsulate)
	symmetric, _ := r.newKey()
	message, public := []byte(secretText), r.publicKey(agree)
	ecdsa, hmac, oaep, curve := new("ECDSA_SHA_256"), new("HMAC_SHA_256"), new(oaepSHA256), new("ECC_NIST_P256")
	signature := r.signs(signer, *ecdsa, "RAW", message)
	code := must[kmsapi.GenerateMacOutput](r, "GenerateMac", &kmsapi.GenerateMacInput{KeyId: &mac, Message: message, MacAlgorithm: hmac}).Mac
	blob := r.encryptRSA(rsa, *oaep, message)
	encapsulated := r.encapsulates(kem).SharedSecretCiphertextBlob
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

// TestAsymmetricDryRun: each operation says that it would have succeeded, and counts
// as no use of the key.
func TestAsymmetricDryRun(t *testing.T) {
	r := newRoom(t)
	r.cluster.clock.advance(ops.Day)
	for _, c := range r.asymmetricCalls() {
		before := r.lastUsage(c.key)
		_, err := call[request.None](r, c.op, c.in(c.key, new(true)))
		wantError(t, err, kmsapi.ErrDryRun, "The request would have succeeded, but the DryRun option is set.")
		if rec := r.lastRecord(); rec.ErrorCode != string(kmsapi.ErrDryRun.Code) || rec.EventName != c.op {
			t.Errorf("%s left a record of %s with %q", c.op, rec.EventName, rec.ErrorCode)
		}
		if after := r.lastUsage(c.key); (after.KeyLastUsage.Operation == nil) != (before.KeyLastUsage.Operation == nil) ||
			after.KeyLastUsage.Operation != nil && *after.KeyLastUsage.KmsRequestId != *before.KeyLastUsage.KmsRequestId {
			t.Errorf("a dry run of %s counts as a use", c.op)
		}
		must[request.None](r, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &c.key})
		_, err = call[request.None](r, c.op, c.in(c.key, new(true)))
		wantError(t, err, kmsapi.ErrDisabled, "…")
		must[request.None](r, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &c.key})
	}
}

// TestAsymmetricByAlias: an alias, its ARN and the key's ARN do as well as its id.
func TestAsymmetricByAlias(t *testing.T) {
	r := newRoom(t)
	made := make(map[string]bool)
	for _, c := range r.asymmetricCalls() {
		name := "alias/k" + c.key
		if !made[name] {
			must[request.None](r, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: &name, TargetKeyId: &c.key})
			made[name] = true
		}
		prefix := "arn:aws:kms:" + testRegion + ":" + testAccount + ":"
		for _, form := range []string{name, prefix + name, prefix + "key/" + c.key} {
			if _, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(c.op), c.in(form, nil)); err != nil {
				t.Errorf("%s of %s: %v", c.op, form, err)
			}
			rec := r.lastRecord()
			if last := rec.Resources[len(rec.Resources)-1]; rec.EventName != c.op || last.Arn != prefix+"key/"+c.key {
				t.Errorf("%s of %s: record of %s on %v", c.op, form, rec.EventName, rec.Resources)
			}
		}
		_, err := call[request.None](r, c.op, c.in("alias/nothing", nil))
		wantError(t, err, kmsapi.ErrNotFound, "…")
	}
}

// TestAsymmetricRecords: a record names the key, and has nothing of what was signed,
// encrypted or made with it.
func TestAsymmetricRecords(t *testing.T) {
	r := newRoom(t)
	for _, c := range r.asymmetricCalls() {
		in := c.in(c.key, nil)
		out, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(c.op), in)
		if err != nil {
			t.Fatalf("%s: %v", c.op, err)
		}
		rec := r.lastRecord()
		want := "arn:aws:kms:" + testRegion + ":" + testAccount + ":key/" + c.key
		if rec.EventName != c.op || rec.ErrorCode != "" || len(rec.Resources) != 1 || rec.Resources[0].Arn != want {
			t.Errorf("%s: record of %s with %q on %v", c.op, rec.EventName, rec.ErrorCode, rec.Resources)
		}
		b, err := proto.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		for name, secret := range blobsOf(in, out) {
			if len(secret) > 0 && bytes.Contains(b, secret) {
				t.Errorf("%s: the record has the request's or answer's %s", c.op, name)
			}
		}
		if bytes.Contains(b, []byte(secretText)) {
			t.Errorf("%s: the record has the message", c.op)
		}
	}
}

// blobsOf are the members of structures that hold bytes.
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
