package conformance

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
	in            harness.Members
	code, message string
}{
	{"GenerateRandom", harness.Members{}, "ValidationException", "NumberOfBytes is required."},
	{"GenerateDataKey", harness.Members{"KeyId": harness.NoKey}, "ValidationException", eitherSize},
	{"GenerateDataKey", harness.Members{"KeyId": harness.NoKey, "KeySpec": "AES_256", "NumberOfBytes": 32}, "ValidationException", eitherSize},
	{"GenerateDataKeyWithoutPlaintext", harness.Members{"KeyId": harness.NoKey}, "ValidationException", eitherSize},

	{"CreateKey", harness.Members{"KeySpec": "RSA_2048"}, "ValidationException", "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys."},
	{"CreateKey", harness.Members{"KeySpec": "RSA_2048", "KeyUsage": "KEY_AGREEMENT"}, "ValidationException", "KeyUsage KEY_AGREEMENT is not compatible with KeySpec RSA_2048"},
	{"CreateKey", harness.Members{"KeySpec": "RSA_2048", "CustomerMasterKeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"}, "ValidationException",
		"You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated."},
	{"CreateKey", harness.Members{"KeySpec": "SM2", "KeyUsage": "SIGN_VERIFY"}, "UnsupportedOperationException", "KeySpec SM2 is not supported in this Region"},
	{"CreateKey", harness.Members{"Tags": tagsNamed("a", "a")}, "TagException", "Duplicate tag keys"},
	{"CreateKey", harness.Members{"Tags": tagsNamed("aws:a")}, "TagException", "Tags beginning with aws: are reserved"},
	{"CreateKey", harness.Members{"Tags": tagsNamed("AWS:a")}, "TagException", "Tags beginning with aws: are reserved"},
	{"CreateKey", harness.Members{"Tags": tagsNamed(fiftyOne()...)}, "TagException", "Too many tags"},
	{"CreateKey", harness.Members{"Policy": "{}"}, "MalformedPolicyDocumentException", "*"},
	{"CreateKey", harness.Members{"Policy": strings.Repeat(" ", 32769)}, "LimitExceededException", "*"},

	{"CreateAlias", harness.Members{"AliasName": "one", "TargetKeyId": harness.NoKey}, "ValidationException",
		`Alias must start with the prefix "alias/". Please see https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html`},
	{"CreateAlias", harness.Members{"AliasName": "alias/a:b", "TargetKeyId": harness.NoKey}, "ValidationException", "alias/a:b contains invalid characters for an alias"},
	{"CreateAlias", harness.Members{"AliasName": "alias/aws/s3", "TargetKeyId": harness.NoKey}, "NotAuthorizedException", none},
	{"CreateAlias", harness.Members{"AliasName": "alias/one", "TargetKeyId": "alias/two"}, "ValidationException", "Aliases must refer to keys. Not aliases"},
	{"DeleteAlias", harness.Members{"AliasName": "alias/one"}, "NotFoundException",
		"Alias arn:aws:kms:" + harness.Region + ":" + harness.Account + ":alias/one is not found."},

	{"ImportKeyMaterial", harness.Members{"KeyId": harness.NoKey, "ImportToken": []byte("x"), "EncryptedKeyMaterial": []byte("x")}, "ValidationException",
		"A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES"},

	{"RetireGrant", harness.Members{}, "ValidationException", "*"},
	{"RetireGrant", harness.Members{"KeyId": harness.NoKey}, "ValidationException", "*"},
	{"RetireGrant", harness.Members{"GrantToken": "x"}, "InvalidGrantTokenException", "*"},
	{"RevokeGrant", harness.Members{"KeyId": harness.NoKey, "GrantId": "x"}, "InvalidGrantIdException", "*"},

	{"Decrypt", harness.Members{"CiphertextBlob": []byte("x")}, "InvalidCiphertextException", none},
	{"ListKeys", harness.Members{"Marker": "x"}, "InvalidMarkerException", "*"},
	{"DescribeKey", harness.Members{"KeyId": harness.NoKey}, "NotFoundException",
		"Key 'arn:aws:kms:" + harness.Region + ":" + harness.Account + ":key/" + harness.NoKey + "' does not exist"},
	{"DescribeKey", harness.Members{"KeyId": strings.ReplaceAll(harness.NoKey, "-", "")}, "NotFoundException", "Invalid keyId '" + strings.ReplaceAll(harness.NoKey, "-", "") + "'"},
	{"EnableKey", harness.Members{"KeyId": "alias/one"}, "InvalidArnException", "Key Aliases are not supported for this operation."},
	{"EnableKey", harness.Members{"KeyId": "arn:aws:kms:" + harness.Region + ":" + harness.Account + ":alias/one"}, "InvalidArnException",
		"Key Aliases are not supported for this operation."},
	{"DescribeKey", harness.Members{"KeyId": "alias/one"}, "NotFoundException",
		"Alias arn:aws:kms:" + harness.Region + ":" + harness.Account + ":alias/one is not found."},
	{"DescribeKey", harness.Members{"KeyId": "arn:aws:kms:" + harness.Region + ":" + harness.Account + ":key/one"}, "NotFoundException", "Invalid keyId one"},
	{"DescribeKey", harness.Members{"KeyId": ""}, "ValidationException", "2 validation errors detected: " +
		"Value '' at 'keyId' failed to satisfy constraint: Member must have length greater than or equal to 1; " +
		`Value '' at 'keyId' failed to satisfy constraint: Member must satisfy regular expression pattern: ^\p{ASCII}+$`},
	{"Decrypt", harness.Members{}, "ValidationException",
		"1 validation error detected: Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null"},
	{"Encrypt", harness.Members{"KeyId": harness.NoKey}, "ValidationException",
		"1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must not be null"},
	{"GenerateMac", harness.Members{"KeyId": harness.NoKey, "Message": []byte("x"), "MacAlgorithm": "X"}, "ValidationException",
		"1 validation error detected: Value 'X' at 'macAlgorithm' failed to satisfy constraint: " +
			"Member must satisfy enum value set: [HMAC_SHA_384, HMAC_SHA_256, HMAC_SHA_224, HMAC_SHA_512]"},
	{"DescribeKey", harness.Members{"KeyId": "arn:aws:kms:elsewhere-1:" + harness.Account + ":key/" + harness.NoKey}, "NotFoundException", "Invalid arn elsewhere-1"},
}

// none is where AWS's answer has no message. Ours has one, which says what the code
// means.
const none = ""

const eitherSize = "Please specify either number of bytes or key spec."

func tagsNamed(keys ...string) (tags []harness.Members) {
	for _, k := range keys {
		tags = append(tags, harness.Members{"TagKey": k, "TagValue": ""})
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
	c := harness.NewCluster(t, 1, harness.Options{})
	f := harness.NewFace(t, c, c.Nodes[0])
	for _, r := range rules {
		body, err := json.Marshal(r.in)
		if err != nil {
			t.Fatal(err)
		}
		a, err := f.Send(f.Signed("TrentService."+r.op, string(body)))
		if err != nil {
			t.Fatalf("%s: %v", r.op, err)
		}
		if a.Status != 400 || a.Type != r.code || a.Message == "" || a.Message != r.message && r.message != "*" && r.message != none {
			t.Errorf("%s %.200s: got %d %s: %q, want %s: %q", r.op, body, a.Status, a.Type, a.Message, r.code, r.message)
		}
	}
	c.NoFaults()
}
