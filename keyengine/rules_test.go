package keyengine

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// withoutRules are the operations without rules between members.
var withoutRules = []string{
	"CancelKeyDeletion", "ConnectCustomKeyStore", "CreateAlias", "Decapsulate", "DeleteAlias", "DeleteCustomKeyStore", "DeleteImportedKeyMaterial", "DescribeKey", "DisableKey",
	"DisableKeyRotation", "DisconnectCustomKeyStore", "EnableKey", "EnableKeyRotation", "Encapsulate", "Encrypt", "GenerateMac", "GetKeyLastUsage", "GetKeyPolicy",
	"GetKeyRotationStatus", "GetPublicKey", "ListAliases", "ListKeyPolicies", "ListKeyRotations", "ListKeys", "ListResourceTags", "PutKeyPolicy",
	"GenerateDataKeyPairWithoutPlaintext", "GetParametersForImport", "ReplicateKey", "RevokeGrant", "RotateKeyOnDemand", "ScheduleKeyDeletion", "Sign", "TagResource",
	"UntagResource", "UpdateAlias", "UpdateKeyDescription", "UpdatePrimaryRegion", "Verify", "VerifyMac",
}

// TestRulesBetweenMembers checks the rules between members of every operation of KMS that are
// in AWS's documentation; those of STS are in the tests of each of its operations. They are checked before the key is looked up, so the keys here do not
// exist.
func TestRulesBetweenMembers(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withEnclave())
	id := new("12345678-1234-1234-1234-123456789012")
	key := new("AES_256")
	half := &kmsapi.RecipientInfo{KeyEncryptionAlgorithm: new("RSAES_OAEP_SHA_256")}
	xks := func(f func(*kmsapi.CreateCustomKeyStoreInput)) *kmsapi.CreateCustomKeyStoreInput {
		in := &kmsapi.CreateCustomKeyStoreInput{
			CustomKeyStoreName: new("s"), CustomKeyStoreType: new(kmsapi.OriginXKS), XksProxyUriEndpoint: new("https://xks.example.com"), XksProxyUriPath: new("/kms/xks/v1"),
			XksProxyConnectivity: new(ops.ConnectivityPublic), XksProxyAuthenticationCredential: &kmsapi.XksProxyAuthenticationCredential{
				AccessKeyId: new("AAAAAAAAAAAAAAAAAAAA"), RawSecretAccessKey: new(strings.Repeat("a", 43))},
		}
		f(in)
		return in
	}
	hsm := func(f func(*kmsapi.CreateCustomKeyStoreInput)) *kmsapi.CreateCustomKeyStoreInput {
		in := &kmsapi.CreateCustomKeyStoreInput{CustomKeyStoreName: new("s"), CloudHsmClusterId: new("cluster-aaaaaaaaaaa"), KeyStorePassword: new("password")}
		f(in)
		return in
	}
	grant := func(f func(*kmsapi.CreateGrantInput)) *kmsapi.CreateGrantInput {
		in := &kmsapi.CreateGrantInput{KeyId: id, GranteeServicePrincipal: new(backupService), RetiringServicePrincipal: new(backupService), Operations: []string{"Decrypt"},
			Constraints: &kmsapi.GrantConstraints{SourceArn: new(tableARN)}}
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
		{"CreateKey", "two specs", &kmsapi.CreateKeyInput{KeySpec: new("RSA_2048"), CustomerMasterKeySpec: new("RSA_2048"), KeyUsage: new(kmsapi.UsageSign)}, kmsapi.ErrValidation},
		{"CreateKey", "spec without usage", &kmsapi.CreateKeyInput{KeySpec: new("HMAC_256")}, kmsapi.ErrValidation},
		{"CreateKey", "usage that the spec has not", &kmsapi.CreateKeyInput{KeySpec: new("HMAC_256"), KeyUsage: new(kmsapi.UsageSign)}, kmsapi.ErrValidation},
		{"CreateKey", "store of keys that are not in one", &kmsapi.CreateKeyInput{CustomKeyStoreId: new("cks-1")}, kmsapi.ErrValidation},
		{"CreateKey", "store's origin without store", &kmsapi.CreateKeyInput{Origin: new(kmsapi.OriginHSM)}, kmsapi.ErrValidation},
		{"CreateKey", "external key without its id", &kmsapi.CreateKeyInput{Origin: new(kmsapi.OriginXKS), CustomKeyStoreId: new("cks-1")}, kmsapi.ErrValidation},
		{"CreateKey", "id of an external key for another origin", &kmsapi.CreateKeyInput{XksKeyId: new("x")}, kmsapi.ErrValidation},
		{"CreateKey", "id of an external key for a multi-Region key", &kmsapi.CreateKeyInput{XksKeyId: new("x"), MultiRegion: new(true)}, kmsapi.ErrValidation},
		{"CreateKey", "id of an external key for imported material", &kmsapi.CreateKeyInput{XksKeyId: new("x"), Origin: new(kmsapi.OriginImported)}, kmsapi.ErrValidation},
		{"CreateKey", "multi-Region key in a store", &kmsapi.CreateKeyInput{Origin: new(kmsapi.OriginHSM), CustomKeyStoreId: new("cks-1"), MultiRegion: new(true)}, kmsapi.ErrUnsupported},
		{"CreateKey", "RSA key in a store", &kmsapi.CreateKeyInput{Origin: new(kmsapi.OriginHSM), CustomKeyStoreId: new("cks-1"), KeySpec: new("RSA_2048"), KeyUsage: new(kmsapi.UsageSign)}, kmsapi.ErrUnsupported},

		{"CreateGrant", "no grantee", grant(func(in *kmsapi.CreateGrantInput) { in.GranteeServicePrincipal = nil }), kmsapi.ErrValidation},
		{"CreateGrant", "two grantees", grant(func(in *kmsapi.CreateGrantInput) { in.GranteePrincipal = new(aliceARN) }), kmsapi.ErrValidation},
		{"CreateGrant", "two who may retire", grant(func(in *kmsapi.CreateGrantInput) { in.RetiringPrincipal = new(aliceARN) }), kmsapi.ErrValidation},
		{"CreateGrant", "service without source", grant(func(in *kmsapi.CreateGrantInput) { in.Constraints = nil }), kmsapi.ErrValidation},
		{"CreateGrant", "service without who may retire", grant(func(in *kmsapi.CreateGrantInput) { in.RetiringServicePrincipal = nil }), kmsapi.ErrValidation},
		{"CreateGrant", "nothing but CreateGrant", grant(func(in *kmsapi.CreateGrantInput) { in.Operations = []string{"CreateGrant"} }), kmsapi.ErrValidation},
		{"CreateGrant", "two contexts", grant(func(in *kmsapi.CreateGrantInput) {
			in.Constraints.EncryptionContextEquals, in.Constraints.EncryptionContextSubset = contextOf("a", "1"), contextOf("a", "1")
		}), kmsapi.ErrValidation},
		{"ListGrants", "two grantees", &kmsapi.ListGrantsInput{KeyId: id, GranteePrincipal: new(aliceARN), GranteeServicePrincipal: new(backupService)}, kmsapi.ErrValidation},
		{"ListRetirableGrants", "nobody", &kmsapi.ListRetirableGrantsInput{}, kmsapi.ErrValidation},
		{"ListRetirableGrants", "two", &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(aliceARN), RetiringServicePrincipal: new(backupService)}, kmsapi.ErrValidation},
		{"RetireGrant", "nothing", &kmsapi.RetireGrantInput{}, kmsapi.ErrValidation},
		{"RetireGrant", "key without grant", &kmsapi.RetireGrantInput{KeyId: id}, kmsapi.ErrValidation},
		{"RetireGrant", "grant without key", &kmsapi.RetireGrantInput{GrantId: new(grantHex(1))}, kmsapi.ErrValidation},
		{"RetireGrant", "both ways", &kmsapi.RetireGrantInput{GrantToken: new("x"), KeyId: id, GrantId: new(grantHex(1))}, kmsapi.ErrValidation},

		{"Decrypt", "no ciphertext", &kmsapi.DecryptInput{KeyId: id}, kmsapi.ErrValidation},
		{"Decrypt", "no ciphertext in a dry run", &kmsapi.DecryptInput{KeyId: id, DryRun: new(true)}, kmsapi.ErrValidation},
		{"Decrypt", "no ciphertext, ignored in no dry run", &kmsapi.DecryptInput{KeyId: id, DryRunModifiers: []string{kmsapi.IgnoreCiphertext}}, kmsapi.ErrValidation},
		{"Decrypt", "no ciphertext and no key", &kmsapi.DecryptInput{DryRun: new(true), DryRunModifiers: []string{kmsapi.IgnoreCiphertext}}, kmsapi.ErrValidation},
		{"Decrypt", "half a recipient", &kmsapi.DecryptInput{CiphertextBlob: blob, Recipient: half}, kmsapi.ErrValidation},
		{"ReEncrypt", "no ciphertext", &kmsapi.ReEncryptInput{DestinationKeyId: id}, kmsapi.ErrValidation},
		{"ReEncrypt", "no ciphertext, ignored in no dry run", &kmsapi.ReEncryptInput{SourceKeyId: id, DestinationKeyId: id, DryRunModifiers: []string{kmsapi.IgnoreCiphertext}}, kmsapi.ErrValidation},
		{"ReEncrypt", "no ciphertext and no key", &kmsapi.ReEncryptInput{DestinationKeyId: id, DryRun: new(true), DryRunModifiers: []string{kmsapi.IgnoreCiphertext}}, kmsapi.ErrValidation},
		{"GenerateDataKey", "no size", &kmsapi.GenerateDataKeyInput{KeyId: id}, kmsapi.ErrValidation},
		{"GenerateDataKey", "two sizes", &kmsapi.GenerateDataKeyInput{KeyId: id, KeySpec: key, NumberOfBytes: new(int32(32))}, kmsapi.ErrValidation},
		{"GenerateDataKey", "half a recipient", &kmsapi.GenerateDataKeyInput{KeyId: id, KeySpec: key, Recipient: half}, kmsapi.ErrValidation},
		{"GenerateDataKeyWithoutPlaintext", "no size", &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: id}, kmsapi.ErrValidation},
		{"GenerateDataKeyWithoutPlaintext", "two sizes", &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: id, KeySpec: key, NumberOfBytes: new(int32(32))}, kmsapi.ErrValidation},
		{"GenerateDataKeyPair", "half a recipient", &kmsapi.GenerateDataKeyPairInput{KeyId: id, KeyPairSpec: new("RSA_2048"), Recipient: half}, kmsapi.ErrValidation},
		{"DeriveSharedSecret", "half a recipient", &kmsapi.DeriveSharedSecretInput{KeyId: id, KeyAgreementAlgorithm: new("ECDH"), PublicKey: blob, Recipient: half}, kmsapi.ErrValidation},
		{"GenerateRandom", "no size", &kmsapi.GenerateRandomInput{}, kmsapi.ErrValidation},
		{"GenerateRandom", "half a recipient", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(8)), Recipient: half}, kmsapi.ErrValidation},

		{"ImportKeyMaterial", "expires, but not when", &kmsapi.ImportKeyMaterialInput{KeyId: id, ImportToken: blob, EncryptedKeyMaterial: blob}, kmsapi.ErrValidation},
		{"ImportKeyMaterial", "does not expire, but then", &kmsapi.ImportKeyMaterialInput{KeyId: id, ImportToken: blob, EncryptedKeyMaterial: blob,
			ExpirationModel: new("KEY_MATERIAL_DOES_NOT_EXPIRE"), ValidTo: new(c.Clock.Now().Add(time.Hour))}, kmsapi.ErrValidation},
		{"ImportKeyMaterial", "new with an id", &kmsapi.ImportKeyMaterialInput{KeyId: id, ImportToken: blob, EncryptedKeyMaterial: blob,
			ExpirationModel: new("KEY_MATERIAL_DOES_NOT_EXPIRE"), ImportType: new(ops.ImportNew), KeyMaterialId: new(strings.Repeat("a", 64))}, kmsapi.ErrValidation},

		{"CreateCustomKeyStore", "no cluster", hsm(func(in *kmsapi.CreateCustomKeyStoreInput) { in.CloudHsmClusterId = nil }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "no password", hsm(func(in *kmsapi.CreateCustomKeyStoreInput) { in.KeyStorePassword = nil }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "proxy of a CloudHSM store", hsm(func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriPath = new("/kms/xks/v1") }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "password of an external store", xks(func(in *kmsapi.CreateCustomKeyStoreInput) { in.KeyStorePassword = new("password") }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "no connectivity", xks(func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyConnectivity = nil }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "no endpoint", xks(func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriEndpoint = nil }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "no path", xks(func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriPath = nil }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "no credential", xks(func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyAuthenticationCredential = nil }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "no VPC service", xks(func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyConnectivity = new(ops.ConnectivityVPC) }), kmsapi.ErrValidation},
		{"CreateCustomKeyStore", "VPC service of a public one", xks(func(in *kmsapi.CreateCustomKeyStoreInput) {
			in.XksProxyVpcEndpointServiceName = new("com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef")
		}), kmsapi.ErrValidation},
		{"DescribeCustomKeyStores", "id and name", &kmsapi.DescribeCustomKeyStoresInput{CustomKeyStoreId: new("cks-1"), CustomKeyStoreName: new("s")}, kmsapi.ErrValidation},
		{"UpdateCustomKeyStore", "nothing", &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: new("cks-1")}, kmsapi.ErrValidation},
		{"UpdateCustomKeyStore", "members of both types", &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: new("cks-1"), KeyStorePassword: new("password"), XksProxyUriPath: new("/kms/xks/v1")}, kmsapi.ErrValidation},
	} {
		seen = append(seen, tt.op)
		_, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, tt.op), tt.in)
		if e, ok := errors.AsType[*kmsapi.Error](err); !ok || e.Code != tt.kind.Code || e.Message == "" {
			t.Errorf("%s, %s: got error %v, want %s", tt.op, tt.name, err, tt.kind.Code)
		}
	}
	for _, op := range OperationsOf(KMS) {
		if slices.Contains(seen, op.Name) == slices.Contains(withoutRules, op.Name) {
			t.Errorf("%s must be either in this test, with a rule between its members, or in withoutRules", op.Name)
		}
	}
}
