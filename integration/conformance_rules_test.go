package integration

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/integration/harness"
)

// rules are those between members, and of their contents, that AWS's model does not
// have, with AWS's answers: recorded ones, or those that its clients are known to
// see. None needs a key.
var rules = []struct {
	op            string
	in            members
	code, message string
}{
	{"GenerateRandom", members{}, "ValidationException", "NumberOfBytes is required."},
	{"GenerateDataKey", members{"KeyId": noKey}, "ValidationException", eitherSize},
	{"GenerateDataKey", members{"KeyId": noKey, "KeySpec": "AES_256", "NumberOfBytes": 32}, "ValidationException", eitherSize},
	{"GenerateDataKeyWithoutPlaintext", members{"KeyId": noKey}, "ValidationException", eitherSize},

	{"CreateKey", members{"KeySpec": "RSA_2048"}, "ValidationException", "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys."},
	{"CreateKey", members{"KeySpec": "RSA_2048", "KeyUsage": "KEY_AGREEMENT"}, "ValidationException", "KeyUsage KEY_AGREEMENT is not compatible with KeySpec RSA_2048"},
	{"CreateKey", members{"KeySpec": "RSA_2048", "CustomerMasterKeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"}, "ValidationException",
		"You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated."},
	{"CreateKey", members{"KeySpec": "SM2", "KeyUsage": "SIGN_VERIFY"}, "UnsupportedOperationException", "KeySpec SM2 is not supported in this Region"},
	{"CreateKey", members{"Tags": tagsNamed("a", "a")}, "TagException", "Duplicate tag keys"},
	{"CreateKey", members{"Tags": tagsNamed("aws:a")}, "TagException", "Tags beginning with aws: are reserved"},
	{"CreateKey", members{"Tags": tagsNamed("AWS:a")}, "TagException", "Tags beginning with aws: are reserved"},
	{"CreateKey", members{"Tags": tagsNamed(fiftyOne()...)}, "TagException", "Too many tags"},
	{"CreateKey", members{"Policy": "{}"}, "MalformedPolicyDocumentException", "*"},
	{"CreateKey", members{"Policy": strings.Repeat(" ", 32769)}, "LimitExceededException", "*"},

	{"CreateAlias", members{"AliasName": "one", "TargetKeyId": noKey}, "ValidationException",
		`Alias must start with the prefix "alias/". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`},
	{"CreateAlias", members{"AliasName": "alias/a:b", "TargetKeyId": noKey}, "ValidationException", "alias/a:b contains invalid characters for an alias"},
	{"CreateAlias", members{"AliasName": "alias/aws/s3", "TargetKeyId": noKey}, "NotAuthorizedException", none},
	{"CreateAlias", members{"AliasName": "alias/one", "TargetKeyId": "alias/two"}, "ValidationException", "Aliases must refer to keys. Not aliases"},
	{"DeleteAlias", members{"AliasName": "alias/one"}, "NotFoundException",
		"Alias arn:aws:kms:" + harness.Region + ":" + harness.Account + ":alias/one is not found."},

	{"ImportKeyMaterial", members{"KeyId": noKey, "ImportToken": []byte("x"), "EncryptedKeyMaterial": []byte("x")}, "ValidationException",
		"A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES"},

	{"RetireGrant", members{}, "ValidationException", "*"},
	{"RetireGrant", members{"KeyId": noKey}, "ValidationException", "*"},
	{"RetireGrant", members{"GrantToken": "x"}, "InvalidGrantTokenException", "*"},
	{"RevokeGrant", members{"KeyId": noKey, "GrantId": "x"}, "InvalidGrantIdException", "*"},

	{"Decrypt", members{"CiphertextBlob": []byte("x")}, "InvalidCiphertextException", none},
	{"ListKeys", members{"Marker": "x"}, "InvalidMarkerException", "*"},
	{"DescribeKey", members{"KeyId": noKey}, "NotFoundException",
		"Key 'arn:aws:kms:" + harness.Region + ":" + harness.Account + ":key/" + noKey + "' does not exist"},
	{"DescribeKey", members{"KeyId": strings.ReplaceAll(noKey, "-", "")}, "NotFoundException", "Invalid keyId '" + strings.ReplaceAll(noKey, "-", "") + "'"},
	{"EnableKey", members{"KeyId": "alias/one"}, "InvalidArnException", "Key Aliases are not supported for this operation."},
	{"EnableKey", members{"KeyId": "arn:aws:kms:" + harness.Region + ":" + harness.Account + ":alias/one"}, "InvalidArnException",
		"Key Aliases are not supported for this operation."},
	{"DescribeKey", members{"KeyId": "alias/one"}, "NotFoundException",
		"Alias arn:aws:kms:" + harness.Region + ":" + harness.Account + ":alias/one is not found."},
	{"DescribeKey", members{"KeyId": "arn:aws:kms:" + harness.Region + ":" + harness.Account + ":key/one"}, "NotFoundException", "Invalid keyId one"},
	{"DescribeKey", members{"KeyId": ""}, "ValidationException", "2 validation errors detected: " +
		"Value '' at 'keyId' failed to satisfy constraint: Member must have length greater than or equal to 1; " +
		`Value '' at 'keyId' failed to satisfy constraint: Member must satisfy regular expression pattern: ^\p{ASCII}+$`},
	{"Decrypt", members{}, "ValidationException",
		"1 validation error detected: Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null"},
	{"Encrypt", members{"KeyId": noKey}, "ValidationException",
		"1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must not be null"},
	{"GenerateMac", members{"KeyId": noKey, "Message": []byte("x"), "MacAlgorithm": "X"}, "ValidationException",
		"1 validation error detected: Value 'X' at 'macAlgorithm' failed to satisfy constraint: " +
			"Member must satisfy enum value set: [HMAC_SHA_384, HMAC_SHA_256, HMAC_SHA_224, HMAC_SHA_512]"},
	{"DescribeKey", members{"KeyId": "arn:aws:kms:elsewhere-1:" + harness.Account + ":key/" + noKey}, "NotFoundException", "Invalid arn elsewhere-1"},
}

// none is where AWS's answer has no message. Ours has one, which says what the code
// means.
const none = ""

const eitherSize = "Please specify either number of bytes or key spec."

func tagsNamed(keys ...string) (tags []members) {
	for _, k := range keys {
		tags = append(tags, members{"TagKey": k, "TagValue": ""})
	}
	return tags
}

func fiftyOne() (keys []string) {
	for i := range 51 {
		keys = append(keys, strings.Repeat("k", i+1))
	}
	return keys
}

// TestConformanceRules breaks each of them.
func TestConformanceRules(t *testing.T) {
	t.Parallel()
	c := harness.Found(t, 1, harness.Options{})
	f := newFace(t, c, c.Nodes[0])
	for _, r := range rules {
		body, err := json.Marshal(r.in)
		if err != nil {
			t.Fatal(err)
		}
		a, err := f.send(f.signed("TrentService."+r.op, string(body)))
		if err != nil {
			t.Fatalf("%s: %v", r.op, err)
		}
		if a.status != 400 || a.Type != r.code || a.Message == "" || a.Message != r.message && r.message != "*" && r.message != none {
			t.Errorf("%s %.200s: got %d %s: %q, want %s: %q", r.op, body, a.status, a.Type, a.Message, r.code, r.message)
		}
	}
	c.NoFaults()
}
