package keyengine

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// withoutRules are the operations of which AWS says no rule between members: what
// holds for each member, and what the key decides, is all.
var withoutRules = []string{
	"CancelKeyDeletion", "ConnectCustomKeyStore", "CreateAlias", "Decapsulate", "DeleteAlias", "DeleteCustomKeyStore", "DeleteImportedKeyMaterial", "DescribeKey", "DisableKey",
	"DisableKeyRotation", "DisconnectCustomKeyStore", "EnableKey", "EnableKeyRotation", "Encapsulate", "Encrypt", "GenerateMac", "GetKeyLastUsage", "GetKeyPolicy",
	"GetKeyRotationStatus", "GetPublicKey", "ListAliases", "ListKeyPolicies", "ListKeyRotations", "ListKeys", "ListResourceTags", "PutKeyPolicy",
	"GenerateDataKeyPairWithoutPlaintext", "GetParametersForImport", "ReplicateKey", "RevokeGrant", "RotateKeyOnDemand", "ScheduleKeyDeletion", "Sign", "TagResource",
	"UntagResource", "UpdateAlias", "UpdateKeyDescription", "UpdatePrimaryRegion", "Verify", "VerifyMac",
}

// TestRulesBetweenMembers: what AWS's pages say of members that go with each other or
// do not, for every operation. Such a rule is broken before the key is looked for, so
// that the keys here need not be there.
func TestRulesBetweenMembers(t *testing.T) {
	r := newEnclaveRoom(t)
	id := ptr("12345678-1234-1234-1234-123456789012")
	key := ptr("AES_256")
	half := &kmsapi.RecipientInfo{KeyEncryptionAlgorithm: ptr("RSAES_OAEP_SHA_256")}
	xks := func(f func(*kmsapi.CreateCustomKeyStoreInput)) *kmsapi.CreateCustomKeyStoreInput {
		in := &kmsapi.CreateCustomKeyStoreInput{
			CustomKeyStoreName: ptr("s"), CustomKeyStoreType: ptr(kmsapi.OriginXKS), XksProxyUriEndpoint: ptr("https://xks.example.com"), XksProxyUriPath: ptr("/kms/xks/v1"),
			XksProxyConnectivity: ptr(connectivityPublic), XksProxyAuthenticationCredential: &kmsapi.XksProxyAuthenticationCredential{
				AccessKeyId: ptr("AAAAAAAAAAAAAAAAAAAA"), RawSecretAccessKey: ptr(strings.Repeat("a", 43))},
		}
		f(in)
		return in
	}
	hsm := func(f func(*kmsapi.CreateCustomKeyStoreInput)) *kmsapi.CreateCustomKeyStoreInput {
		in := &kmsapi.CreateCustomKeyStoreInput{CustomKeyStoreName: ptr("s"), CloudHsmClusterId: ptr("cluster-aaaaaaaaaaa"), KeyStorePassword: ptr("password")}
		f(in)
		return in
	}
	grant := func(f func(*kmsapi.CreateGrantInput)) *kmsapi.CreateGrantInput {
		in := &kmsapi.CreateGrantInput{KeyId: id, GranteeServicePrincipal: ptr(backupService), RetiringServicePrincipal: ptr(backupService), Operations: []string{"Decrypt"},
			Constraints: &kmsapi.GrantConstraints{SourceArn: ptr(tableARN)}}
		f(in)
		return in
	}
	blob := []byte("x")
	var seen []string
	for _, tt := range []struct {
		op, name string
		in       any
		kind     *kmsapi.Error
	}{
		{"CreateKey", "two specs", &kmsapi.CreateKeyInput{KeySpec: ptr("RSA_2048"), CustomerMasterKeySpec: ptr("RSA_2048"), KeyUsage: ptr(kmsapi.UsageSign)}, kmsapi.ErrValidation},
		{"CreateKey", "spec without usage", &kmsapi.CreateKeyInput{KeySpec: ptr("HMAC_256")}, kmsapi.ErrValidation},
		{"CreateKey", "usage that the spec has not", &kmsapi.CreateKeyInput{KeySpec: ptr("HMAC_256"), KeyUsage: ptr(kmsapi.UsageSign)}, kmsapi.ErrValidation},
		{"CreateKey", "store of keys that are not in one", &kmsapi.CreateKeyInput{CustomKeyStoreId: ptr("cks-1")}, kmsapi.ErrValidation},
		{"CreateKey", "store's origin without store", &kmsapi.CreateKeyInput{Origin: ptr(kmsapi.OriginHSM)}, kmsapi.ErrValidation},
		{"CreateKey", "external key without its id", &kmsapi.CreateKeyInput{Origin: ptr(kmsapi.OriginXKS), CustomKeyStoreId: ptr("cks-1")}, kmsapi.ErrValidation},
		{"CreateKey", "id of an external key for another origin", &kmsapi.CreateKeyInput{XksKeyId: ptr("x")}, kmsapi.ErrValidation},
		{"CreateKey", "id of an external key for a multi-Region key", &kmsapi.CreateKeyInput{XksKeyId: ptr("x"), MultiRegion: ptr(true)}, kmsapi.ErrValidation},
		{"CreateKey", "id of an external key for imported material", &kmsapi.CreateKeyInput{XksKeyId: ptr("x"), Origin: ptr(kmsapi.OriginImported)}, kmsapi.ErrValidation},
		{"CreateKey", "multi-Region key in a store", &kmsapi.CreateKeyInput{Origin: ptr(kmsapi.OriginHSM), CustomKeyStoreId: ptr("cks-1"), MultiRegion: ptr(true)}, kmsapi.ErrUnsupported},
		{"CreateKey", "RSA key in a store", &kmsapi.CreateKeyInput{Origin: ptr(kmsapi.OriginHSM), CustomKeyStoreId: ptr("cks-1"), KeySpec: ptr("RSA_2048"), KeyUsage: ptr(kmsapi.UsageSign)}, kmsapi.ErrUnsupported},

		{"CreateGrant", "no grantee", grant(func(in *kmsapi.CreateGrantInput) { in.GranteeServicePrincipal = nil }), kmsapi.ErrValidation},
		{"CreateGrant", "two grantees", grant(func(in *kmsapi.CreateGrantInput) { in.GranteePrincipal = ptr(aliceARN) }), kmsapi.ErrValidation},
		{"CreateGrant", "two who may retire", grant(func(in *kmsapi.CreateGrantInput) { in.RetiringPrincipal = ptr(aliceARN) }), kmsapi.ErrValidation},
		{"CreateGrant", "service without source", grant(func(in *kmsapi.CreateGrantInput) { in.Constraints = nil }), kmsapi.ErrValidation},
		{"CreateGrant", "service without who may retire", grant(func(in *kmsapi.CreateGrantInput) { in.RetiringServicePrincipal = nil }), kmsapi.ErrValidation},
		{"CreateGrant", "nothing but CreateGrant", grant(func(in *kmsapi.CreateGrantInput) { in.Operations = []string{"CreateGrant"} }), kmsapi.ErrValidation},
		{"CreateGrant", "two contexts", grant(func(in *kmsapi.CreateGrantInput) {
			in.Constraints.EncryptionContextEquals, in.Constraints.EncryptionContextSubset = contextOf("a", "1"), contextOf("a", "1")
		}), kmsapi.ErrValidation},
		{"ListGrants", "two grantees", &kmsapi.ListGrantsInput{KeyId: id, GranteePrincipal: ptr(aliceARN), GranteeServicePrincipal: ptr(backupService)}, kmsapi.ErrValidation},
		{"ListRetirableGrants", "nobody", &kmsapi.ListRetirableGrantsInput{}, kmsapi.ErrValidation},
		{"ListRetirableGrants", "two", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: ptr(aliceARN), RetiringServicePrincipal: ptr(backupService)}, kmsapi.ErrValidation},
		{"RetireGrant", "nothing", &kmsapi.RetireGrantInput{}, kmsapi.ErrValidation},
		{"RetireGrant", "key without grant", &kmsapi.RetireGrantInput{KeyId: id}, kmsapi.ErrValidation},
		{"RetireGrant", "grant without key", &kmsapi.RetireGrantInput{GrantId: ptr(grantHex(1))}, kmsapi.ErrValidation},
		{"RetireGrant", "both ways", &kmsapi.RetireGrantInput{GrantToken: ptr("x"), KeyId: id, GrantId: ptr(grantHex(1))}, kmsapi.ErrValidation},

		{"Decrypt", "no ciphertext", &kmsapi.DecryptInput{KeyId: id}, kmsapi.ErrValidation},
		{"Decrypt", "no ciphertext in a dry run", &kmsapi.DecryptInput{KeyId: id, DryRun: ptr(true)}, kmsapi.ErrValidation},
		{"Decrypt", "no ciphertext, ignored in no dry run", &kmsapi.DecryptInput{KeyId: id, DryRunModifiers: []string{kmsapi.IgnoreCiphertext}}, kmsapi.ErrValidation},
		{"Decrypt", "no ciphertext and no key", &kmsapi.DecryptInput{DryRun: ptr(true), DryRunModifiers: []string{kmsapi.IgnoreCiphertext}}, kmsapi.ErrValidation},
		{"Decrypt", "half a recipient", &kmsapi.DecryptInput{CiphertextBlob: blob, Recipient: half}, kmsapi.ErrValidation},
		{"ReEncrypt", "no ciphertext", &kmsapi.ReEncryptInput{DestinationKeyId: id}, kmsapi.ErrValidation},
		{"ReEncrypt", "no ciphertext, ignored in no dry run", &kmsapi.ReEncryptInput{SourceKeyId: id, DestinationKeyId: id, DryRunModifiers: []string{kmsapi.IgnoreCiphertext}}, kmsapi.ErrValidation},
		{"ReEncrypt", "no ciphertext and no key", &kmsapi.ReEncryptInput{DestinationKeyId: id, DryRun: ptr(true), DryRunModifiers: []string{kmsapi.IgnoreCiphertext}}, kmsapi.ErrValidation},
		{"GenerateDataKey", "no size", &kmsapi.GenerateDataKeyInput{KeyId: id}, kmsapi.ErrValidation},
		{"GenerateDataKey", "two sizes", &kmsapi.GenerateDataKeyInput{KeyId: id, KeySpec: key, NumberOfBytes: ptr(int32(32))}, kmsapi.ErrValidation},
		{"GenerateDataKey", "half a recipient", &kmsapi.GenerateDataKeyInput{KeyId: id, KeySpec: key, Recipient: half}, kmsapi.ErrValidation},
		{"GenerateDataKeyWithoutPlaintext", "no size", &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: id}, kmsapi.ErrValidation},
		{"GenerateDataKeyWithoutPlaintext", "two sizes", &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: id, KeySpec: key, NumberOfBytes: ptr(int32(32))}, kmsapi.ErrValidation},
		{"GenerateDataKeyPair", "half a recipient", &kmsapi.GenerateDataKeyPairInput{KeyId: id, KeyPairSpec: ptr("RSA_2048"), Recipient: half}, kmsapi.ErrValidation},
		{"DeriveSharedSecret", "half a recipient", &kmsapi.DeriveSharedSecretInput{KeyId: id, KeyAgreementAlgorithm: ptr("ECDH"), PublicKey: blob, Recipient: half}, kmsapi.ErrValidation},
		{"GenerateRandom", "no size", &kmsapi.GenerateRandomInput{}, kmsapi.ErrValidation},
		{"GenerateRandom", "half a recipient", &kmsapi.GenerateRandomInput{NumberOfBytes: ptr(int32(8)), Recipient: half}, kmsapi.ErrValidation},

		{"ImportKeyMaterial", "expires, but not when", &kmsapi.ImportKeyMaterialInput{KeyId: id, ImportToken: blob, EncryptedKeyMaterial: blob}, kmsapi.ErrValidation},
		{"ImportKeyMaterial", "does not expire, but then", &kmsapi.ImportKeyMaterialInput{KeyId: id, ImportToken: blob, EncryptedKeyMaterial: blob,
			ExpirationModel: ptr("KEY_MATERIAL_DOES_NOT_EXPIRE"), ValidTo: ptr(r.cluster.clock.Now().Add(time.Hour))}, kmsapi.ErrValidation},
		{"ImportKeyMaterial", "new with an id", &kmsapi.ImportKeyMaterialInput{KeyId: id, ImportToken: blob, EncryptedKeyMaterial: blob,
			ExpirationModel: ptr("KEY_MATERIAL_DOES_NOT_EXPIRE"), ImportType: ptr(importNew), KeyMaterialId: ptr(strings.Repeat("a", 64))}, kmsapi.ErrValidation},

		{"CreateCustomKeyStore", "no cluster", hsm(func(in *kmsapi.CreateCustomKeyStoreInput) { in.CloudHsmClusterId = nil }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "no password", hsm(func(in *kmsapi.CreateCustomKeyStoreInput) { in.KeyStorePassword = nil }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "proxy of a CloudHSM store", hsm(func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriPath = ptr("/kms/xks/v1") }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "password of an external store", xks(func(in *kmsapi.CreateCustomKeyStoreInput) { in.KeyStorePassword = ptr("password") }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "no connectivity", xks(func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyConnectivity = nil }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "no endpoint", xks(func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriEndpoint = nil }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "no path", xks(func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriPath = nil }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "no credential", xks(func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyAuthenticationCredential = nil }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "no VPC service", xks(func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyConnectivity = ptr(connectivityVPC) }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "VPC service of a public one", xks(func(in *kmsapi.CreateCustomKeyStoreInput) {
			in.XksProxyVpcEndpointServiceName = ptr("com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef")
		}), kmsapi.ErrValidation},
		{"DescribeCustomKeyStores", "id and name", &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreId: ptr("cks-1"), CustomKeyStoreName: ptr("s")}, kmsapi.ErrValidation},
		{"UpdateCustomKeyStore", "nothing", &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: ptr("cks-1")}, kmsapi.ErrValidation},
		{"UpdateCustomKeyStore", "members of both types", &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: ptr("cks-1"), KeyStorePassword: ptr("password"), XksProxyUriPath: ptr("/kms/xks/v1")}, kmsapi.ErrValidation},
	} {
		seen = append(seen, tt.op)
		_, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(tt.op), tt.in)
		if e, ok := errors.AsType[*kmsapi.Error](err); !ok || e.Code != tt.kind.Code || e.Message == "" {
			t.Errorf("%s, %s: %v, want %s", tt.op, tt.name, err, tt.kind.Code)
		}
	}
	for _, op := range Operations() {
		if slices.Contains(seen, op.Name) == slices.Contains(withoutRules, op.Name) {
			t.Errorf("%s: say which rules there are between its members, or that there are none", op.Name)
		}
	}
}
