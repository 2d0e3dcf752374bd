package kmsapi

import (
	"slices"
	"strings"
)

// Values of the service model that this version uses.
const (
	SpecSymmetric      = "SYMMETRIC_DEFAULT"
	SpecSM2            = "SM2"
	UsageEncrypt       = "ENCRYPT_DECRYPT"
	OriginKMS          = "AWS_KMS"
	AlgorithmSymmetric = "SYMMETRIC_DEFAULT"
	DataKeyAES256      = "AES_256"
	UsageSign          = "SIGN_VERIFY"
	UsageMac           = "GENERATE_VERIFY_MAC"
	UsageAgree         = "KEY_AGREEMENT"
	UsageEncapsulate   = "ENCAPSULATE_DECAPSULATE"
	OriginImported     = "EXTERNAL"
	OriginXKS          = "EXTERNAL_KEY_STORE"
	OriginHSM          = "AWS_CLOUDHSM"
	IgnoreCiphertext   = "IGNORE_CIPHERTEXT"
	ManagerCustomer    = "CUSTOMER"
	DefaultPolicyName  = "default"
	AliasPrefix        = "alias/"
	AWSAliasPrefix     = "alias/aws/"
)

// enums are the sets of values in the service model. They include values that this version
// does not support, so that these can be told from invalid ones. The order is that of AWS's
// answers where it is known, and otherwise the model's.
var enums = map[string]*Enum{
	"KeyUsageType": newEnum(UsageEncrypt, UsageSign, UsageMac, UsageAgree, UsageEncapsulate),
	"KeySpec": newEnum("RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521",
		"ECC_SECG_P256K1", "ECC_NIST_EDWARDS25519", SpecSymmetric, "HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512", SpecSM2,
		"ML_DSA_44", "ML_DSA_65", "ML_DSA_87", "ML_KEM_512", "ML_KEM_768", "ML_KEM_1024"),
	"CustomerMasterKeySpec": newEnum("RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521",
		"ECC_SECG_P256K1", SpecSymmetric, "HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512", "SM2"),
	"OriginType":              newEnum(OriginKMS, OriginImported, OriginHSM, OriginXKS),
	"EncryptionAlgorithmSpec": newEnum("RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "SM2PKE", AlgorithmSymmetric),
	"DataKeySpec":             newEnum(DataKeyAES256, "AES_128"),
	"DryRunModifierType":      newEnum(IgnoreCiphertext),
	"KeyEncryptionMechanism":  newEnum("RSAES_OAEP_SHA_256"),
	"SigningAlgorithmSpec": newEnum("RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512", "RSASSA_PKCS1_V1_5_SHA_256",
		"RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512", "ECDSA_SHA_256", "ECDSA_SHA_384", "ECDSA_SHA_512",
		"ED25519_SHA_512", "ED25519_PH_SHA_512", "SM2DSA", "ML_DSA_SHAKE_256"),
	"MacAlgorithmSpec":           newEnum("HMAC_SHA_384", "HMAC_SHA_256", "HMAC_SHA_224", "HMAC_SHA_512"),
	"KeyAgreementAlgorithmSpec":  newEnum("ECDH"),
	"EncapsulationAlgorithmSpec": newEnum("ML_KEM"),
	"MessageType":                newEnum("RAW", "DIGEST", "EXTERNAL_MU"),
	"DataKeyPairSpec": newEnum("RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521",
		"ECC_SECG_P256K1", "SM2", "ECC_NIST_EDWARDS25519", "ML_KEM_512", "ML_KEM_768", "ML_KEM_1024"),
	"GrantOperation": newEnum("Decrypt", "Encrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom",
		"ReEncryptTo", "Sign", "Verify", "GetPublicKey", "CreateGrant", "RetireGrant", "DescribeKey", "GenerateDataKeyPair",
		"GenerateDataKeyPairWithoutPlaintext", "GenerateMac", "VerifyMac", "DeriveSharedSecret", "Encapsulate", "Decapsulate"),
	"WrappingKeySpec": newEnum("RSA_2048", "RSA_3072", "RSA_4096", "SM2"),
	"AlgorithmSpec": newEnum("RSAES_PKCS1_V1_5", "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1",
		"RSA_AES_KEY_WRAP_SHA_256", "SM2PKE"),
	"ExpirationModelType":      newEnum("KEY_MATERIAL_EXPIRES", "KEY_MATERIAL_DOES_NOT_EXPIRE"),
	"ImportType":               newEnum("NEW_KEY_MATERIAL", "EXISTING_KEY_MATERIAL"),
	"IncludeKeyMaterial":       newEnum("ALL_KEY_MATERIAL", "ROTATIONS_ONLY"),
	"CustomKeyStoreType":       newEnum("AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"),
	"XksProxyConnectivityType": newEnum("PUBLIC_ENDPOINT", "VPC_ENDPOINT_SERVICE"),

	// Those of IAM.
	"statusType":           newEnum("Active", "Inactive", "Expired"),
	"policyScopeType":      newEnum("All", "AWS", "Local"),
	"PolicyUsageType":      newEnum("PermissionsPolicy", "PermissionsBoundary"),
	"EntityType":           newEnum("User", "Role", "Group", "LocalManagedPolicy", "AWSManagedPolicy"),
	"assignmentStatusType": newEnum("Assigned", "Unassigned", "Any"),
	"ContextKeyTypeEnum": newEnum("string", "stringList", "numeric", "numericList", "boolean", "booleanList", "ip", "ipList",
		"binary", "binaryList", "date", "dateList"),
}

// An Enum is a set of values of the service model.
type Enum struct {
	values []string
	text   string
}

func newEnum(values ...string) *Enum {
	return &Enum{values: values, text: "[" + strings.Join(values, ", ") + "]"}
}

// Has reports whether s is one of the values.
func (e *Enum) Has(s string) bool { return slices.Contains(e.values, s) }

// Values returns all values. The caller must not change the slice.
func (e *Enum) Values() []string { return e.values }

// String returns the values as AWS's messages list them.
func (e *Enum) String() string { return e.text }

// EnumOf returns the values of the shape with that name in the service model. It panics if
// there is none.
func EnumOf(shape string) *Enum {
	e := enums[shape]
	if e == nil {
		panic("kmsapi: no enum " + shape)
	}
	return e
}
