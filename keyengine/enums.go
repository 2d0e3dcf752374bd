package keyengine

import "github.com/conclavekms/conclave/fsm/fsmpb"

// Values of the service model that this version gives a meaning to.
const (
	specSymmetric  = "SYMMETRIC_DEFAULT"
	usageEncrypt   = "ENCRYPT_DECRYPT"
	originKMS      = "AWS_KMS"
	algSymmetric   = "SYMMETRIC_DEFAULT"
	dataKeyAES256  = "AES_256"
	ignoreCipher   = "IGNORE_CIPHERTEXT"
	managerSelf    = "CUSTOMER"
	policyName     = "default"
	aliasPrefix    = "alias/"
	awsAliasPrefix = "alias/aws/"
)

// enums are the value sets of the service model. They are whole, whatever of
// them this version supports, so that a known value that it does not support and
// an unknown one are told apart.
var enums = map[string]*enum{
	"KeyUsageType": newEnum("SIGN_VERIFY", usageEncrypt, "GENERATE_VERIFY_MAC", "KEY_AGREEMENT"),
	"KeySpec": newEnum("RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521",
		"ECC_SECG_P256K1", specSymmetric, "HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512", "SM2",
		"ML_DSA_44", "ML_DSA_65", "ML_DSA_87", "ECC_NIST_EDWARDS25519"),
	"CustomerMasterKeySpec": newEnum("RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521",
		"ECC_SECG_P256K1", specSymmetric, "HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512", "SM2"),
	"OriginType":              newEnum(originKMS, "EXTERNAL", "AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"),
	"EncryptionAlgorithmSpec": newEnum(algSymmetric, "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "SM2PKE"),
	"DataKeySpec":             newEnum(dataKeyAES256, "AES_128"),
	"DryRunModifierType":      newEnum(ignoreCipher),
	"KeyEncryptionMechanism":  newEnum("RSAES_OAEP_SHA_256"),
}

// usagesOf are the usages that a key of each spec may have.
var usagesOf = map[string][]string{
	specSymmetric:           {usageEncrypt},
	"RSA_2048":              {usageEncrypt, "SIGN_VERIFY"},
	"RSA_3072":              {usageEncrypt, "SIGN_VERIFY"},
	"RSA_4096":              {usageEncrypt, "SIGN_VERIFY"},
	"ECC_NIST_P256":         {"SIGN_VERIFY", "KEY_AGREEMENT"},
	"ECC_NIST_P384":         {"SIGN_VERIFY", "KEY_AGREEMENT"},
	"ECC_NIST_P521":         {"SIGN_VERIFY", "KEY_AGREEMENT"},
	"ECC_SECG_P256K1":       {"SIGN_VERIFY"},
	"ECC_NIST_EDWARDS25519": {"SIGN_VERIFY"},
	"ML_DSA_44":             {"SIGN_VERIFY"},
	"ML_DSA_65":             {"SIGN_VERIFY"},
	"ML_DSA_87":             {"SIGN_VERIFY"},
	"HMAC_224":              {"GENERATE_VERIFY_MAC"},
	"HMAC_256":              {"GENERATE_VERIFY_MAC"},
	"HMAC_384":              {"GENERATE_VERIFY_MAC"},
	"HMAC_512":              {"GENERATE_VERIFY_MAC"},
	"SM2":                   {usageEncrypt, "SIGN_VERIFY", "KEY_AGREEMENT"},
}

// keyStates are AWS's names of the states.
var keyStates = map[fsmpb.KeyState]string{
	fsmpb.KeyState_KEY_STATE_ENABLED:          "Enabled",
	fsmpb.KeyState_KEY_STATE_DISABLED:         "Disabled",
	fsmpb.KeyState_KEY_STATE_PENDING_DELETION: "PendingDeletion",
}
