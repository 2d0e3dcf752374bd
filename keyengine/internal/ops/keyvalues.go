package ops

import (
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// UsagesOf has the usages that a key of each spec may have.
var UsagesOf = map[string][]string{
	kmsapi.SpecSymmetric:    {kmsapi.UsageEncrypt},
	"RSA_2048":              {kmsapi.UsageEncrypt, kmsapi.UsageSign},
	"RSA_3072":              {kmsapi.UsageEncrypt, kmsapi.UsageSign},
	"RSA_4096":              {kmsapi.UsageEncrypt, kmsapi.UsageSign},
	"ECC_NIST_P256":         {kmsapi.UsageSign, kmsapi.UsageAgree},
	"ECC_NIST_P384":         {kmsapi.UsageSign, kmsapi.UsageAgree},
	"ECC_NIST_P521":         {kmsapi.UsageSign, kmsapi.UsageAgree},
	"ECC_SECG_P256K1":       {kmsapi.UsageSign},
	"ECC_NIST_EDWARDS25519": {kmsapi.UsageSign},
	"ML_DSA_44":             {kmsapi.UsageSign},
	"ML_DSA_65":             {kmsapi.UsageSign},
	"ML_DSA_87":             {kmsapi.UsageSign},
	"ML_KEM_512":            {kmsapi.UsageEncapsulate},
	"ML_KEM_768":            {kmsapi.UsageEncapsulate},
	"ML_KEM_1024":           {kmsapi.UsageEncapsulate},
	"HMAC_224":              {kmsapi.UsageMac},
	"HMAC_256":              {kmsapi.UsageMac},
	"HMAC_384":              {kmsapi.UsageMac},
	"HMAC_512":              {kmsapi.UsageMac},
	"SM2":                   {kmsapi.UsageEncrypt, kmsapi.UsageSign, kmsapi.UsageAgree},
}

// KeyStates has AWS's names of the key states.
var KeyStates = map[fsmpb.KeyState]string{
	fsmpb.KeyState_KEY_STATE_ENABLED:                  "Enabled",
	fsmpb.KeyState_KEY_STATE_DISABLED:                 "Disabled",
	fsmpb.KeyState_KEY_STATE_PENDING_DELETION:         "PendingDeletion",
	fsmpb.KeyState_KEY_STATE_PENDING_IMPORT:           "PendingImport",
	fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION: "PendingReplicaDeletion",
}
