package keyengine

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/policy"
)

func cloneOf(k *fsmpb.Key) *fsmpb.Key { return proto.CloneOf(k) }

func TestKeyLifecycle(t *testing.T) {
	r := newRoom(t)
	m := must[CreateKeyOutput](r, "CreateKey", &CreateKeyInput{
		Description: ptr("for tests"), Tags: []Tag{{ptr("b"), ptr("2")}, {ptr("a"), ptr("")}},
	}).KeyMetadata
	id, arn := *m.KeyId, *m.Arn
	if want := "arn:aws:kms:" + testRegion + ":" + testAccount + ":key/" + id; arn != want {
		t.Errorf("ARN is %s, want %s", arn, want)
	}
	if m.CurrentKeyMaterialId == nil || len(*m.CurrentKeyMaterialId) != 64 {
		t.Errorf("CurrentKeyMaterialId is %v, want 64 hex digits", m.CurrentKeyMaterialId)
	}
	created := r.cluster.clock.Now()
	want := &KeyMetadata{
		AWSAccountId: ptr(testAccount), KeyId: &id, Arn: &arn, CreationDate: &created, Enabled: ptr(true),
		Description: ptr("for tests"), KeyUsage: ptr("ENCRYPT_DECRYPT"), KeyState: ptr("Enabled"), Origin: ptr("AWS_KMS"),
		KeyManager: ptr("CUSTOMER"), CustomerMasterKeySpec: ptr("SYMMETRIC_DEFAULT"), KeySpec: ptr("SYMMETRIC_DEFAULT"),
		EncryptionAlgorithms: []string{"SYMMETRIC_DEFAULT"}, MultiRegion: ptr(false), CurrentKeyMaterialId: m.CurrentKeyMaterialId,
	}
	if d := cmp.Diff(want, m); d != "" {
		t.Errorf("CreateKey's metadata (-want +got):\n%s", d)
	}
	describe := func(id string) *KeyMetadata {
		t.Helper()
		return must[DescribeKeyOutput](r, "DescribeKey", &DescribeKeyInput{KeyId: &id}).KeyMetadata
	}
	if d := cmp.Diff(want, describe(arn)); d != "" {
		t.Errorf("DescribeKey (-want +got):\n%s", d)
	}

	must[none](r, "UpdateKeyDescription", &UpdateKeyDescriptionInput{KeyId: &id, Description: ptr("")})
	must[none](r, "DisableKey", &DisableKeyInput{KeyId: &arn})
	_, version := r.cluster.state().Key(r.keyID(id))
	must[none](r, "DisableKey", &DisableKeyInput{KeyId: &arn}) // repeats are fine, and change nothing
	if _, v := r.cluster.state().Key(r.keyID(id)); v != version {
		t.Error("disabling a disabled key changed it")
	}
	want.Description, want.Enabled, want.KeyState = ptr(""), ptr(false), ptr("Disabled")
	if d := cmp.Diff(want, describe(id)); d != "" {
		t.Errorf("disabled key (-want +got):\n%s", d)
	}
	for range 2 {
		must[none](r, "EnableKey", &EnableKeyInput{KeyId: &id})
	}
	r.cluster.clock.advance(500 * time.Millisecond)
	s := must[ScheduleKeyDeletionOutput](r, "ScheduleKeyDeletion", &ScheduleKeyDeletionInput{KeyId: &id, PendingWindowInDays: ptr(int32(7))})
	at := created.Add(time.Second + 7*24*time.Hour) // counted from the next whole second
	if d := cmp.Diff(&ScheduleKeyDeletionOutput{KeyId: &arn, DeletionDate: &at, KeyState: ptr("PendingDeletion"), PendingWindowInDays: ptr(int32(7))}, s); d != "" {
		t.Errorf("ScheduleKeyDeletion (-want +got):\n%s", d)
	}
	want.KeyState, want.DeletionDate = ptr("PendingDeletion"), &at
	if d := cmp.Diff(want, describe(id)); d != "" {
		t.Errorf("key pending deletion (-want +got):\n%s", d)
	}
	if got := must[CancelKeyDeletionOutput](r, "CancelKeyDeletion", &CancelKeyDeletionInput{KeyId: &id}); *got.KeyId != arn {
		t.Errorf("CancelKeyDeletion answered %s, want %s", *got.KeyId, arn)
	}
	want.KeyState, want.DeletionDate = ptr("Disabled"), nil
	if d := cmp.Diff(want, describe(id)); d != "" {
		t.Errorf("key after CancelKeyDeletion (-want +got):\n%s", d)
	}
	def := must[ScheduleKeyDeletionOutput](r, "ScheduleKeyDeletion", &ScheduleKeyDeletionInput{KeyId: &id})
	if *def.PendingWindowInDays != 30 {
		t.Errorf("default window is %d days, want 30", *def.PendingWindowInDays)
	}
}

func TestCreateKeyErrors(t *testing.T) {
	r := newRoom(t)
	root := rootStatement
	tests := []struct {
		name    string
		in      CreateKeyInput
		kind    *Error
		message string
	}{
		{"both specs", CreateKeyInput{KeySpec: ptr("RSA_2048"), CustomerMasterKeySpec: ptr("RSA_2048")}, ErrValidation,
			"You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated."},
		{"no usage", CreateKeyInput{KeySpec: ptr("RSA_2048")}, ErrValidation,
			"You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys."},
		{"wrong usage", CreateKeyInput{KeySpec: ptr("RSA_2048"), KeyUsage: ptr("KEY_AGREEMENT")}, ErrValidation,
			"KeyUsage KEY_AGREEMENT is not compatible with KeySpec RSA_2048"},
		{"wrong usage of the default spec", CreateKeyInput{KeyUsage: ptr("SIGN_VERIFY")}, ErrValidation,
			"KeyUsage SIGN_VERIFY is not compatible with KeySpec SYMMETRIC_DEFAULT"},
		{"unsupported spec", CreateKeyInput{KeySpec: ptr("SM2"), KeyUsage: ptr("SIGN_VERIFY")}, ErrUnsupported,
			"KeySpec SM2 is not supported in this Region."},
		{"unsupported old spec", CreateKeyInput{CustomerMasterKeySpec: ptr("SM2"), KeyUsage: ptr("KEY_AGREEMENT")}, ErrUnsupported,
			"KeySpec SM2 is not supported in this Region."},
		{"import of a kind that cannot be", CreateKeyInput{Origin: ptr("EXTERNAL"), KeySpec: ptr("ML_DSA_65"), KeyUsage: ptr("SIGN_VERIFY")}, ErrUnsupported,
			"KeySpec ML_DSA_65 is not supported for Origin EXTERNAL."},
		{"multi-Region in a key store", CreateKeyInput{MultiRegion: ptr(true), CustomKeyStoreId: ptr("cks-1")}, ErrUnsupported, "Multi-Region keys cannot be in a custom key store."},
		{"multi-Region in an external key store", CreateKeyInput{MultiRegion: ptr(true), Origin: ptr("EXTERNAL_KEY_STORE")}, ErrUnsupported,
			"Multi-Region keys cannot be in a custom key store."},
		{"external key", CreateKeyInput{XksKeyId: ptr("x")}, ErrValidation, "XksKeyId is not valid with Origin AWS_KMS."},
		{"key store", CreateKeyInput{CustomKeyStoreId: ptr("cks-1")}, ErrValidation, "CustomKeyStoreId is not valid with Origin AWS_KMS."},
		{"aws: tag", CreateKeyInput{Tags: []Tag{{ptr("Aws:x"), ptr("")}}}, ErrTag, "Tags beginning with aws: are reserved"},
		{"same tag twice", CreateKeyInput{Tags: []Tag{{ptr("x"), ptr("1")}, {ptr("x"), ptr("2")}}}, ErrTag, "Duplicate tag keys"},
		{"too many tags", CreateKeyInput{Tags: manyTags(51)}, ErrTag, "Too many tags"},
		{"policy is no JSON", CreateKeyInput{Policy: ptr("{")}, ErrMalformedPolicy, "…"},
		{"policy with a condition", CreateKeyInput{Policy: ptr(r.policyFor(root, `{"Effect":"Allow","Principal":"*","Action":"*","Resource":"*","Condition":{}}`))},
			ErrMalformedPolicy, "…"},
		{"policy for nobody", CreateKeyInput{Policy: ptr(r.policyFor(root, statement("Allow", "arn:aws:iam::111122223333:user/nobody", "kms:*")))},
			ErrMalformedPolicy, "Policy contains a statement with one or more invalid principals."},
		{"policy for another account", CreateKeyInput{Policy: ptr(r.policyFor(root, statement("Allow", "444455556666", "kms:*")))},
			ErrMalformedPolicy, "Policy contains a statement with one or more invalid principals."},
		{"policy that locks out", CreateKeyInput{Policy: ptr(r.policyFor(statement("Allow", testAccount, "kms:Encrypt")))},
			ErrMalformedPolicy, "The new key policy will not allow you to update the key policy in the future."},
		{"policy too long", CreateKeyInput{Policy: ptr(r.policyFor(root) + strings.Repeat(" ", policy.MaxKeyPolicySize))}, ErrLimitExceeded, "…"},
	}
	before := r.cluster.audit.Size()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := call[CreateKeyOutput](r, "CreateKey", &tt.in)
			wantError(t, err, tt.kind, tt.message)
		})
	}
	for range r.cluster.state().AllKeys() {
		t.Fatal("a refused CreateKey made a key")
	}
	if n := r.cluster.audit.Size() - before; n != uint64(len(tests)) {
		t.Errorf("%d refusals left %d records", len(tests), n)
	}
	if _, err := call[CreateKeyOutput](r, "CreateKey", &CreateKeyInput{
		Policy: ptr(r.policyFor(statement("Allow", testAccount, "kms:Encrypt"))), BypassPolicyLockoutSafetyCheck: ptr(true), Tags: manyTags(50),
	}); err != nil {
		t.Errorf("with the safety check bypassed: %v", err)
	}
}

func manyTags(n int) []Tag {
	var tags []Tag
	for i := range n {
		tags = append(tags, Tag{ptr(fmt.Sprintf("k%02d", i)), ptr("v")})
	}
	return tags
}

func TestKeyQuota(t *testing.T) {
	r := newRoom(t)
	r.newKey()
	r.newKey()
	var c keyCount
	now := r.cluster.clock.Now()
	if c.atLeast(r.cluster.state(), now, testRegion, 3) || !c.atLeast(r.cluster.state(), now, testRegion, 2) {
		t.Error("two keys are not counted as two")
	}
	r.newKey()
	if c.atLeast(r.cluster.state(), now, testRegion, 3) {
		t.Error("keys were counted twice within a second")
	}
	if !c.atLeast(r.cluster.state(), now.Add(time.Second), testRegion, 3) {
		t.Error("keys were not counted again after a second")
	}
	if c.atLeast(r.cluster.state(), now.Add(time.Second), "us-east-1", 1) {
		t.Error("keys of one Region count in another")
	}
}

func TestEncryptDecrypt(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	must[none](r, "CreateAlias", &CreateAliasInput{AliasName: ptr("alias/app"), TargetKeyId: &id})
	context := map[string]string{"purpose": "test", "": "", "ключ": "значение"}
	for _, name := range []string{id, arn, "alias/app", "arn:aws:kms:eu-west-1:111122223333:alias/app"} {
		enc := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &name, Plaintext: []byte("secret"), EncryptionContext: context})
		if *enc.KeyId != arn || *enc.EncryptionAlgorithm != "SYMMETRIC_DEFAULT" {
			t.Errorf("Encrypt under %s answered key %s, algorithm %s", name, *enc.KeyId, *enc.EncryptionAlgorithm)
		}
		for _, given := range []*string{nil, &name} {
			dec := must[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: enc.CiphertextBlob, EncryptionContext: context, KeyId: given})
			if string(dec.Plaintext) != "secret" || *dec.KeyId != arn || *dec.EncryptionAlgorithm != "SYMMETRIC_DEFAULT" || len(*dec.KeyMaterialId) != 64 {
				t.Errorf("Decrypt gave %q under %s", dec.Plaintext, *dec.KeyId)
			}
		}
	}
	// nil and an empty context are the same.
	enc := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: make([]byte, 4096), EncryptionContext: map[string]string{}})
	dec := must[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: enc.CiphertextBlob})
	if !bytes.Equal(dec.Plaintext, make([]byte, 4096)) {
		t.Error("the largest plaintext came back changed")
	}
}

func TestReEncrypt(t *testing.T) {
	r := newRoom(t)
	from, fromARN := r.newKey()
	to, toARN := r.newKey()
	a, b := map[string]string{"k": "a"}, map[string]string{"k": "b"}
	enc := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &from, Plaintext: []byte("secret"), EncryptionContext: a})
	re := must[ReEncryptOutput](r, "ReEncrypt", &ReEncryptInput{
		CiphertextBlob: enc.CiphertextBlob, SourceEncryptionContext: a, DestinationKeyId: &to, DestinationEncryptionContext: b,
	})
	if *re.SourceKeyId != fromARN || *re.KeyId != toARN || len(*re.SourceKeyMaterialId) != 64 || *re.SourceKeyMaterialId == *re.DestinationKeyMaterialId {
		t.Errorf("ReEncrypt answered %+v", re)
	}
	dec := must[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: re.CiphertextBlob, EncryptionContext: b, KeyId: &to})
	if string(dec.Plaintext) != "secret" || *dec.KeyMaterialId != *re.DestinationKeyMaterialId {
		t.Errorf("after ReEncrypt: %q", dec.Plaintext)
	}
	// Under the same key, to change the context.
	must[ReEncryptOutput](r, "ReEncrypt", &ReEncryptInput{CiphertextBlob: re.CiphertextBlob, SourceEncryptionContext: b, SourceKeyId: &to, DestinationKeyId: &to})

	// The source fails before the destination is looked at.
	nowhere := ptr("alias/nowhere")
	_, err := call[ReEncryptOutput](r, "ReEncrypt", &ReEncryptInput{CiphertextBlob: enc.CiphertextBlob, SourceEncryptionContext: b, DestinationKeyId: nowhere})
	wantError(t, err, ErrInvalidCiphertext, "")
	_, err = call[ReEncryptOutput](r, "ReEncrypt", &ReEncryptInput{CiphertextBlob: enc.CiphertextBlob, SourceEncryptionContext: a, DestinationKeyId: nowhere})
	wantError(t, err, ErrNotFound, "Alias arn:aws:kms:eu-west-1:111122223333:alias/nowhere is not found.")
	_, err = call[ReEncryptOutput](r, "ReEncrypt", &ReEncryptInput{CiphertextBlob: enc.CiphertextBlob, SourceEncryptionContext: a, DestinationKeyId: ptr("arn:aws:kms:eu-west-1:444455556666:key/" + to)})
	wantError(t, err, ErrAccessDenied, "User: arn:aws:iam::111122223333:root is not authorized to perform: kms:ReEncryptTo on resource: arn:aws:kms:eu-west-1:444455556666:key/"+to+
		" because the resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access")
}

func TestDataKeys(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	context := map[string]string{"k": "v"}
	for _, tt := range []struct {
		spec *string
		n    *int32
		want int
	}{{ptr("AES_256"), nil, 32}, {ptr("AES_128"), nil, 16}, {nil, ptr(int32(1)), 1}, {nil, ptr(int32(1024)), 1024}} {
		k := must[GenerateDataKeyOutput](r, "GenerateDataKey", &GenerateDataKeyInput{KeyId: &id, KeySpec: tt.spec, NumberOfBytes: tt.n, EncryptionContext: context})
		if len(k.Plaintext) != tt.want || *k.KeyId != arn || len(*k.KeyMaterialId) != 64 {
			t.Errorf("GenerateDataKey gave %d bytes under %s, want %d", len(k.Plaintext), *k.KeyId, tt.want)
		}
		dec := must[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: k.CiphertextBlob, EncryptionContext: context})
		if !bytes.Equal(dec.Plaintext, k.Plaintext) {
			t.Error("a data key's ciphertext decrypts to something else")
		}
		w := must[GenerateDataKeyWithoutPlaintextOutput](r, "GenerateDataKeyWithoutPlaintext", &GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: tt.spec, NumberOfBytes: tt.n})
		dec = must[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: w.CiphertextBlob})
		if len(dec.Plaintext) != tt.want || tt.want > 1 && bytes.Equal(dec.Plaintext, make([]byte, tt.want)) {
			t.Errorf("a data key without plaintext decrypts to %d bytes, want %d random ones", len(dec.Plaintext), tt.want)
		}
	}
	for _, in := range []*GenerateDataKeyInput{{KeyId: &id}, {KeyId: &id, KeySpec: ptr("AES_256"), NumberOfBytes: ptr(int32(1))}, {KeyId: ptr("alias/none")}} {
		_, err := call[GenerateDataKeyOutput](r, "GenerateDataKey", in)
		wantError(t, err, ErrValidation, "Please specify either number of bytes or key spec.")
	}
	b := must[GenerateRandomOutput](r, "GenerateRandom", &GenerateRandomInput{NumberOfBytes: ptr(int32(64))}).Plaintext
	if len(b) != 64 || bytes.Equal(b, make([]byte, 64)) {
		t.Errorf("GenerateRandom gave %x", b)
	}
	_, err := call[GenerateRandomOutput](r, "GenerateRandom", &GenerateRandomInput{})
	wantError(t, err, ErrValidation, "NumberOfBytes is required.")
	_, err = call[GenerateRandomOutput](r, "GenerateRandom", &GenerateRandomInput{NumberOfBytes: ptr(int32(1)), CustomKeyStoreId: ptr("cks-1")})
	wantError(t, err, ErrCustomStoreNotFound, "")
	recipient := &RecipientInfo{AttestationDocument: []byte("x")}
	_, err = call[GenerateRandomOutput](r, "GenerateRandom", &GenerateRandomInput{NumberOfBytes: ptr(int32(1)), Recipient: recipient})
	wantError(t, err, ErrUnsupported, "Recipient is not supported by this node: it was started without --attestation-roots.")
	_, err = call[GenerateDataKeyOutput](r, "GenerateDataKey", &GenerateDataKeyInput{KeyId: &id, KeySpec: ptr("AES_256"), Recipient: recipient})
	wantError(t, err, ErrUnsupported, "Recipient is not supported by this node: it was started without --attestation-roots.")
	_, err = call[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: []byte("x"), Recipient: recipient})
	wantError(t, err, ErrUnsupported, "Recipient is not supported by this node: it was started without --attestation-roots.")
}

// TestCiphertextErrors: one error for whatever is wrong with a ciphertext, and
// the order in which the others come.
func TestCiphertextErrors(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	other, _ := r.newKey()
	context := map[string]string{"k": "v"}
	blob := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("secret"), EncryptionContext: context}).CiphertextBlob
	dec := func(in *DecryptInput) error {
		_, err := call[DecryptOutput](r, "Decrypt", in)
		return err
	}
	foreign := bytes.Clone(blob)
	foreign[5] ^= 1 // within the id of the cluster
	const incorrect = "The key ID in the request does not identify a CMK that can perform this operation."
	tests := []struct {
		name    string
		in      DecryptInput
		kind    *Error
		message string
	}{
		{"no context", DecryptInput{CiphertextBlob: blob}, ErrInvalidCiphertext, ""},
		{"other context", DecryptInput{CiphertextBlob: blob, EncryptionContext: map[string]string{"k": "V"}}, ErrInvalidCiphertext, ""},
		{"more context", DecryptInput{CiphertextBlob: blob, EncryptionContext: map[string]string{"k": "v", "l": ""}}, ErrInvalidCiphertext, ""},
		{"garbage", DecryptInput{CiphertextBlob: []byte("garbage")}, ErrInvalidCiphertext, ""},
		{"garbage with key", DecryptInput{CiphertextBlob: []byte("garbage"), KeyId: &id}, ErrInvalidCiphertext, ""},
		{"other cluster", DecryptInput{CiphertextBlob: foreign, EncryptionContext: context}, ErrInvalidCiphertext, ""},
		{"other cluster with key", DecryptInput{CiphertextBlob: foreign, EncryptionContext: context, KeyId: &id}, ErrInvalidCiphertext, ""},
		{"longer", DecryptInput{CiphertextBlob: append(bytes.Clone(blob), 0), EncryptionContext: context}, ErrInvalidCiphertext, ""},
		{"other key", DecryptInput{CiphertextBlob: blob, EncryptionContext: context, KeyId: &other}, ErrIncorrectKey, incorrect},
		{"no such key", DecryptInput{CiphertextBlob: []byte("garbage"), KeyId: ptr("alias/none")}, ErrNotFound, "Alias arn:aws:kms:eu-west-1:111122223333:alias/none is not found."},
		{"other algorithm", DecryptInput{CiphertextBlob: blob, EncryptionContext: context, KeyId: &id, EncryptionAlgorithm: ptr("RSAES_OAEP_SHA_256")},
			ErrInvalidKeyUsage, "Algorithm RSAES_OAEP_SHA_256 is incompatible with key spec SYMMETRIC_DEFAULT."},
		{"other algorithm without key", DecryptInput{CiphertextBlob: blob, EncryptionAlgorithm: ptr("RSAES_OAEP_SHA_1")},
			ErrValidation, "KeyId is required with the algorithm RSAES_OAEP_SHA_1."},
		{"no ciphertext", DecryptInput{KeyId: &id}, ErrValidation,
			"1 validation error detected: Value at 'ciphertextBlob' failed to satisfy constraint: Member must not be null"},
		{"grant token", DecryptInput{CiphertextBlob: blob, EncryptionContext: context, GrantTokens: []string{"made up"}}, ErrInvalidGrantToken, ""},
		{"ignored without dry run", DecryptInput{KeyId: &id, DryRunModifiers: []string{"IGNORE_CIPHERTEXT"}}, ErrValidation, "…"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { wantError(t, dec(&tt.in), tt.kind, tt.message) })
	}
	t.Run("every cut", func(t *testing.T) {
		r.first.limits.burst = 1 << 20
		for n := 1; n < len(blob); n++ {
			wantError(t, dec(&DecryptInput{CiphertextBlob: blob[:n], EncryptionContext: context}), ErrInvalidCiphertext, "")
		}
	})
	t.Run("disabled key", func(t *testing.T) {
		must[none](r, "DisableKey", &DisableKeyInput{KeyId: &id})
		wantError(t, dec(&DecryptInput{CiphertextBlob: blob, EncryptionContext: context}), ErrDisabled, arn+" is disabled.")
		wantError(t, dec(&DecryptInput{CiphertextBlob: []byte("garbage"), KeyId: &id}), ErrDisabled, arn+" is disabled.")
		wantError(t, dec(&DecryptInput{CiphertextBlob: blob, KeyId: &other}), ErrIncorrectKey, incorrect)
		must[none](r, "EnableKey", &EnableKeyInput{KeyId: &id})
	})
	t.Run("deleted key", func(t *testing.T) {
		const denied = "User: arn:aws:iam::111122223333:root is not authorized to perform: kms:Decrypt on the resource associated with this ciphertext because the resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access"
		must[ScheduleKeyDeletionOutput](r, "ScheduleKeyDeletion", &ScheduleKeyDeletionInput{KeyId: &id, PendingWindowInDays: ptr(int32(7))})
		wantError(t, dec(&DecryptInput{CiphertextBlob: blob, EncryptionContext: context}), ErrInvalidState, arn+" is pending deletion.")
		r.cluster.advance(8 * 24 * time.Hour)
		k := r.keyID(id)
		r.cluster.change(&fsmpb.Change{Change: &fsmpb.Change_DeleteKey{DeleteKey: &fsmpb.DeleteKey{Key: k.ID[:], Region: k.Region}}})
		wantError(t, dec(&DecryptInput{CiphertextBlob: blob, EncryptionContext: context}), ErrAccessDenied, denied)
		wantError(t, dec(&DecryptInput{CiphertextBlob: blob, KeyId: &id}), ErrNotFound, "Key '"+arn+"' does not exist")
		// No permission reads exactly like no key.
		blob := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &other, Plaintext: []byte("x")}).CiphertextBlob
		r.setPolicy(other, r.policyFor(rootStatement, statement("Deny", testAccount, "kms:Decrypt")))
		wantError(t, dec(&DecryptInput{CiphertextBlob: blob}), ErrAccessDenied, denied)
	})
}

// TestEveryFlippedBit goes through the whole engine: no bit of a ciphertext may
// be wrong.
func TestEveryFlippedBit(t *testing.T) {
	r := newRoom(t)
	r.first.limits.burst = 1 << 20
	id, _ := r.newKey()
	blob := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("secret")}).CiphertextBlob
	for i := range blob {
		for bit := range 8 {
			flipped := bytes.Clone(blob)
			flipped[i] ^= 1 << bit
			_, err := call[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: flipped})
			if wantError(t, err, ErrInvalidCiphertext, ""); t.Failed() {
				t.Fatalf("bit %d of byte %d", bit, i)
			}
		}
	}
}

func TestUsage(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	blob := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	sign, signARN := r.newKeyOf("RSA_2048", usageSign)

	_, err := call[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &sign, Plaintext: []byte("x"), EncryptionAlgorithm: ptr("RSAES_OAEP_SHA_1")})
	wantError(t, err, ErrInvalidKeyUsage, signARN+" key usage is SIGN_VERIFY which is not valid for Encrypt.")
	_, err = call[GenerateDataKeyOutput](r, "GenerateDataKey", &GenerateDataKeyInput{KeyId: &sign, KeySpec: ptr("AES_256")})
	wantError(t, err, ErrInvalidKeyUsage, signARN+" key usage is SIGN_VERIFY which is not valid for GenerateDataKey.")
	_, err = call[ReEncryptOutput](r, "ReEncrypt", &ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &sign})
	wantError(t, err, ErrInvalidKeyUsage, signARN+" key usage is SIGN_VERIFY which is not valid for ReEncrypt.")
	_, err = call[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: blob, KeyId: &sign})
	wantError(t, err, ErrIncorrectKey, "…") // before the usage is looked at
	_, err = call[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionAlgorithm: ptr("SM2PKE")})
	wantError(t, err, ErrInvalidKeyUsage, "Algorithm SM2PKE is incompatible with key spec SYMMETRIC_DEFAULT.")
	// An alias does not move between kinds of keys.
	must[none](r, "CreateAlias", &CreateAliasInput{AliasName: ptr("alias/a"), TargetKeyId: &id})
	_, err = call[none](r, "UpdateAlias", &UpdateAliasInput{AliasName: ptr("alias/a"), TargetKeyId: &sign})
	wantError(t, err, ErrValidation, "…")
}

func TestDryRun(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	yes := ptr(true)
	blob := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	ignore := []string{"IGNORE_CIPHERTEXT"}
	for name, in := range map[string]any{
		"Encrypt":                         &EncryptInput{KeyId: &id, Plaintext: []byte("x"), DryRun: yes},
		"Decrypt":                         &DecryptInput{CiphertextBlob: blob, DryRun: yes},
		"ReEncrypt":                       &ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &id, DryRun: yes},
		"GenerateDataKey":                 &GenerateDataKeyInput{KeyId: &id, KeySpec: ptr("AES_256"), DryRun: yes},
		"GenerateDataKeyWithoutPlaintext": &GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: ptr("AES_256"), DryRun: yes},
	} {
		_, err := call[none](r, name, in)
		wantError(t, err, ErrDryRun, "The request would have succeeded, but the DryRun option is set.")
		if rec := r.lastRecord(); rec.ErrorCode != "DryRunOperationException" || rec.EventName != name {
			t.Errorf("%s left a record of %s with %q", name, rec.EventName, rec.ErrorCode)
		}
	}
	for name, in := range map[string]any{
		"Decrypt":   &DecryptInput{KeyId: &id, DryRun: yes, DryRunModifiers: ignore},
		"ReEncrypt": &ReEncryptInput{SourceKeyId: &id, DestinationKeyId: &id, DryRun: yes, DryRunModifiers: ignore},
	} {
		_, err := call[none](r, name, in)
		wantError(t, err, ErrDryRun, "…")
	}
	_, err := call[none](r, "Decrypt", &DecryptInput{DryRun: yes, DryRunModifiers: ignore})
	wantError(t, err, ErrValidation, "KeyId is required when the ciphertext is ignored.")
	_, err = call[none](r, "Decrypt", &DecryptInput{CiphertextBlob: append(blob, 0), DryRun: yes})
	wantError(t, err, ErrInvalidCiphertext, "")
	must[none](r, "DisableKey", &DisableKeyInput{KeyId: &id})
	_, err = call[none](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x"), DryRun: yes})
	wantError(t, err, ErrDisabled, arn+" is disabled.")
}

func TestAliases(t *testing.T) {
	r := newRoom(t)
	id, arn := r.newKey()
	other, otherARN := r.newKey()
	alias := func(name string) string { return "arn:aws:kms:eu-west-1:111122223333:" + name }
	create := func(name, key string) error {
		_, err := call[none](r, "CreateAlias", &CreateAliasInput{AliasName: &name, TargetKeyId: &key})
		return err
	}
	const prefix = `Alias must start with the prefix "alias/". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`
	wantError(t, create("app", id), ErrValidation, prefix)
	wantError(t, create("Alias/app", id), ErrValidation, prefix)
	wantError(t, create("alias/a:b", id), ErrValidation, "alias/a:b contains invalid characters for an alias")
	wantError(t, create("alias/aws/s3", id), ErrNotAuthorized, "")
	wantError(t, create("alias/", id), ErrValidation, "alias/ contains invalid characters for an alias")
	wantError(t, create("alias/app", "alias/app"), ErrValidation, "Aliases must refer to keys. Not aliases")
	wantError(t, create("alias/app", alias("alias/app")), ErrValidation, "Aliases must refer to keys. Not aliases")
	if err := create("alias/app", arn); err != nil {
		t.Fatal(err)
	}
	wantError(t, create("alias/app", other), ErrAlreadyExists, "An alias with the name "+alias("alias/app")+" already exists")
	created := r.cluster.clock.Now()
	r.cluster.clock.advance(time.Hour)
	must[none](r, "UpdateAlias", &UpdateAliasInput{AliasName: ptr("alias/app"), TargetKeyId: &otherARN})
	updated := r.cluster.clock.Now()
	want := &ListAliasesOutput{Truncated: ptr(false), Aliases: []AliasListEntry{{
		AliasName: ptr("alias/app"), AliasArn: ptr(alias("alias/app")), TargetKeyId: &other, CreationDate: &created, LastUpdatedDate: &updated,
	}}}
	if d := cmp.Diff(want, must[ListAliasesOutput](r, "ListAliases", &ListAliasesInput{})); d != "" {
		t.Errorf("ListAliases (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want, must[ListAliasesOutput](r, "ListAliases", &ListAliasesInput{KeyId: &otherARN})); d != "" {
		t.Errorf("ListAliases of the key (-want +got):\n%s", d)
	}
	if got := must[ListAliasesOutput](r, "ListAliases", &ListAliasesInput{KeyId: &id}); len(got.Aliases) != 0 || got.Aliases == nil {
		t.Errorf("ListAliases of the old key: %v, want an empty list", got.Aliases)
	}
	_, err := call[none](r, "UpdateAlias", &UpdateAliasInput{AliasName: ptr("alias/none"), TargetKeyId: &id})
	wantError(t, err, ErrNotFound, "Alias "+alias("alias/none")+" is not found.")
	_, err = call[none](r, "DeleteAlias", &DeleteAliasInput{AliasName: ptr("alias/none")})
	wantError(t, err, ErrNotFound, "Alias "+alias("alias/none")+" is not found.")
	must[none](r, "DeleteAlias", &DeleteAliasInput{AliasName: ptr("alias/app")})

	for i := range defaultQuotas.Aliases {
		if err := create(fmt.Sprintf("alias/n%d", i), id); err != nil {
			t.Fatal(err)
		}
	}
	wantError(t, create("alias/more", id), ErrLimitExceeded, arn+" has 50 aliases and cannot have more.")
	must[none](r, "UpdateAlias", &UpdateAliasInput{AliasName: ptr("alias/n1"), TargetKeyId: &id}) // is there already
	if err := create("alias/more", other); err != nil {
		t.Fatal(err)
	}
	_, err = call[none](r, "UpdateAlias", &UpdateAliasInput{AliasName: ptr("alias/more"), TargetKeyId: &id})
	wantError(t, err, ErrLimitExceeded, "…")

	must[ScheduleKeyDeletionOutput](r, "ScheduleKeyDeletion", &ScheduleKeyDeletionInput{KeyId: &id})
	wantError(t, create("alias/late", id), ErrInvalidState, arn+" is pending deletion.")
	_, err = call[none](r, "UpdateAlias", &UpdateAliasInput{AliasName: ptr("alias/more"), TargetKeyId: &id})
	wantError(t, err, ErrInvalidState, arn+" is pending deletion.")
	must[none](r, "UpdateAlias", &UpdateAliasInput{AliasName: ptr("alias/n2"), TargetKeyId: &other}) // away from it
	must[none](r, "DeleteAlias", &DeleteAliasInput{AliasName: ptr("alias/n3")})
}

func TestTags(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	tag := func(tags ...Tag) error {
		_, err := call[none](r, "TagResource", &TagResourceInput{KeyId: &id, Tags: tags})
		return err
	}
	list := func() map[string]string {
		m := map[string]string{}
		for _, tag := range must[ListResourceTagsOutput](r, "ListResourceTags", &ListResourceTagsInput{KeyId: &id}).Tags {
			m[*tag.TagKey] = *tag.TagValue
		}
		return m
	}
	if got := list(); len(got) != 0 {
		t.Errorf("a new key has tags %v", got)
	}
	if err := tag(manyTags(50)...); err != nil {
		t.Fatal(err)
	}
	wantError(t, tag(Tag{ptr("one more"), ptr("")}), ErrTag, "Too many tags")
	wantError(t, tag(Tag{ptr("AWS:"), ptr("")}), ErrTag, "Tags beginning with aws: are reserved")
	wantError(t, tag(Tag{ptr("k01"), ptr("")}, Tag{ptr("k01"), ptr("")}), ErrTag, "Duplicate tag keys")
	if err := tag(Tag{ptr("k01"), ptr("new")}); err != nil {
		t.Errorf("overwriting a tag: %v", err)
	}
	must[none](r, "UntagResource", &UntagResourceInput{KeyId: &id, TagKeys: []string{"k02", "unknown"}})
	got := list()
	if len(got) != 49 || got["k01"] != "new" || got["k02"] != "" {
		t.Errorf("after changes the key has %d tags, %v", len(got), got)
	}
	// Repeating an untag changes nothing, and is recorded.
	_, version := r.cluster.state().KeyTags(r.keyID(id))
	must[none](r, "UntagResource", &UntagResourceInput{KeyId: &id, TagKeys: []string{"k02"}})
	if _, v := r.cluster.state().KeyTags(r.keyID(id)); v != version {
		t.Error("removing no tag changed the tags")
	}
	if rec := r.lastRecord(); rec.EventName != "UntagResource" {
		t.Errorf("the last record is of %s", rec.EventName)
	}
}

func TestKeyPolicies(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	get := func() *GetKeyPolicyOutput {
		t.Helper()
		return must[GetKeyPolicyOutput](r, "GetKeyPolicy", &GetKeyPolicyInput{KeyId: &id})
	}
	if got := get(); *got.Policy != policy.DefaultKeyPolicy("aws", testAccount) || *got.PolicyName != "default" {
		t.Errorf("default policy is %s", *got.Policy)
	}
	text := "\n" + r.policyFor(rootStatement, statement("Deny", "*", "kms:Decrypt")) + "\t"
	must[none](r, "PutKeyPolicy", &PutKeyPolicyInput{KeyId: &id, Policy: &text, PolicyName: ptr("default")})
	if got := get(); *got.Policy != text {
		t.Errorf("GetKeyPolicy changed the policy to %s", *got.Policy)
	}
	blob := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	_, err := call[DecryptOutput](r, "Decrypt", &DecryptInput{KeyId: &id, CiphertextBlob: blob})
	wantError(t, err, ErrAccessDenied, "User: arn:aws:iam::111122223333:root is not authorized to perform: kms:Decrypt on resource: "+
		"arn:aws:kms:eu-west-1:111122223333:key/"+id+" with an explicit deny in a resource-based policy")
	for _, name := range []string{"other", "Default"} {
		_, err := call[none](r, "PutKeyPolicy", &PutKeyPolicyInput{KeyId: &id, Policy: &text, PolicyName: &name})
		wantError(t, err, ErrNotFound, "No such policy exists")
		_, err = call[none](r, "GetKeyPolicy", &GetKeyPolicyInput{KeyId: &id, PolicyName: &name})
		wantError(t, err, ErrNotFound, "No such policy exists")
	}
	out := r.policyFor(statement("Allow", testAccount, "kms:GetKeyPolicy"))
	_, err = call[none](r, "PutKeyPolicy", &PutKeyPolicyInput{KeyId: &id, Policy: &out})
	wantError(t, err, ErrMalformedPolicy, "The new key policy will not allow you to update the key policy in the future.")
	must[none](r, "PutKeyPolicy", &PutKeyPolicyInput{KeyId: &id, Policy: &out, BypassPolicyLockoutSafetyCheck: ptr(true)})
	get()
	_, err = call[none](r, "PutKeyPolicy", &PutKeyPolicyInput{KeyId: &id, Policy: &text})
	wantError(t, err, ErrAccessDenied, "User: arn:aws:iam::111122223333:root is not authorized to perform: kms:PutKeyPolicy on resource: "+
		"arn:aws:kms:eu-west-1:111122223333:key/"+id+" because no resource-based policy allows the kms:PutKeyPolicy action")
	_, err = call[none](r, "ListKeyPolicies", &ListKeyPoliciesInput{KeyId: &id})
	wantError(t, err, ErrAccessDenied, "…")
	id, _ = r.newKey()
	want := &ListKeyPoliciesOutput{PolicyNames: []string{"default"}, Truncated: ptr(false)}
	if d := cmp.Diff(want, must[ListKeyPoliciesOutput](r, "ListKeyPolicies", &ListKeyPoliciesInput{KeyId: &id})); d != "" {
		t.Errorf("ListKeyPolicies (-want +got):\n%s", d)
	}
}
