package keyengine

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestValidate(t *testing.T) {
	const one = "1 validation error detected: "
	id := ptr("x")
	long := strings.Repeat("x", 2049)
	tests := []struct {
		name string
		in   any
		want string
	}{
		{"good", &EncryptInput{KeyId: id, Plaintext: []byte("p")}, ""},
		{"required text", &DescribeKeyInput{}, one + "Value null at 'keyId' failed to satisfy constraint: Member must not be null"},
		{"required blob", &EncryptInput{KeyId: id}, one + "Value at 'plaintext' failed to satisfy constraint: Member must not be null"},
		{"required list", &TagResourceInput{KeyId: id}, one + "Value null at 'tags' failed to satisfy constraint: Member must not be null"},
		{"empty list", &TagResourceInput{KeyId: id, Tags: []Tag{}}, ""},
		{"short text", &DescribeKeyInput{KeyId: ptr("")}, one + "Value '' at 'keyId' failed to satisfy constraint: Member must have length greater than or equal to 1"},
		{"long text", &DescribeKeyInput{KeyId: &long}, one + "Value '" + long + "' at 'keyId' failed to satisfy constraint: Member must have length less than or equal to 2048"},
		{"characters, not bytes", &UpdateKeyDescriptionInput{KeyId: id, Description: ptr(strings.Repeat("ü", 8192))}, ""},
		{"a character more", &UpdateKeyDescriptionInput{KeyId: id, Description: ptr(strings.Repeat("ü", 8193))},
			one + "Value '" + strings.Repeat("ü", 8193) + "' at 'description' failed to satisfy constraint: Member must have length less than or equal to 8192"},
		{"empty blob", &EncryptInput{KeyId: id, Plaintext: []byte{}}, one + "Value at 'plaintext' failed to satisfy constraint: Member must have length greater than or equal to 1"},
		{"largest blob", &EncryptInput{KeyId: id, Plaintext: make([]byte, 4096)}, ""},
		{"long blob", &EncryptInput{KeyId: id, Plaintext: make([]byte, 4097)}, one + "Value at 'plaintext' failed to satisfy constraint: Member must have length less than or equal to 4096"},
		{"long ciphertext", &DecryptInput{CiphertextBlob: make([]byte, 6145)}, one + "Value at 'ciphertextBlob' failed to satisfy constraint: Member must have length less than or equal to 6144"},
		{"small number", &GenerateRandomInput{NumberOfBytes: ptr(int32(0))}, one + "Value '0' at 'numberOfBytes' failed to satisfy constraint: Member must have value greater than or equal to 1"},
		{"large number", &GenerateRandomInput{NumberOfBytes: ptr(int32(1025))}, one + "Value '1025' at 'numberOfBytes' failed to satisfy constraint: Member must have value less than or equal to 1024"},
		{"negative number", &ListKeysInput{Limit: ptr(int32(-1))}, one + "Value '-1' at 'limit' failed to satisfy constraint: Member must have value greater than or equal to 1"},
		{"window", &ScheduleKeyDeletionInput{KeyId: id, PendingWindowInDays: ptr(int32(6))}, one + "Value '6' at 'pendingWindowInDays' failed to satisfy constraint: Member must have value greater than or equal to 7"},
		{"long window", &ScheduleKeyDeletionInput{KeyId: id, PendingWindowInDays: ptr(int32(31))}, one + "Value '31' at 'pendingWindowInDays' failed to satisfy constraint: Member must have value less than or equal to 30"},
		{"enum", &GenerateDataKeyInput{KeyId: id, KeySpec: ptr("aes_256")}, one + "Value 'aes_256' at 'keySpec' failed to satisfy constraint: Member must satisfy enum value set: [AES_256, AES_128]"},
		{"pattern", &DeleteAliasInput{AliasName: ptr("alias/a b")}, one + "Value 'alias/a b' at 'aliasName' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"},
		{"pattern of nothing", &DeleteAliasInput{AliasName: ptr("")}, "2 validation errors detected: Value '' at 'aliasName' failed to satisfy constraint: Member must have length greater than or equal to 1; " +
			"Value '' at 'aliasName' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"},
		{"policy characters", &PutKeyPolicyInput{KeyId: id, Policy: ptr("{\"a\":\"\u0100\"}")}, one + "Value '{\"a\":\"\u0100\"}' at 'policy' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\u0009\\u000A\\u000D\\u0020-\\u00FF]+"},
		{"good policy characters", &PutKeyPolicyInput{KeyId: id, Policy: ptr("\t\r\n \u00ff")}, ""},
		{"control in a policy", &PutKeyPolicyInput{KeyId: id, Policy: ptr("\x00")}, one + "Value '\x00' at 'policy' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\u0009\\u000A\\u000D\\u0020-\\u00FF]+"},
		{"member of a list", &TagResourceInput{KeyId: id, Tags: []Tag{{ptr("k"), ptr("")}, {ptr(""), nil}}},
			"2 validation errors detected: Value '' at 'tags.2.member.tagKey' failed to satisfy constraint: Member must have length greater than or equal to 1; " +
				"Value null at 'tags.2.member.tagValue' failed to satisfy constraint: Member must not be null"},
		{"long tag", &TagResourceInput{KeyId: id, Tags: []Tag{{ptr(strings.Repeat("k", 129)), ptr(strings.Repeat("v", 257))}}},
			"2 validation errors detected: Value '" + strings.Repeat("k", 129) + "' at 'tags.1.member.tagKey' failed to satisfy constraint: Member must have length less than or equal to 128; " +
				"Value '" + strings.Repeat("v", 257) + "' at 'tags.1.member.tagValue' failed to satisfy constraint: Member must have length less than or equal to 256"},
		{"list of texts", &UntagResourceInput{KeyId: id, TagKeys: []string{"a", ""}},
			one + "Value '[a, ]' at 'tagKeys' failed to satisfy constraint: Member must satisfy constraint: [Member must have length less than or equal to 128, Member must have length greater than or equal to 1]"},
		{"list of enums", &DecryptInput{DryRunModifiers: []string{"X"}},
			one + "Value '[X]' at 'dryRunModifiers' failed to satisfy constraint: Member must satisfy constraint: [Member must satisfy enum value set: [IGNORE_CIPHERTEXT]]"},
		{"long list", &DescribeKeyInput{KeyId: id, GrantTokens: slices.Repeat([]string{"t"}, 11)},
			one + "Value '[t, t, t, t, t, t, t, t, t, t, t]' at 'grantTokens' failed to satisfy constraint: Member must have length less than or equal to 10"},
		{"nested", &DecryptInput{Recipient: &RecipientInfo{KeyEncryptionAlgorithm: ptr("RSA"), AttestationDocument: []byte{}}},
			"2 validation errors detected: Value 'RSA' at 'recipient.keyEncryptionAlgorithm' failed to satisfy constraint: Member must satisfy enum value set: [RSAES_OAEP_SHA_256]; " +
				"Value at 'recipient.attestationDocument' failed to satisfy constraint: Member must have length greater than or equal to 1"},
		{"largest context", &EncryptInput{KeyId: id, Plaintext: []byte("p"), EncryptionContext: map[string]string{"k": strings.Repeat("v", 8191)}}, ""},
		{"large context", &EncryptInput{KeyId: id, Plaintext: []byte("p"), EncryptionContext: map[string]string{"k": strings.Repeat("v", 8192)}},
			one + "Value at 'encryptionContext' failed to satisfy constraint: Member must have keys and values of at most 8192 bytes in all"},
		{"context is no text", &EncryptInput{KeyId: id, Plaintext: []byte("p"), EncryptionContext: map[string]string{"k": "\xff"}},
			one + "Value at 'encryptionContext' failed to satisfy constraint: Member must be Unicode text"},
		{"no text", &DescribeKeyInput{KeyId: ptr("a\xffb")}, one + "Value 'a\uFFFDb' at 'keyId' failed to satisfy constraint: Member must be Unicode text"},
		{"all at once", &CreateKeyInput{KeySpec: ptr("A"), KeyUsage: ptr("B"), Origin: ptr("C"), Description: ptr(strings.Repeat("d", 8193)), Policy: ptr("")},
			"6 validation errors detected: Value '' at 'policy' failed to satisfy constraint: Member must have length greater than or equal to 1; " +
				"Value '' at 'policy' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\u0009\\u000A\\u000D\\u0020-\\u00FF]+; " +
				"Value '" + strings.Repeat("d", 8193) + "' at 'description' failed to satisfy constraint: Member must have length less than or equal to 8192; " +
				"Value 'B' at 'keyUsage' failed to satisfy constraint: Member must satisfy enum value set: [SIGN_VERIFY, ENCRYPT_DECRYPT, GENERATE_VERIFY_MAC, KEY_AGREEMENT]; " +
				"Value 'A' at 'keySpec' failed to satisfy constraint: Member must satisfy enum value set: " + enums["KeySpec"].text + "; " +
				"Value 'C' at 'origin' failed to satisfy constraint: Member must satisfy enum value set: [AWS_KMS, EXTERNAL, AWS_CLOUDHSM, EXTERNAL_KEY_STORE]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := compile(reflect.TypeOf(tt.in).Elem()).validate(tt.in)
			if tt.want == "" {
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
				return
			}
			wantError(t, err, ErrValidation, tt.want)
		})
	}
}

// TestValidationIsBounded: a megabyte of empty tags must not become a hundred
// megabytes of complaints.
func TestValidationIsBounded(t *testing.T) {
	in := &TagResourceInput{KeyId: ptr("x"), Tags: make([]Tag, 300_000)}
	err := planFor[TagResourceInput]().validate(in)
	if n := len(err.Error()); n > 20_000 || !strings.HasPrefix(err.Error(), "ValidationException: 100 validation errors detected: ") {
		t.Errorf("%d bytes: %.80s", n, err)
	}
}

// TestSensitiveMembers: no value that may not stand in a message does.
func TestSensitiveMembers(t *testing.T) {
	type input struct {
		Secret *string  `kms:"len=1..3,pattern=alias,sensitive,nolog"`
		List   []string `kms:"len=0..1,each.len=1..3,sensitive,nolog"`
	}
	err := planFor[input]().validate(&input{Secret: ptr("hush hush"), List: []string{"hush hush", "hush hush"}})
	if err == nil || strings.Contains(err.Error(), "hush") || !strings.HasPrefix(err.Error(), "ValidationException: 4 validation") {
		t.Errorf("got %v", err)
	}
}

func TestWrongTagsPanic(t *testing.T) {
	for name, compileIt := range map[string]func(){
		"no decision to log": func() {
			planFor[struct {
				A *string `kms:"required"`
			}]()
		},
		"both decisions": func() {
			planFor[struct {
				A *string `kms:"log,nolog"`
			}]()
		},
		"no tag": func() { planFor[struct{ A *string }]() },
		"unknown rule": func() {
			planFor[struct {
				A *string `kms:"log,maximum=3"`
			}]()
		},
		"unknown enum": func() {
			planFor[struct {
				A *string `kms:"log,enum=Nothing"`
			}]()
		},
		"bad bounds": func() {
			planFor[struct {
				A *string `kms:"log,len=3..1"`
			}]()
		},
		"bad default": func() {
			planFor[struct {
				A *int32 `kms:"log,default=x"`
			}]()
		},
		"other type": func() {
			planFor[struct {
				A int `kms:"log"`
			}]()
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			compileIt()
		}()
	}
}

func TestLowerCamel(t *testing.T) {
	for in, want := range map[string]string{"KeyId": "keyId", "AWSAccountId": "awsAccountId", "X": "x", "ID": "id", "NumberOfBytes": "numberOfBytes"} {
		if got := lowerCamel(in); got != want {
			t.Errorf("lowerCamel(%s) = %s, want %s", in, got, want)
		}
	}
}

// TestInvalidInputIsRecorded: an authenticated caller's request leaves a record
// whatever is wrong with it.
func TestInvalidInputIsRecorded(t *testing.T) {
	r := newRoom(t)
	size := r.cluster.audit.Size()
	_, err := call[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: ptr("bad\xfftext"), Plaintext: make([]byte, 5000), EncryptionContext: map[string]string{"\xff": "x"}})
	wantError(t, err, ErrValidation, "…")
	if n := r.cluster.audit.Size() - size; n != 1 {
		t.Fatalf("the request left %d records", n)
	}
	rec := r.lastRecord()
	if rec.EventName != "Encrypt" || rec.ErrorCode != "ValidationException" || !utf8.ValidString(fmt.Sprint(rec)) {
		t.Errorf("record of %s with %s", rec.EventName, rec.ErrorCode)
	}
}
