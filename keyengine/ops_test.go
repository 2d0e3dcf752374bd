package keyengine

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

func TestKeyLifecycle(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	m := must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{
		Description: new("for tests"), Tags: []kmsapi.Tag{{TagKey: new("b"), TagValue: new("2")}, {TagKey: new("a"), TagValue: new("")}},
	}).KeyMetadata
	id, arn := *m.KeyId, *m.Arn
	if want := "arn:aws:kms:" + testRegion + ":" + testAccount + ":key/" + id; arn != want {
		t.Errorf("ARN is %s, want %s", arn, want)
	}
	if m.CurrentKeyMaterialId == nil || len(*m.CurrentKeyMaterialId) != 64 {
		t.Errorf("CurrentKeyMaterialId is %v, want 64 hex digits", m.CurrentKeyMaterialId)
	}
	created := c.Clock.Now()
	want := &kmsapi.KeyMetadata{
		AWSAccountId: new(testAccount), KeyId: &id, Arn: &arn, CreationDate: &created, Enabled: new(true),
		Description: new("for tests"), KeyUsage: new("ENCRYPT_DECRYPT"), KeyState: new("Enabled"), Origin: new("AWS_KMS"),
		KeyManager: new("CUSTOMER"), CustomerMasterKeySpec: new("SYMMETRIC_DEFAULT"), KeySpec: new("SYMMETRIC_DEFAULT"),
		EncryptionAlgorithms: []string{"SYMMETRIC_DEFAULT"}, MultiRegion: new(false), CurrentKeyMaterialId: m.CurrentKeyMaterialId,
	}
	if d := cmp.Diff(want, m); d != "" {
		t.Errorf("CreateKey's metadata (-want +got):\n%s", d)
	}
	describe := func(id string) *kmsapi.KeyMetadata {
		t.Helper()
		return must[kmsapi.DescribeKeyOutput](c, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id}).KeyMetadata
	}
	if d := cmp.Diff(want, describe(arn)); d != "" {
		t.Errorf("DescribeKey (-want +got):\n%s", d)
	}

	must[request.None](c, "UpdateKeyDescription", &kmsapi.UpdateKeyDescriptionInput{KeyId: &id, Description: new("")})
	must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &arn})
	_, version := c.State().Key(c.keyID(id))
	must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &arn}) // repeats are fine, and change nothing
	if _, v := c.State().Key(c.keyID(id)); v != version {
		t.Error("DisableKey changed a disabled key")
	}
	want.Description, want.Enabled, want.KeyState = new(""), new(false), new("Disabled")
	if d := cmp.Diff(want, describe(id)); d != "" {
		t.Errorf("disabled key (-want +got):\n%s", d)
	}
	for range 2 {
		must[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})
	}
	c.Clock.Advance(500 * time.Millisecond)
	s := must[kmsapi.ScheduleKeyDeletionOutput](c, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id, PendingWindowInDays: new(int32(7))})
	at := created.Add(time.Second + 7*24*time.Hour) // counted from the next whole second
	if d := cmp.Diff(&kmsapi.ScheduleKeyDeletionOutput{KeyId: &arn, DeletionDate: &at, KeyState: new("PendingDeletion"), PendingWindowInDays: new(int32(7))}, s); d != "" {
		t.Errorf("ScheduleKeyDeletion (-want +got):\n%s", d)
	}
	want.KeyState, want.DeletionDate = new("PendingDeletion"), &at
	if d := cmp.Diff(want, describe(id)); d != "" {
		t.Errorf("key pending deletion (-want +got):\n%s", d)
	}
	if got := must[kmsapi.CancelKeyDeletionOutput](c, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id}); *got.KeyId != arn {
		t.Errorf("CancelKeyDeletion returned key %s, want %s", *got.KeyId, arn)
	}
	want.KeyState, want.DeletionDate = new("Disabled"), nil
	if d := cmp.Diff(want, describe(id)); d != "" {
		t.Errorf("key after CancelKeyDeletion (-want +got):\n%s", d)
	}
	def := must[kmsapi.ScheduleKeyDeletionOutput](c, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
	if *def.PendingWindowInDays != 30 {
		t.Errorf("the default waiting period is %d days, want 30", *def.PendingWindowInDays)
	}
}

func TestCreateKeyErrors(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	root := rootStatement
	tests := []struct {
		name    string
		in      kmsapi.CreateKeyInput
		kind    *kmsapi.Error
		message string
	}{
		{"both specs", kmsapi.CreateKeyInput{KeySpec: new("RSA_2048"), CustomerMasterKeySpec: new("RSA_2048")}, kmsapi.ErrValidation,
			"You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated."},
		{"no usage", kmsapi.CreateKeyInput{KeySpec: new("RSA_2048")}, kmsapi.ErrValidation,
			"You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys."},
		{"wrong usage", kmsapi.CreateKeyInput{KeySpec: new("RSA_2048"), KeyUsage: new("KEY_AGREEMENT")}, kmsapi.ErrValidation,
			"KeyUsage KEY_AGREEMENT is not compatible with KeySpec RSA_2048"},
		{"wrong usage of the default spec", kmsapi.CreateKeyInput{KeyUsage: new("SIGN_VERIFY")}, kmsapi.ErrValidation,
			"KeyUsage SIGN_VERIFY is not compatible with KeySpec SYMMETRIC_DEFAULT"},
		{"unsupported spec", kmsapi.CreateKeyInput{KeySpec: new("SM2"), KeyUsage: new("SIGN_VERIFY")}, kmsapi.ErrUnsupported,
			"KeySpec SM2 is not supported in this Region"},
		{"unsupported old spec", kmsapi.CreateKeyInput{CustomerMasterKeySpec: new("SM2"), KeyUsage: new("KEY_AGREEMENT")}, kmsapi.ErrUnsupported,
			"KeySpec SM2 is not supported in this Region"},
		{"import of a kind that cannot be", kmsapi.CreateKeyInput{Origin: new("EXTERNAL"), KeySpec: new("ML_DSA_65"), KeyUsage: new("SIGN_VERIFY")}, kmsapi.ErrUnsupported,
			"KeySpec ML_DSA_65 is not supported for Origin EXTERNAL."},
		{"import of another", kmsapi.CreateKeyInput{Origin: new("EXTERNAL"), KeySpec: new("ML_KEM_768"), KeyUsage: new(kmsapi.UsageEncapsulate)}, kmsapi.ErrUnsupported,
			"KeySpec ML_KEM_768 is not supported for Origin EXTERNAL."},
		{"no usage of a key that has one only", kmsapi.CreateKeyInput{KeySpec: new("ML_KEM_768")}, kmsapi.ErrValidation,
			"You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys."},
		{"ML-KEM to agree", kmsapi.CreateKeyInput{KeySpec: new("ML_KEM_512"), KeyUsage: new("KEY_AGREEMENT")}, kmsapi.ErrValidation,
			"KeyUsage KEY_AGREEMENT is not compatible with KeySpec ML_KEM_512"},
		{"encapsulation by another", kmsapi.CreateKeyInput{KeySpec: new("ECC_NIST_P256"), KeyUsage: new(kmsapi.UsageEncapsulate)}, kmsapi.ErrValidation,
			"KeyUsage ENCAPSULATE_DECAPSULATE is not compatible with KeySpec ECC_NIST_P256"},
		{"multi-Region in a key store", kmsapi.CreateKeyInput{MultiRegion: new(true), CustomKeyStoreId: new("cks-1")}, kmsapi.ErrUnsupported, "Multi-Region keys cannot be in a custom key store."},
		{"multi-Region in an external key store", kmsapi.CreateKeyInput{MultiRegion: new(true), Origin: new("EXTERNAL_KEY_STORE")}, kmsapi.ErrUnsupported,
			"Multi-Region keys cannot be in a custom key store."},
		{"external key", kmsapi.CreateKeyInput{XksKeyId: new("x")}, kmsapi.ErrValidation, "XksKeyId is not valid with Origin AWS_KMS."},
		{"key store", kmsapi.CreateKeyInput{CustomKeyStoreId: new("cks-1")}, kmsapi.ErrValidation, "CustomKeyStoreId is not valid with Origin AWS_KMS."},
		{"aws: tag", kmsapi.CreateKeyInput{Tags: []kmsapi.Tag{{TagKey: new("Aws:x"), TagValue: new("")}}}, kmsapi.ErrTag, "Tags beginning with aws: are reserved"},
		{"same tag twice", kmsapi.CreateKeyInput{Tags: []kmsapi.Tag{{TagKey: new("x"), TagValue: new("1")}, {TagKey: new("x"), TagValue: new("2")}}}, kmsapi.ErrTag, "Duplicate tag keys"},
		{"too many tags", kmsapi.CreateKeyInput{Tags: manyTags(51)}, kmsapi.ErrTag, "Too many tags"},
		{"policy is no JSON", kmsapi.CreateKeyInput{Policy: new("{")}, kmsapi.ErrMalformedPolicy, "…"},
		{"policy with a condition", kmsapi.CreateKeyInput{Policy: new(policyDocument(root, `{"Effect":"Deny","Principal":"*","Action":"*","Resource":"*","Condition":{"Null":{"aws:username":"true"}}}`))},
			kmsapi.ErrMalformedPolicy, "The new key policy will not allow you to update the key policy in the future."},
		{"policy for nobody", kmsapi.CreateKeyInput{Policy: new(policyDocument(root, statement("Allow", "arn:aws:iam::111122223333:user/nobody", "kms:*")))},
			kmsapi.ErrMalformedPolicy, "Policy contains a statement with one or more invalid principals."},
		{"policy for another account", kmsapi.CreateKeyInput{Policy: new(policyDocument(root, statement("Allow", "444455556666", "kms:*")))},
			kmsapi.ErrMalformedPolicy, "Policy contains a statement with one or more invalid principals."},
		{"policy that locks out", kmsapi.CreateKeyInput{Policy: new(policyDocument(statement("Allow", testAccount, "kms:Encrypt")))},
			kmsapi.ErrMalformedPolicy, "The new key policy will not allow you to update the key policy in the future."},
		{"policy too long", kmsapi.CreateKeyInput{Policy: new(policyDocument(root) + strings.Repeat(" ", policy.MaxKeyPolicySize))}, kmsapi.ErrLimitExceeded, "…"},
	}
	before := c.Audit.Size()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := call[kmsapi.CreateKeyOutput](c, "CreateKey", &tt.in)
			wantError(t, err, tt.kind, tt.message)
		})
	}
	for range c.State().AllKeys() {
		t.Fatal("a refused CreateKey made a key")
	}
	if n := c.Audit.Size() - before; n != uint64(len(tests)) {
		t.Errorf("%d refused requests left %d records", len(tests), n)
	}
	if _, err := call[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{
		Policy: new(policyDocument(statement("Allow", testAccount, "kms:Encrypt"))), BypassPolicyLockoutSafetyCheck: new(true), Tags: manyTags(50),
	}); err != nil {
		t.Errorf("CreateKey with BypassPolicyLockoutSafetyCheck: %v", err)
	}
}

func manyTags(n int) []kmsapi.Tag {
	var tags []kmsapi.Tag
	for i := range n {
		tags = append(tags, kmsapi.Tag{TagKey: new(fmt.Sprintf("k%02d", i)), TagValue: new("v")})
	}
	return tags
}

func TestEncryptDecrypt(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKey()
	must[request.None](c, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/app"), TargetKeyId: &id})
	context := map[string]string{"purpose": "test", "": "", "ключ": "значение"}
	for _, name := range []string{id, arn, "alias/app", "arn:aws:kms:eu-west-1:111122223333:alias/app"} {
		enc := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &name, Plaintext: []byte("secret"), EncryptionContext: context})
		if *enc.KeyId != arn || *enc.EncryptionAlgorithm != "SYMMETRIC_DEFAULT" {
			t.Errorf("Encrypt with %s returned key %s, algorithm %s", name, *enc.KeyId, *enc.EncryptionAlgorithm)
		}
		for _, given := range []*string{nil, &name} {
			dec := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: enc.CiphertextBlob, EncryptionContext: context, KeyId: given})
			if string(dec.Plaintext) != "secret" || *dec.KeyId != arn || *dec.EncryptionAlgorithm != "SYMMETRIC_DEFAULT" || len(*dec.KeyMaterialId) != 64 {
				t.Errorf("Decrypt returned %q with key %s", dec.Plaintext, *dec.KeyId)
			}
		}
	}
	// No encryption context is the same as an empty one.
	enc := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: make([]byte, 4096), EncryptionContext: map[string]string{}})
	dec := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: enc.CiphertextBlob})
	if !bytes.Equal(dec.Plaintext, make([]byte, 4096)) {
		t.Error("Decrypt of the largest plaintext returned another one")
	}
}

func TestReEncrypt(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	from, fromARN := c.newKey()
	to, toARN := c.newKey()
	a, b := map[string]string{"k": "a"}, map[string]string{"k": "b"}
	enc := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &from, Plaintext: []byte("secret"), EncryptionContext: a})
	re := must[kmsapi.ReEncryptOutput](c, "ReEncrypt", &kmsapi.ReEncryptInput{
		CiphertextBlob: enc.CiphertextBlob, SourceEncryptionContext: a, DestinationKeyId: &to, DestinationEncryptionContext: b,
	})
	if *re.SourceKeyId != fromARN || *re.KeyId != toARN || len(*re.SourceKeyMaterialId) != 64 || *re.SourceKeyMaterialId == *re.DestinationKeyMaterialId {
		t.Errorf("ReEncrypt returned %+v", re)
	}
	dec := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: re.CiphertextBlob, EncryptionContext: b, KeyId: &to})
	if string(dec.Plaintext) != "secret" || *dec.KeyMaterialId != *re.DestinationKeyMaterialId {
		t.Errorf("Decrypt after ReEncrypt returned %q with material %s", dec.Plaintext, *dec.KeyMaterialId)
	}
	// With the same key, to change the encryption context.
	must[kmsapi.ReEncryptOutput](c, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: re.CiphertextBlob, SourceEncryptionContext: b, SourceKeyId: &to, DestinationKeyId: &to})

	// Errors of the source take precedence over those of the destination.
	nowhere := new("alias/nowhere")
	_, err := call[kmsapi.ReEncryptOutput](c, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: enc.CiphertextBlob, SourceEncryptionContext: b, DestinationKeyId: nowhere})
	wantError(t, err, kmsapi.ErrInvalidCiphertext, "")
	_, err = call[kmsapi.ReEncryptOutput](c, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: enc.CiphertextBlob, SourceEncryptionContext: a, DestinationKeyId: nowhere})
	wantError(t, err, kmsapi.ErrNotFound, "Alias arn:aws:kms:eu-west-1:111122223333:alias/nowhere is not found.")
	_, err = call[kmsapi.ReEncryptOutput](c, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: enc.CiphertextBlob, SourceEncryptionContext: a, DestinationKeyId: new("arn:aws:kms:eu-west-1:444455556666:key/" + to)})
	wantError(t, err, kmsapi.ErrAccessDenied, "User: arn:aws:iam::111122223333:root is not authorized to perform: kms:ReEncryptTo on resource: arn:aws:kms:eu-west-1:444455556666:key/"+to+
		" because the resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access")
}

func TestDataKeys(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKey()
	context := map[string]string{"k": "v"}
	for _, tt := range []struct {
		spec *string
		n    *int32
		want int
	}{{new("AES_256"), nil, 32}, {new("AES_128"), nil, 16}, {nil, new(int32(1)), 1}, {nil, new(int32(1024)), 1024}} {
		k := must[kmsapi.GenerateDataKeyOutput](c, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: tt.spec, NumberOfBytes: tt.n, EncryptionContext: context})
		if len(k.Plaintext) != tt.want || *k.KeyId != arn || len(*k.KeyMaterialId) != 64 {
			t.Errorf("GenerateDataKey returned %d bytes with key %s, want %d", len(k.Plaintext), *k.KeyId, tt.want)
		}
		dec := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: k.CiphertextBlob, EncryptionContext: context})
		if !bytes.Equal(dec.Plaintext, k.Plaintext) {
			t.Error("the ciphertext of a data key decrypts to another one")
		}
		w := must[kmsapi.GenerateDataKeyWithoutPlaintextOutput](c, "GenerateDataKeyWithoutPlaintext", &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: tt.spec, NumberOfBytes: tt.n})
		dec = must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: w.CiphertextBlob})
		if len(dec.Plaintext) != tt.want || tt.want > 1 && bytes.Equal(dec.Plaintext, make([]byte, tt.want)) {
			t.Errorf("the ciphertext of a data key decrypts to %d bytes, want %d random ones", len(dec.Plaintext), tt.want)
		}
	}
	for _, in := range []*kmsapi.GenerateDataKeyInput{{KeyId: &id}, {KeyId: &id, KeySpec: new("AES_256"), NumberOfBytes: new(int32(1))}, {KeyId: new("alias/none")}} {
		_, err := call[kmsapi.GenerateDataKeyOutput](c, "GenerateDataKey", in)
		wantError(t, err, kmsapi.ErrValidation, "Please specify either number of bytes or key spec.")
	}
	b := must[kmsapi.GenerateRandomOutput](c, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(64))}).Plaintext
	if len(b) != 64 || bytes.Equal(b, make([]byte, 64)) {
		t.Errorf("GenerateRandom returned %x", b)
	}
	_, err := call[kmsapi.GenerateRandomOutput](c, "GenerateRandom", &kmsapi.GenerateRandomInput{})
	wantError(t, err, kmsapi.ErrValidation, "NumberOfBytes is required.")
	_, err = call[kmsapi.GenerateRandomOutput](c, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(1)), CustomKeyStoreId: new("cks-1")})
	wantError(t, err, kmsapi.ErrCustomStoreNotFound, "")
	recipient := &kmsapi.RecipientInfo{AttestationDocument: []byte("x")}
	_, err = call[kmsapi.GenerateRandomOutput](c, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(1)), Recipient: recipient})
	wantError(t, err, kmsapi.ErrUnsupported, "Recipient is not supported by this node: it was started without --attestation-roots.")
	_, err = call[kmsapi.GenerateDataKeyOutput](c, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256"), Recipient: recipient})
	wantError(t, err, kmsapi.ErrUnsupported, "Recipient is not supported by this node: it was started without --attestation-roots.")
	_, err = call[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: []byte("x"), Recipient: recipient})
	wantError(t, err, kmsapi.ErrUnsupported, "Recipient is not supported by this node: it was started without --attestation-roots.")
}

// Every invalid ciphertext is refused with the same error; and the order of the other errors.
func TestCiphertextErrors(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKey()
	other, _ := c.newKey()
	context := map[string]string{"k": "v"}
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("secret"), EncryptionContext: context}).CiphertextBlob
	dec := func(in *kmsapi.DecryptInput) error {
		_, err := call[kmsapi.DecryptOutput](c, "Decrypt", in)
		return err
	}
	foreign := bytes.Clone(blob)
	foreign[5] ^= 1 // within the id of the cluster
	const incorrect = "The key ID in the request does not identify a CMK that can perform this operation."
	tests := []struct {
		name    string
		in      kmsapi.DecryptInput
		kind    *kmsapi.Error
		message string
	}{
		{"no context", kmsapi.DecryptInput{CiphertextBlob: blob}, kmsapi.ErrInvalidCiphertext, ""},
		{"other context", kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionContext: map[string]string{"k": "V"}}, kmsapi.ErrInvalidCiphertext, ""},
		{"more context", kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionContext: map[string]string{"k": "v", "l": ""}}, kmsapi.ErrInvalidCiphertext, ""},
		{"garbage", kmsapi.DecryptInput{CiphertextBlob: []byte("garbage")}, kmsapi.ErrInvalidCiphertext, ""},
		{"garbage with key", kmsapi.DecryptInput{CiphertextBlob: []byte("garbage"), KeyId: &id}, kmsapi.ErrInvalidCiphertext, ""},
		{"other cluster", kmsapi.DecryptInput{CiphertextBlob: foreign, EncryptionContext: context}, kmsapi.ErrInvalidCiphertext, ""},
		{"other cluster with key", kmsapi.DecryptInput{CiphertextBlob: foreign, EncryptionContext: context, KeyId: &id}, kmsapi.ErrInvalidCiphertext, ""},
		{"longer", kmsapi.DecryptInput{CiphertextBlob: append(bytes.Clone(blob), 0), EncryptionContext: context}, kmsapi.ErrInvalidCiphertext, ""},
		{"other key", kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionContext: context, KeyId: &other}, kmsapi.ErrIncorrectKey, incorrect},
		{"no such key", kmsapi.DecryptInput{CiphertextBlob: []byte("garbage"), KeyId: new("alias/none")}, kmsapi.ErrNotFound, "Alias arn:aws:kms:eu-west-1:111122223333:alias/none is not found."},
		{"other algorithm", kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionContext: context, KeyId: &id, EncryptionAlgorithm: new("RSAES_OAEP_SHA_256")},
			kmsapi.ErrInvalidKeyUsage, "Algorithm RSAES_OAEP_SHA_256 is incompatible with key spec SYMMETRIC_DEFAULT."},
		{"other algorithm without key", kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionAlgorithm: new("RSAES_OAEP_SHA_1")},
			kmsapi.ErrValidation, "KeyId is required with the algorithm RSAES_OAEP_SHA_1."},
		{"no ciphertext", kmsapi.DecryptInput{KeyId: &id}, kmsapi.ErrValidation,
			"1 validation error detected: Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null"},
		{"grant token", kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionContext: context, GrantTokens: []string{"made up"}}, kmsapi.ErrInvalidGrantToken, ""},
		{"ignored without dry run", kmsapi.DecryptInput{KeyId: &id, DryRunModifiers: []string{"IGNORE_CIPHERTEXT"}}, kmsapi.ErrValidation, "…"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { wantError(t, dec(&tt.in), tt.kind, tt.message) })
	}
	t.Run("every cut", func(t *testing.T) {
		c.engine.limits.refusals.burst = 1 << 20
		for n := 1; n < len(blob); n++ {
			wantError(t, dec(&kmsapi.DecryptInput{CiphertextBlob: blob[:n], EncryptionContext: context}), kmsapi.ErrInvalidCiphertext, "")
		}
	})
	t.Run("disabled key", func(t *testing.T) {
		must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
		wantError(t, dec(&kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionContext: context}), kmsapi.ErrDisabled, arn+" is disabled.")
		wantError(t, dec(&kmsapi.DecryptInput{CiphertextBlob: []byte("garbage"), KeyId: &id}), kmsapi.ErrInvalidCiphertext, "")
		wantError(t, dec(&kmsapi.DecryptInput{CiphertextBlob: blob, KeyId: &other}), kmsapi.ErrIncorrectKey, incorrect)
		must[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})
	})
	t.Run("deleted key", func(t *testing.T) {
		const denied = "User: arn:aws:iam::111122223333:root is not authorized to perform: kms:Decrypt on the resource associated with this ciphertext because the resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access"
		must[kmsapi.ScheduleKeyDeletionOutput](c, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id, PendingWindowInDays: new(int32(7))})
		wantError(t, dec(&kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionContext: context}), kmsapi.ErrInvalidState, arn+" is pending deletion.")
		c.Advance(8 * 24 * time.Hour)
		k := c.keyID(id)
		c.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteKey{DeleteKey: &fsmpb.DeleteKey{Account: uint64(testAccountNumber), Key: k.ID[:], Region: k.Region}}})
		wantError(t, dec(&kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionContext: context}), kmsapi.ErrAccessDenied, denied)
		wantError(t, dec(&kmsapi.DecryptInput{CiphertextBlob: blob, KeyId: &id}), kmsapi.ErrNotFound, "Key '"+arn+"' does not exist")
		// The answer to a caller without permission is the same as if the key did not exist.
		blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &other, Plaintext: []byte("x")}).CiphertextBlob
		c.setPolicy(other, policyDocument(rootStatement, statement("Deny", testAccount, "kms:Decrypt")))
		wantError(t, dec(&kmsapi.DecryptInput{CiphertextBlob: blob}), kmsapi.ErrAccessDenied, denied)
	})
}

// A ciphertext of which any bit is flipped is refused.
func TestEveryFlippedBit(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.engine.limits.refusals.burst = 1 << 20
	id, _ := c.newKey()
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("secret")}).CiphertextBlob
	for i := range blob {
		for bit := range 8 {
			flipped := bytes.Clone(blob)
			flipped[i] ^= 1 << bit
			_, err := call[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: flipped})
			if wantError(t, err, kmsapi.ErrInvalidCiphertext, ""); t.Failed() {
				t.Fatalf("with bit %d of byte %d flipped", bit, i)
			}
		}
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	sign, signARN := c.newKeyOf("RSA_2048", kmsapi.UsageSign)

	_, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &sign, Plaintext: []byte("x"), EncryptionAlgorithm: new("RSAES_OAEP_SHA_1")})
	wantError(t, err, kmsapi.ErrInvalidKeyUsage, signARN+" key usage is SIGN_VERIFY which is not valid for Encrypt.")
	_, err = call[kmsapi.GenerateDataKeyOutput](c, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &sign, KeySpec: new("AES_256")})
	wantError(t, err, kmsapi.ErrInvalidKeyUsage, signARN+" key usage is SIGN_VERIFY which is not valid for GenerateDataKey.")
	_, err = call[kmsapi.ReEncryptOutput](c, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &sign})
	wantError(t, err, kmsapi.ErrInvalidKeyUsage, signARN+" key usage is SIGN_VERIFY which is not valid for ReEncrypt.")
	_, err = call[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob, KeyId: &sign})
	wantError(t, err, kmsapi.ErrIncorrectKey, "…") // before the usage is looked at
	_, err = call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionAlgorithm: new("SM2PKE")})
	wantError(t, err, kmsapi.ErrInvalidKeyUsage, "Algorithm SM2PKE is incompatible with key spec SYMMETRIC_DEFAULT.")
	// An alias cannot be updated to a key of another kind.
	must[request.None](c, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/a"), TargetKeyId: &id})
	_, err = call[request.None](c, "UpdateAlias", &kmsapi.UpdateAliasInput{AliasName: new("alias/a"), TargetKeyId: &sign})
	wantError(t, err, kmsapi.ErrValidation, "…")
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKey()
	yes := new(true)
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	ignore := []string{"IGNORE_CIPHERTEXT"}
	for name, in := range map[string]any{
		"Encrypt":                         &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), DryRun: yes},
		"Decrypt":                         &kmsapi.DecryptInput{CiphertextBlob: blob, DryRun: yes},
		"ReEncrypt":                       &kmsapi.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &id, DryRun: yes},
		"GenerateDataKey":                 &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256"), DryRun: yes},
		"GenerateDataKeyWithoutPlaintext": &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: new("AES_256"), DryRun: yes},
	} {
		_, err := call[request.None](c, name, in)
		wantError(t, err, kmsapi.ErrDryRun, "The request would have succeeded, but the DryRun option is set.")
		if rec := c.lastRecord(); rec.ErrorCode != "DryRunOperationException" || rec.EventName != name {
			t.Errorf("%s: got record of %s with error %q", name, rec.EventName, rec.ErrorCode)
		}
	}
	for name, in := range map[string]any{
		"Decrypt":   &kmsapi.DecryptInput{KeyId: &id, DryRun: yes, DryRunModifiers: ignore},
		"ReEncrypt": &kmsapi.ReEncryptInput{SourceKeyId: &id, DestinationKeyId: &id, DryRun: yes, DryRunModifiers: ignore},
	} {
		_, err := call[request.None](c, name, in)
		wantError(t, err, kmsapi.ErrDryRun, "…")
	}
	_, err := call[request.None](c, "Decrypt", &kmsapi.DecryptInput{DryRun: yes, DryRunModifiers: ignore})
	wantError(t, err, kmsapi.ErrValidation, "KeyId is required when the ciphertext is ignored.")
	_, err = call[request.None](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: append(blob, 0), DryRun: yes})
	wantError(t, err, kmsapi.ErrInvalidCiphertext, "")
	must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: &id})
	_, err = call[request.None](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), DryRun: yes})
	wantError(t, err, kmsapi.ErrDisabled, arn+" is disabled.")
}

func TestAliases(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, arn := c.newKey()
	other, otherARN := c.newKey()
	alias := func(name string) string { return "arn:aws:kms:eu-west-1:111122223333:" + name }
	create := func(name, key string) error {
		_, err := call[request.None](c, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: &name, TargetKeyId: &key})
		return err
	}
	const prefix = `Alias must start with the prefix "alias/". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`
	wantError(t, create("app", id), kmsapi.ErrValidation, prefix)
	wantError(t, create("Alias/app", id), kmsapi.ErrValidation, prefix)
	wantError(t, create("alias/a:b", id), kmsapi.ErrValidation, "alias/a:b contains invalid characters for an alias")
	wantError(t, create("alias/aws/s3", id), kmsapi.ErrNotAuthorized, "")
	wantError(t, create("alias/", id), kmsapi.ErrValidation, "alias/ contains invalid characters for an alias")
	wantError(t, create("alias/app", "alias/app"), kmsapi.ErrValidation, "Aliases must refer to keys. Not aliases")
	wantError(t, create("alias/app", alias("alias/app")), kmsapi.ErrValidation, "Aliases must refer to keys. Not aliases")
	if err := create("alias/app", arn); err != nil {
		t.Fatal(err)
	}
	wantError(t, create("alias/app", other), kmsapi.ErrAlreadyExists, "An alias with the name "+alias("alias/app")+" already exists")
	created := c.Clock.Now()
	c.Clock.Advance(time.Hour)
	must[request.None](c, "UpdateAlias", &kmsapi.UpdateAliasInput{AliasName: new("alias/app"), TargetKeyId: &otherARN})
	updated := c.Clock.Now()
	want := &kmsapi.ListAliasesOutput{Truncated: new(false), Aliases: []kmsapi.AliasListEntry{{
		AliasName: new("alias/app"), AliasArn: new(alias("alias/app")), TargetKeyId: &other, CreationDate: &created, LastUpdatedDate: &updated,
	}}}
	if d := cmp.Diff(want, must[kmsapi.ListAliasesOutput](c, "ListAliases", &kmsapi.ListAliasesInput{})); d != "" {
		t.Errorf("ListAliases (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want, must[kmsapi.ListAliasesOutput](c, "ListAliases", &kmsapi.ListAliasesInput{KeyId: &otherARN})); d != "" {
		t.Errorf("ListAliases of the key (-want +got):\n%s", d)
	}
	if got := must[kmsapi.ListAliasesOutput](c, "ListAliases", &kmsapi.ListAliasesInput{KeyId: &id}); len(got.Aliases) != 0 || got.Aliases == nil {
		t.Errorf("ListAliases of the old key returned %v, want an empty list", got.Aliases)
	}
	_, err := call[request.None](c, "UpdateAlias", &kmsapi.UpdateAliasInput{AliasName: new("alias/none"), TargetKeyId: &id})
	wantError(t, err, kmsapi.ErrNotFound, "Alias "+alias("alias/none")+" is not found.")
	_, err = call[request.None](c, "DeleteAlias", &kmsapi.DeleteAliasInput{AliasName: new("alias/none")})
	wantError(t, err, kmsapi.ErrNotFound, "Alias "+alias("alias/none")+" is not found.")
	must[request.None](c, "DeleteAlias", &kmsapi.DeleteAliasInput{AliasName: new("alias/app")})

	for i := range request.DefaultQuotas.Aliases {
		if err := create(fmt.Sprintf("alias/n%d", i), id); err != nil {
			t.Fatal(err)
		}
	}
	wantError(t, create("alias/more", id), kmsapi.ErrLimitExceeded, arn+" has 50 aliases and cannot have more.")
	must[request.None](c, "UpdateAlias", &kmsapi.UpdateAliasInput{AliasName: new("alias/n1"), TargetKeyId: &id}) // is there already
	if err := create("alias/more", other); err != nil {
		t.Fatal(err)
	}
	_, err = call[request.None](c, "UpdateAlias", &kmsapi.UpdateAliasInput{AliasName: new("alias/more"), TargetKeyId: &id})
	wantError(t, err, kmsapi.ErrLimitExceeded, "…")

	must[kmsapi.ScheduleKeyDeletionOutput](c, "ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id})
	wantError(t, create("alias/late", id), kmsapi.ErrInvalidState, arn+" is pending deletion.")
	_, err = call[request.None](c, "UpdateAlias", &kmsapi.UpdateAliasInput{AliasName: new("alias/more"), TargetKeyId: &id})
	wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending deletion.")
	must[request.None](c, "UpdateAlias", &kmsapi.UpdateAliasInput{AliasName: new("alias/n2"), TargetKeyId: &other}) // away from it
	must[request.None](c, "DeleteAlias", &kmsapi.DeleteAliasInput{AliasName: new("alias/n3")})
}

func TestTags(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	tag := func(tags ...kmsapi.Tag) error {
		_, err := call[request.None](c, "TagResource", &kmsapi.TagResourceInput{KeyId: &id, Tags: tags})
		return err
	}
	list := func() map[string]string {
		m := map[string]string{}
		for _, tag := range must[kmsapi.ListResourceTagsOutput](c, "ListResourceTags", &kmsapi.ListResourceTagsInput{KeyId: &id}).Tags {
			m[*tag.TagKey] = *tag.TagValue
		}
		return m
	}
	if got := list(); len(got) != 0 {
		t.Errorf("a new key has tags %v, want none", got)
	}
	if err := tag(manyTags(50)...); err != nil {
		t.Fatal(err)
	}
	wantError(t, tag(kmsapi.Tag{TagKey: new("one more"), TagValue: new("")}), kmsapi.ErrTag, "Too many tags")
	wantError(t, tag(kmsapi.Tag{TagKey: new("AWS:"), TagValue: new("")}), kmsapi.ErrTag, "Tags beginning with aws: are reserved")
	wantError(t, tag(kmsapi.Tag{TagKey: new("k01"), TagValue: new("")}, kmsapi.Tag{TagKey: new("k01"), TagValue: new("")}), kmsapi.ErrTag, "Duplicate tag keys")
	if err := tag(kmsapi.Tag{TagKey: new("k01"), TagValue: new("new")}); err != nil {
		t.Errorf("overwriting a tag: %v", err)
	}
	must[request.None](c, "UntagResource", &kmsapi.UntagResourceInput{KeyId: &id, TagKeys: []string{"k02", "unknown"}})
	got := list()
	if len(got) != 49 || got["k01"] != "new" || got["k02"] != "" {
		t.Errorf("after the changes the key has %d tags, %v", len(got), got)
	}
	// Removing a tag that does not exist changes nothing, and is recorded.
	_, version := c.State().KeyTags(c.keyID(id))
	must[request.None](c, "UntagResource", &kmsapi.UntagResourceInput{KeyId: &id, TagKeys: []string{"k02"}})
	if _, v := c.State().KeyTags(c.keyID(id)); v != version {
		t.Error("removing a tag that does not exist changed the tags")
	}
	if rec := c.lastRecord(); rec.EventName != "UntagResource" {
		t.Errorf("got record of %s, want UntagResource", rec.EventName)
	}
}

func TestKeyPolicies(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	get := func() *kmsapi.GetKeyPolicyOutput {
		t.Helper()
		return must[kmsapi.GetKeyPolicyOutput](c, "GetKeyPolicy", &kmsapi.GetKeyPolicyInput{KeyId: &id})
	}
	if got := get(); *got.Policy != policy.DefaultKeyPolicy("aws", testAccount) || *got.PolicyName != "default" {
		t.Errorf("got policy %s, want the default", *got.Policy)
	}
	text := "\n" + policyDocument(rootStatement, statement("Deny", "*", "kms:Decrypt")) + "\t"
	must[request.None](c, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &id, Policy: &text, PolicyName: new("default")})
	if got := get(); *got.Policy != text {
		t.Errorf("GetKeyPolicy returned %s, want %s", *got.Policy, text)
	}
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	_, err := call[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{KeyId: &id, CiphertextBlob: blob})
	wantError(t, err, kmsapi.ErrAccessDenied, "User: arn:aws:iam::111122223333:root is not authorized to perform: kms:Decrypt on resource: "+
		"arn:aws:kms:eu-west-1:111122223333:key/"+id+" with an explicit deny in a resource-based policy")
	for _, name := range []string{"other", "Default"} {
		_, err := call[request.None](c, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &id, Policy: &text, PolicyName: &name})
		wantError(t, err, kmsapi.ErrNotFound, "No such policy exists")
		_, err = call[request.None](c, "GetKeyPolicy", &kmsapi.GetKeyPolicyInput{KeyId: &id, PolicyName: &name})
		wantError(t, err, kmsapi.ErrNotFound, "No such policy exists")
	}
	out := policyDocument(statement("Allow", testAccount, "kms:GetKeyPolicy"))
	_, err = call[request.None](c, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &id, Policy: &out})
	wantError(t, err, kmsapi.ErrMalformedPolicy, "The new key policy will not allow you to update the key policy in the future.")
	must[request.None](c, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &id, Policy: &out, BypassPolicyLockoutSafetyCheck: new(true)})
	get()
	_, err = call[request.None](c, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &id, Policy: &text})
	wantError(t, err, kmsapi.ErrAccessDenied, "User: arn:aws:iam::111122223333:root is not authorized to perform: kms:PutKeyPolicy on resource: "+
		"arn:aws:kms:eu-west-1:111122223333:key/"+id+" because no resource-based policy allows the kms:PutKeyPolicy action")
	_, err = call[request.None](c, "ListKeyPolicies", &kmsapi.ListKeyPoliciesInput{KeyId: &id})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	id, _ = c.newKey()
	want := &kmsapi.ListKeyPoliciesOutput{PolicyNames: []string{"default"}, Truncated: new(false)}
	if d := cmp.Diff(want, must[kmsapi.ListKeyPoliciesOutput](c, "ListKeyPolicies", &kmsapi.ListKeyPoliciesInput{KeyId: &id})); d != "" {
		t.Errorf("ListKeyPolicies (-want +got):\n%s", d)
	}
}
