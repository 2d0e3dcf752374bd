package ops

import (
	"fmt"

	"github.com/conclavekms/conclave/keyengine/internal/cryptops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// Table has all operations by name.
var Table = rows(
	request.Define(request.Operation{Name: "CreateKey", Slow: true}, createKey, recordMetadata),
	request.Define(request.Operation{Name: "DescribeKey", CrossAccount: true, ReadOnly: true, States: request.AnyState}, describeKey, nil),
	request.Define(request.Operation{Name: "ListKeys", ReadOnly: true}, listKeys, nil),
	request.Define(request.Operation{Name: "UpdateKeyDescription", States: request.Changeable}, updateKeyDescription, nil),
	request.Define(request.Operation{Name: "EnableKey", States: request.Switchable}, enableKey, nil),
	request.Define(request.Operation{Name: "DisableKey", States: request.Switchable}, disableKey, nil),
	request.Define(request.Operation{Name: "ScheduleKeyDeletion", States: request.Changeable}, scheduleKeyDeletion, recordDeletion),
	request.Define(request.Operation{Name: "CancelKeyDeletion", States: request.OnlyPending}, cancelKeyDeletion, recordCancel),
	request.Define(request.Operation{Name: "ReplicateKey", States: request.Usable}, replicateKey, recordReplica),
	request.Define(request.Operation{Name: "UpdatePrimaryRegion", States: request.Usable}, updatePrimaryRegion, nil),
	request.Define(request.Operation{Name: "GetKeyLastUsage", ReadOnly: true, States: request.AnyState}, getKeyLastUsage, nil),

	request.Define(request.Operation{Name: "CreateAlias", States: request.Changeable}, createAlias, nil),
	request.Define(request.Operation{Name: "UpdateAlias", States: request.Changeable}, updateAlias, nil),
	request.Define(request.Operation{Name: "DeleteAlias", States: request.AnyState}, deleteAlias, nil),
	request.Define(request.Operation{Name: "ListAliases", ReadOnly: true, States: request.AnyState}, listAliases, nil),

	request.Define(request.Operation{Name: "TagResource", States: request.Changeable}, tagResource, nil),
	request.Define(request.Operation{Name: "UntagResource", States: request.Changeable}, untagResource, nil),
	request.Define(request.Operation{Name: "ListResourceTags", ReadOnly: true, States: request.AnyState}, listResourceTags, nil),

	request.Define(request.Operation{Name: "GetKeyPolicy", ReadOnly: true, States: request.AnyState}, getKeyPolicy, nil),
	request.Define(request.Operation{Name: "PutKeyPolicy", States: request.AnyState}, putKeyPolicy, nil),
	request.Define(request.Operation{Name: "ListKeyPolicies", ReadOnly: true, States: request.AnyState}, listKeyPolicies, nil),

	request.Define(request.Operation{Name: "Encrypt", CrossAccount: true, ReadOnly: true, States: request.Usable}, cryptops.Encrypt, nil),
	request.Define(request.Operation{Name: "Decrypt", CrossAccount: true, ReadOnly: true, States: request.Usable, RecordKey: "keyId"}, cryptops.Decrypt, nil),
	request.Define(request.Operation{Name: "ReEncrypt", CrossAccount: true, ReadOnly: true, States: request.Usable,
		Actions: []string{cryptops.ActionReEncryptFrom, cryptops.ActionReEncryptTo}, RecordKey: "sourceKeyId"}, cryptops.ReEncrypt, nil),
	request.Define(request.Operation{Name: "GenerateDataKey", CrossAccount: true, ReadOnly: true, States: request.Usable}, cryptops.GenerateDataKey, nil),
	request.Define(request.Operation{Name: "GenerateDataKeyWithoutPlaintext", CrossAccount: true, ReadOnly: true, States: request.Usable}, cryptops.GenerateDataKeyWithoutPlaintext, nil),
	request.Define(request.Operation{Name: "GenerateRandom", ReadOnly: true}, cryptops.GenerateRandom, nil),

	request.Define(request.Operation{Name: "Sign", CrossAccount: true, ReadOnly: true, States: request.Usable}, cryptops.Sign, nil),
	request.Define(request.Operation{Name: "Verify", CrossAccount: true, ReadOnly: true, States: request.Usable}, cryptops.Verify, nil),
	request.Define(request.Operation{Name: "GetPublicKey", CrossAccount: true, ReadOnly: true, States: request.Usable}, getPublicKey, nil),
	request.Define(request.Operation{Name: "GenerateMac", CrossAccount: true, ReadOnly: true, States: request.Usable}, cryptops.GenerateMac, nil),
	request.Define(request.Operation{Name: "VerifyMac", CrossAccount: true, ReadOnly: true, States: request.Usable}, cryptops.VerifyMac, nil),
	request.Define(request.Operation{Name: "DeriveSharedSecret", CrossAccount: true, ReadOnly: true, States: request.Usable}, cryptops.DeriveSharedSecret, nil),
	request.Define(request.Operation{Name: "Encapsulate", CrossAccount: true, ReadOnly: true, States: request.Usable}, cryptops.Encapsulate, nil),
	request.Define(request.Operation{Name: "Decapsulate", CrossAccount: true, ReadOnly: true, States: request.Usable}, cryptops.Decapsulate, nil),
	request.Define(request.Operation{Name: "GenerateDataKeyPair", CrossAccount: true, ReadOnly: true, Slow: true, States: request.Usable}, cryptops.GenerateDataKeyPair, nil),
	request.Define(request.Operation{Name: "GenerateDataKeyPairWithoutPlaintext", CrossAccount: true, ReadOnly: true, Slow: true, States: request.Usable}, cryptops.GenerateDataKeyPairWithoutPlaintext, nil),

	request.Define(request.Operation{Name: "CreateGrant", CrossAccount: true, States: request.Usable}, createGrant, recordGrant),
	request.Define(request.Operation{Name: "ListGrants", CrossAccount: true, ReadOnly: true, States: request.AnyState}, listGrants, nil),
	request.Define(request.Operation{Name: "ListRetirableGrants", ReadOnly: true}, listRetirableGrants, nil),
	request.Define(request.Operation{Name: "RetireGrant", CrossAccount: true, States: request.AnyState}, retireGrant, nil),
	request.Define(request.Operation{Name: "RevokeGrant", CrossAccount: true, States: request.AnyState}, revokeGrant, nil),

	request.Define(request.Operation{Name: "GetParametersForImport", ReadOnly: true, Slow: true, States: request.Changeable}, getParametersForImport, nil),
	request.Define(request.Operation{Name: "ImportKeyMaterial", States: request.Changeable}, importKeyMaterial, recordImport),
	request.Define(request.Operation{Name: "DeleteImportedKeyMaterial", States: request.AnyState}, deleteImportedKeyMaterial, recordDeleteMaterial),

	request.Define(request.Operation{Name: "CreateCustomKeyStore", Slow: true}, createCustomKeyStore, recordStore),
	request.Define(request.Operation{Name: "ConnectCustomKeyStore", Object: true, Slow: true}, connectCustomKeyStore, nil),
	request.Define(request.Operation{Name: "DisconnectCustomKeyStore", Object: true}, disconnectCustomKeyStore, nil),
	request.Define(request.Operation{Name: "DescribeCustomKeyStores", ReadOnly: true}, describeCustomKeyStores, nil),
	request.Define(request.Operation{Name: "UpdateCustomKeyStore", Object: true, Slow: true}, updateCustomKeyStore, nil),
	request.Define(request.Operation{Name: "DeleteCustomKeyStore", Object: true}, deleteCustomKeyStore, nil),

	request.Define(request.Operation{Name: "EnableKeyRotation", States: request.Rotatable}, enableKeyRotation, nil),
	request.Define(request.Operation{Name: "DisableKeyRotation", States: request.Rotatable}, disableKeyRotation, nil),
	request.Define(request.Operation{Name: "GetKeyRotationStatus", CrossAccount: true, ReadOnly: true, States: request.AnyState}, getKeyRotationStatus, nil),
	request.Define(request.Operation{Name: "RotateKeyOnDemand", States: request.Usable}, rotateKeyOnDemand, nil),
	request.Define(request.Operation{Name: "ListKeyRotations", ReadOnly: true, States: request.AnyState}, listKeyRotations, nil),
)

func rows(ops ...*request.Operation) map[string]*request.Operation {
	t := make(map[string]*request.Operation, len(ops))
	for _, op := range ops {
		if t[op.Name] != nil {
			panic(fmt.Sprintf("keyengine: two operations are called %s", op.Name))
		}
		t[op.Name] = op
	}
	return t
}
