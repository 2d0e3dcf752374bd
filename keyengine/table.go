package keyengine

import (
	"fmt"
)

// table has every operation by its name.
var table = rows(
	define(Operation{Name: "CreateKey", slow: true}, createKey, recordMetadata),
	define(Operation{Name: "DescribeKey", ReadOnly: true, states: anyState}, describeKey, nil),
	define(Operation{Name: "ListKeys", ReadOnly: true}, listKeys, nil),
	define(Operation{Name: "UpdateKeyDescription", states: changeable}, updateKeyDescription, nil),
	define(Operation{Name: "EnableKey", states: switchable}, enableKey, nil),
	define(Operation{Name: "DisableKey", states: switchable}, disableKey, nil),
	define(Operation{Name: "ScheduleKeyDeletion", states: changeable}, scheduleKeyDeletion, recordDeletion),
	define(Operation{Name: "CancelKeyDeletion", states: onlyPending}, cancelKeyDeletion, recordCancel),
	define(Operation{Name: "ReplicateKey", states: usable}, replicateKey, recordReplica),
	define(Operation{Name: "UpdatePrimaryRegion", states: usable}, updatePrimaryRegion, nil),
	define(Operation{Name: "GetKeyLastUsage", ReadOnly: true, states: anyState}, getKeyLastUsage, nil),

	define(Operation{Name: "CreateAlias", states: changeable}, createAlias, nil),
	define(Operation{Name: "UpdateAlias", states: changeable}, updateAlias, nil),
	define(Operation{Name: "DeleteAlias", states: anyState}, deleteAlias, nil),
	define(Operation{Name: "ListAliases", ReadOnly: true, states: anyState}, listAliases, nil),

	define(Operation{Name: "TagResource", states: changeable}, tagResource, nil),
	define(Operation{Name: "UntagResource", states: changeable}, untagResource, nil),
	define(Operation{Name: "ListResourceTags", ReadOnly: true, states: anyState}, listResourceTags, nil),

	define(Operation{Name: "GetKeyPolicy", ReadOnly: true, states: anyState}, getKeyPolicy, nil),
	define(Operation{Name: "PutKeyPolicy", states: anyState}, putKeyPolicy, nil),
	define(Operation{Name: "ListKeyPolicies", ReadOnly: true, states: anyState}, listKeyPolicies, nil),

	define(Operation{Name: "Encrypt", ReadOnly: true, states: usable}, encrypt, nil),
	define(Operation{Name: "Decrypt", ReadOnly: true, states: usable, recordKey: "keyId"}, decrypt, nil),
	define(Operation{Name: "ReEncrypt", ReadOnly: true, states: usable,
		Actions: []string{actionReEncryptFrom, actionReEncryptTo}, recordKey: "sourceKeyId"}, reEncrypt, nil),
	define(Operation{Name: "GenerateDataKey", ReadOnly: true, states: usable}, generateDataKey, nil),
	define(Operation{Name: "GenerateDataKeyWithoutPlaintext", ReadOnly: true, states: usable}, generateDataKeyWithoutPlaintext, nil),
	define(Operation{Name: "GenerateRandom", ReadOnly: true}, generateRandom, nil),

	define(Operation{Name: "Sign", ReadOnly: true, states: usable}, sign, nil),
	define(Operation{Name: "Verify", ReadOnly: true, states: usable}, verify, nil),
	define(Operation{Name: "GetPublicKey", ReadOnly: true, states: usable}, getPublicKey, nil),
	define(Operation{Name: "GenerateMac", ReadOnly: true, states: usable}, generateMac, nil),
	define(Operation{Name: "VerifyMac", ReadOnly: true, states: usable}, verifyMac, nil),
	define(Operation{Name: "DeriveSharedSecret", ReadOnly: true, states: usable}, deriveSharedSecret, nil),
	define(Operation{Name: "Encapsulate", ReadOnly: true, states: usable}, encapsulate, nil),
	define(Operation{Name: "Decapsulate", ReadOnly: true, states: usable}, decapsulate, nil),
	define(Operation{Name: "GenerateDataKeyPair", ReadOnly: true, slow: true, states: usable}, generateDataKeyPair, nil),
	define(Operation{Name: "GenerateDataKeyPairWithoutPlaintext", ReadOnly: true, slow: true, states: usable}, generateDataKeyPairWithoutPlaintext, nil),

	define(Operation{Name: "CreateGrant", states: usable}, createGrant, recordGrant),
	define(Operation{Name: "ListGrants", ReadOnly: true, states: anyState}, listGrants, nil),
	define(Operation{Name: "ListRetirableGrants", ReadOnly: true}, listRetirableGrants, nil),
	define(Operation{Name: "RetireGrant", states: anyState}, retireGrant, nil),
	define(Operation{Name: "RevokeGrant", states: anyState}, revokeGrant, nil),

	define(Operation{Name: "GetParametersForImport", ReadOnly: true, slow: true, states: changeable}, getParametersForImport, nil),
	define(Operation{Name: "ImportKeyMaterial", states: changeable}, importKeyMaterial, recordImport),
	define(Operation{Name: "DeleteImportedKeyMaterial", states: anyState}, deleteImportedKeyMaterial, recordDeleteMaterial),

	define(Operation{Name: "CreateCustomKeyStore", slow: true}, createCustomKeyStore, recordStore),
	define(Operation{Name: "ConnectCustomKeyStore", object: true, slow: true}, connectCustomKeyStore, nil),
	define(Operation{Name: "DisconnectCustomKeyStore", object: true}, disconnectCustomKeyStore, nil),
	define(Operation{Name: "DescribeCustomKeyStores", ReadOnly: true}, describeCustomKeyStores, nil),
	define(Operation{Name: "UpdateCustomKeyStore", object: true, slow: true}, updateCustomKeyStore, nil),
	define(Operation{Name: "DeleteCustomKeyStore", object: true}, deleteCustomKeyStore, nil),

	define(Operation{Name: "EnableKeyRotation", states: rotatable}, enableKeyRotation, nil),
	define(Operation{Name: "DisableKeyRotation", states: rotatable}, disableKeyRotation, nil),
	define(Operation{Name: "GetKeyRotationStatus", ReadOnly: true, states: anyState}, getKeyRotationStatus, nil),
	define(Operation{Name: "RotateKeyOnDemand", states: usable}, rotateKeyOnDemand, nil),
	define(Operation{Name: "ListKeyRotations", ReadOnly: true, states: anyState}, listKeyRotations, nil),
)

func rows(ops ...*Operation) map[string]*Operation {
	t := make(map[string]*Operation, len(ops))
	for _, op := range ops {
		if t[op.Name] != nil {
			panic(fmt.Sprintf("keyengine: two operations are called %s", op.Name))
		}
		t[op.Name] = op
	}
	return t
}
