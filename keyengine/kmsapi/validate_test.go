package kmsapi

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	const one = "1 validation error detected: "
	id := new("x")
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
		{"short text", &DescribeKeyInput{KeyId: new("")}, "2 validation errors detected: Value '' at 'keyId' failed to satisfy constraint: Member must have length greater than or equal to 1; " +
			`Value '' at 'keyId' failed to satisfy constraint: Member must satisfy regular expression pattern: ^\p{ASCII}+$`},
		{"a key id that is not ASCII", &DescribeKeyInput{KeyId: new("キー")}, one + `Value 'キー' at 'keyId' failed to satisfy constraint: Member must satisfy regular expression pattern: ^\p{ASCII}+$`},
		{"a secret member missing", &EncryptInput{KeyId: id}, one + "Value at 'plaintext' failed to satisfy constraint: Member must not be null"},
		{"another blob missing", &VerifyMacInput{KeyId: id, Message: []byte("m"), MacAlgorithm: new("HMAC_SHA_256")}, one + "Value null at 'mac' failed to satisfy constraint: Member must not be null"},
		{"long text", &DescribeKeyInput{KeyId: &long}, one + "Value '" + long + "' at 'keyId' failed to satisfy constraint: Member must have length less than or equal to 2048"},
		{"characters, not bytes", &UpdateKeyDescriptionInput{KeyId: id, Description: new(strings.Repeat("ü", 8192))}, ""},
		{"a character more", &UpdateKeyDescriptionInput{KeyId: id, Description: new(strings.Repeat("ü", 8193))},
			one + "Value '" + strings.Repeat("ü", 8193) + "' at 'description' failed to satisfy constraint: Member must have length less than or equal to 8192"},
		{"empty blob", &EncryptInput{KeyId: id, Plaintext: []byte{}}, one + "Value at 'plaintext' failed to satisfy constraint: Member must have length greater than or equal to 1"},
		{"largest blob", &EncryptInput{KeyId: id, Plaintext: make([]byte, 4096)}, ""},
		{"long blob", &EncryptInput{KeyId: id, Plaintext: make([]byte, 4097)}, one + "Value at 'plaintext' failed to satisfy constraint: Member must have length less than or equal to 4096"},
		{"long ciphertext", &DecryptInput{CiphertextBlob: make([]byte, 6145)}, one + "Value at 'ciphertextBlob' failed to satisfy constraint: Member must have length less than or equal to 6144"},
		{"small number", &GenerateRandomInput{NumberOfBytes: new(int32(0))}, one + "Value '0' at 'numberOfBytes' failed to satisfy constraint: Member must have value greater than or equal to 1"},
		{"large number", &GenerateRandomInput{NumberOfBytes: new(int32(1025))}, one + "Value '1025' at 'numberOfBytes' failed to satisfy constraint: Member must have value less than or equal to 1024"},
		{"negative number", &ListKeysInput{Limit: new(int32(-1))}, one + "Value '-1' at 'limit' failed to satisfy constraint: Member must have value greater than or equal to 1"},
		{"window", &ScheduleKeyDeletionInput{KeyId: id, PendingWindowInDays: new(int32(6))}, one + "Value '6' at 'pendingWindowInDays' failed to satisfy constraint: Member must have value greater than or equal to 7"},
		{"long window", &ScheduleKeyDeletionInput{KeyId: id, PendingWindowInDays: new(int32(31))}, one + "Value '31' at 'pendingWindowInDays' failed to satisfy constraint: Member must have value less than or equal to 30"},
		{"enum", &GenerateDataKeyInput{KeyId: id, KeySpec: new("aes_256")}, one + "Value 'aes_256' at 'keySpec' failed to satisfy constraint: Member must satisfy enum value set: [AES_256, AES_128]"},
		{"pattern", &DeleteAliasInput{AliasName: new("alias/a b")}, one + "Value 'alias/a b' at 'aliasName' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"},
		{"pattern of nothing", &DeleteAliasInput{AliasName: new("")}, "2 validation errors detected: Value '' at 'aliasName' failed to satisfy constraint: Member must have length greater than or equal to 1; " +
			"Value '' at 'aliasName' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"},
		{"policy characters", &PutKeyPolicyInput{KeyId: id, Policy: new("{\"a\":\"\u0100\"}")}, one + "Value '{\"a\":\"\u0100\"}' at 'policy' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\u0009\\u000A\\u000D\\u0020-\\u00FF]+"},
		{"good policy characters", &PutKeyPolicyInput{KeyId: id, Policy: new("\t\r\n \u00ff")}, ""},
		{"control in a policy", &PutKeyPolicyInput{KeyId: id, Policy: new("\x00")}, one + "Value '\x00' at 'policy' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\u0009\\u000A\\u000D\\u0020-\\u00FF]+"},
		{"member of a list", &TagResourceInput{KeyId: id, Tags: []Tag{{new("k"), new("")}, {new(""), nil}}},
			"2 validation errors detected: Value '' at 'tags.2.member.tagKey' failed to satisfy constraint: Member must have length greater than or equal to 1; " +
				"Value null at 'tags.2.member.tagValue' failed to satisfy constraint: Member must not be null"},
		{"long tag", &TagResourceInput{KeyId: id, Tags: []Tag{{new(strings.Repeat("k", 129)), new(strings.Repeat("v", 257))}}},
			"2 validation errors detected: Value '" + strings.Repeat("k", 129) + "' at 'tags.1.member.tagKey' failed to satisfy constraint: Member must have length less than or equal to 128; " +
				"Value '" + strings.Repeat("v", 257) + "' at 'tags.1.member.tagValue' failed to satisfy constraint: Member must have length less than or equal to 256"},
		{"list of texts", &UntagResourceInput{KeyId: id, TagKeys: []string{"a", ""}},
			one + "Value '[a, ]' at 'tagKeys' failed to satisfy constraint: Member must satisfy constraint: [Member must have length less than or equal to 128, Member must have length greater than or equal to 1]"},
		{"list of enums", &DecryptInput{DryRunModifiers: []string{"X"}},
			one + "Value '[X]' at 'dryRunModifiers' failed to satisfy constraint: Member must satisfy constraint: [Member must satisfy enum value set: [IGNORE_CIPHERTEXT]]"},
		{"long list", &DescribeKeyInput{KeyId: id, GrantTokens: slices.Repeat([]string{"t"}, 11)},
			one + "Value '[t, t, t, t, t, t, t, t, t, t, t]' at 'grantTokens' failed to satisfy constraint: Member must have length less than or equal to 10"},
		{"nested", &DecryptInput{Recipient: &RecipientInfo{KeyEncryptionAlgorithm: new("RSA"), AttestationDocument: []byte{}}},
			"2 validation errors detected: Value 'RSA' at 'recipient.keyEncryptionAlgorithm' failed to satisfy constraint: Member must satisfy enum value set: [RSAES_OAEP_SHA_256]; " +
				"Value at 'recipient.attestationDocument' failed to satisfy constraint: Member must have length greater than or equal to 1"},
		{"largest context", &EncryptInput{KeyId: id, Plaintext: []byte("p"), EncryptionContext: map[string]string{"k": strings.Repeat("v", 8191)}}, ""},
		{"large context", &EncryptInput{KeyId: id, Plaintext: []byte("p"), EncryptionContext: map[string]string{"k": strings.Repeat("v", 8192)}},
			one + "Value at 'encryptionContext' failed to satisfy constraint: Member must have keys and values of at most 8192 bytes in all"},
		{"context is no text", &EncryptInput{KeyId: id, Plaintext: []byte("p"), EncryptionContext: map[string]string{"k": "\xff"}},
			one + "Value at 'encryptionContext' failed to satisfy constraint: Member must be Unicode text"},
		{"no text", &DescribeKeyInput{KeyId: new("a\xffb")}, one + "Value 'a\uFFFDb' at 'keyId' failed to satisfy constraint: Member must be Unicode text"},
		{"all at once", &CreateKeyInput{KeySpec: new("A"), KeyUsage: new("B"), Origin: new("C"), Description: new(strings.Repeat("d", 8193)), Policy: new("")},
			"6 validation errors detected: Value '' at 'policy' failed to satisfy constraint: Member must have length greater than or equal to 1; " +
				"Value '' at 'policy' failed to satisfy constraint: Member must satisfy regular expression pattern: [\\u0009\\u000A\\u000D\\u0020-\\u00FF]+; " +
				"Value '" + strings.Repeat("d", 8193) + "' at 'description' failed to satisfy constraint: Member must have length less than or equal to 8192; " +
				"Value 'B' at 'keyUsage' failed to satisfy constraint: Member must satisfy enum value set: [ENCRYPT_DECRYPT, SIGN_VERIFY, GENERATE_VERIFY_MAC, KEY_AGREEMENT, ENCAPSULATE_DECAPSULATE]; " +
				"Value 'A' at 'keySpec' failed to satisfy constraint: Member must satisfy enum value set: " + EnumOf("KeySpec").String() + "; " +
				"Value 'C' at 'origin' failed to satisfy constraint: Member must satisfy enum value set: [AWS_KMS, EXTERNAL, AWS_CLOUDHSM, EXTERNAL_KEY_STORE]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := compile(reflect.TypeOf(tt.in).Elem(), place{input: true}).Validate(tt.in)
			if tt.want == "" {
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
				return
			}
			if !errors.Is(err, ErrValidation) || err.Error() != string(ErrValidation.Code)+": "+tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// TestValidationIsBounded: a megabyte of empty tags must not become a hundred
// megabytes of complaints.
func TestValidationIsBounded(t *testing.T) {
	in := &TagResourceInput{KeyId: new("x"), Tags: make([]Tag, 300_000)}
	err := InputSchema[TagResourceInput]().Validate(in)
	if n := len(err.Error()); n > 20_000 || !strings.HasPrefix(err.Error(), "ValidationException: 100 validation errors detected: ") {
		t.Errorf("%d bytes: %.80s", n, err)
	}
}

// TestSecretMembers: no value that may not stand in a message does.
func TestSecretMembers(t *testing.T) {
	type input struct {
		Secret *string  `kms:"len=1..3,pattern=alias,secret,nolog"`
		List   []string `kms:"len=0..1,each.len=1..3,secret,nolog"`
	}
	err := InputSchema[input]().Validate(&input{Secret: new("hush hush"), List: []string{"hush hush", "hush hush"}})
	if err == nil || strings.Contains(err.Error(), "hush") || !strings.HasPrefix(err.Error(), "ValidationException: 4 validation") {
		t.Errorf("got %v", err)
	}
}

func TestWrongTagsPanic(t *testing.T) {
	for name, compileIt := range map[string]func(){
		"no decision to log": func() {
			InputSchema[struct {
				A *string `kms:"required"`
			}]()
		},
		"both decisions": func() {
			InputSchema[struct {
				A *string `kms:"log,nolog"`
			}]()
		},
		"no tag": func() { InputSchema[struct{ A *string }]() },
		"unknown rule": func() {
			InputSchema[struct {
				A *string `kms:"log,maximum=3"`
			}]()
		},
		"unknown enum": func() {
			InputSchema[struct {
				A *string `kms:"log,enum=Nothing"`
			}]()
		},
		"bad bounds": func() {
			InputSchema[struct {
				A *string `kms:"log,len=3..1"`
			}]()
		},
		"bad default": func() {
			InputSchema[struct {
				A *int32 `kms:"log,default=x"`
			}]()
		},
		"other type": func() {
			InputSchema[struct {
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

// TestNarrowsOrOpen: a structure that nobody decided on is found when the table is made.
func TestNarrowsOrOpen(t *testing.T) {
	type structure struct {
		Text *string `kms:"log"`
	}
	for name, schema := range map[string]func() *Schema{
		"undecided": InputSchema[struct {
			A *structure `kms:"log"`
		}],
		"undecided list": InputSchema[struct {
			A []structure `kms:"log"`
		}],
		"both": InputSchema[struct {
			A *structure `kms:"narrows,open,log"`
		}],
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: there is a schema", name)
				}
			}()
			schema()
		}()
	}
	InputSchema[struct {
		A *struct {
			B []structure `kms:"log"`
		} `kms:"narrows,log"`
	}]()
}
