package keyengine

import "github.com/conclavekms/conclave/fsm/fsmpb"

// Values of the service model that this version gives a meaning to.
const (
	specSymmetric  = "SYMMETRIC_DEFAULT"
	specSM2        = "SM2"
	usageEncrypt   = "ENCRYPT_DECRYPT"
	originKMS      = "AWS_KMS"
	algSymmetric   = "SYMMETRIC_DEFAULT"
	dataKeyAES256  = "AES_256"
	usageSign      = "SIGN_VERIFY"
	usageMac       = "GENERATE_VERIFY_MAC"
	usageAgree     = "KEY_AGREEMENT"
	originImported = "EXTERNAL"
	originXKS      = "EXTERNAL_KEY_STORE"
	originHSM      = "AWS_CLOUDHSM"
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
	"KeyUsageType": newEnum(usageSign, usageEncrypt, usageMac, usageAgree),
	"KeySpec": newEnum("RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521",
		"ECC_SECG_P256K1", specSymmetric, "HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512", specSM2,
		"ML_DSA_44", "ML_DSA_65", "ML_DSA_87", "ECC_NIST_EDWARDS25519"),
	"CustomerMasterKeySpec": newEnum("RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521",
		"ECC_SECG_P256K1", specSymmetric, "HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512", "SM2"),
	"OriginType":              newEnum(originKMS, originImported, originHSM, originXKS),
	"EncryptionAlgorithmSpec": newEnum(algSymmetric, "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "SM2PKE"),
	"DataKeySpec":             newEnum(dataKeyAES256, "AES_128"),
	"DryRunModifierType":      newEnum(ignoreCipher),
	"KeyEncryptionMechanism":  newEnum("RSAES_OAEP_SHA_256"),
	"SigningAlgorithmSpec": newEnum("RSASSA_PSS_SHA_256", "RSASSA_PSS_SHA_384", "RSASSA_PSS_SHA_512", "RSASSA_PKCS1_V1_5_SHA_256",
		"RSASSA_PKCS1_V1_5_SHA_384", "RSASSA_PKCS1_V1_5_SHA_512", "ECDSA_SHA_256", "ECDSA_SHA_384", "ECDSA_SHA_512", "SM2DSA",
		"ML_DSA_SHAKE_256", "ED25519_SHA_512", "ED25519_PH_SHA_512"),
	"MacAlgorithmSpec":          newEnum("HMAC_SHA_224", "HMAC_SHA_256", "HMAC_SHA_384", "HMAC_SHA_512"),
	"KeyAgreementAlgorithmSpec": newEnum("ECDH"),
	"MessageType":               newEnum("RAW", "DIGEST", "EXTERNAL_MU"),
	"DataKeyPairSpec": newEnum("RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521",
		"ECC_SECG_P256K1", "SM2", "ECC_NIST_EDWARDS25519"),
	"GrantOperation": newEnum("Decrypt", "Encrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom",
		"ReEncryptTo", "Sign", "Verify", "GetPublicKey", "CreateGrant", "RetireGrant", "DescribeKey", "GenerateDataKeyPair",
		"GenerateDataKeyPairWithoutPlaintext", "GenerateMac", "VerifyMac", "DeriveSharedSecret"),
	"WrappingKeySpec": newEnum("RSA_2048", "RSA_3072", "RSA_4096", "SM2"),
	"AlgorithmSpec": newEnum("RSAES_PKCS1_V1_5", "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1",
		"RSA_AES_KEY_WRAP_SHA_256", "SM2PKE"),
	"ExpirationModelType":      newEnum("KEY_MATERIAL_EXPIRES", "KEY_MATERIAL_DOES_NOT_EXPIRE"),
	"ImportType":               newEnum("NEW_KEY_MATERIAL", "EXISTING_KEY_MATERIAL"),
	"IncludeKeyMaterial":       newEnum("ALL_KEY_MATERIAL", "ROTATIONS_ONLY"),
	"CustomKeyStoreType":       newEnum("AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"),
	"XksProxyConnectivityType": newEnum("PUBLIC_ENDPOINT", "VPC_ENDPOINT_SERVICE"),
}

// usagesOf are the usages that a key of each spec may have.
var usagesOf = map[string][]string{
	specSymmetric:           {usageEncrypt},
	"RSA_2048":              {usageEncrypt, usageSign},
	"RSA_3072":              {usageEncrypt, usageSign},
	"RSA_4096":              {usageEncrypt, usageSign},
	"ECC_NIST_P256":         {usageSign, usageAgree},
	"ECC_NIST_P384":         {usageSign, usageAgree},
	"ECC_NIST_P521":         {usageSign, usageAgree},
	"ECC_SECG_P256K1":       {usageSign},
	"ECC_NIST_EDWARDS25519": {usageSign},
	"ML_DSA_44":             {usageSign},
	"ML_DSA_65":             {usageSign},
	"ML_DSA_87":             {usageSign},
	"HMAC_224":              {usageMac},
	"HMAC_256":              {usageMac},
	"HMAC_384":              {usageMac},
	"HMAC_512":              {usageMac},
	"SM2":                   {usageEncrypt, usageSign, usageAgree},
}

// keyStates are AWS's names of the states.
var keyStates = map[fsmpb.KeyState]string{
	fsmpb.KeyState_KEY_STATE_ENABLED:                  "Enabled",
	fsmpb.KeyState_KEY_STATE_DISABLED:                 "Disabled",
	fsmpb.KeyState_KEY_STATE_PENDING_DELETION:         "PendingDeletion",
	fsmpb.KeyState_KEY_STATE_PENDING_IMPORT:           "PendingImport",
	fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION: "PendingReplicaDeletion",
}
