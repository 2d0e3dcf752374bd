package conformance

import (
	"maps"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/integration/xksproxy"
)

// subject is a key, or a key store, with all that operations may want of it.
type subject struct {
	key, arn, alias, other string
	blob                   []byte
	made                   []byte // a signature, a MAC, a public key to agree with, or an encapsulated secret
	grant                  string
	importing              harness.Members // of material
	store                  harness.Members // that makes a key store
	storeID                string
}

// subjectKinds are the keys of subjects.
var subjectKinds = map[string]kms.CreateKeyInput{
	"":         {},
	"sign":     {KeySpec: types.KeySpecEccNistP256, KeyUsage: types.KeyUsageTypeSignVerify},
	"agree":    {KeySpec: types.KeySpecEccNistP256, KeyUsage: types.KeyUsageTypeKeyAgreement},
	"kem":      {KeySpec: types.KeySpecMlKem1024, KeyUsage: types.KeyUsageTypeEncapsulateDecapsulate},
	"mac":      {KeySpec: types.KeySpecHmac256, KeyUsage: types.KeyUsageTypeGenerateVerifyMac},
	"imported": {Origin: types.OriginTypeExternal},
	"multi":    {MultiRegion: aws.Bool(true)},
}

// newSubject makes a key of a kind with a policy, or a key store.
func newSubject(t *testing.T, n *harness.Node, of, name, policy string) subject {
	t.Helper()
	if strings.HasSuffix(of, "store") {
		return newStoreSubject(t, n, of, name)
	}
	client, ctx := n.SDK(), t.Context()
	s := subject{alias: "alias/" + strings.ToLower(name)}
	kind := subjectKinds[of]
	m := harness.Must[*kms.CreateKeyOutput](t)(client.CreateKey(ctx, &kind)).KeyMetadata
	s.key, s.arn = *m.KeyId, *m.Arn
	s.other = *harness.Must[*kms.CreateKeyOutput](t)(client.CreateKey(ctx, &kms.CreateKeyInput{})).KeyMetadata.KeyId
	harness.Must[*kms.CreateAliasOutput](t)(client.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &s.alias, TargetKeyId: &s.key}))
	switch of {
	case "":
		s.blob = harness.Must[*kms.EncryptOutput](t)(client.Encrypt(ctx, &kms.EncryptInput{KeyId: &s.key, Plaintext: []byte("subject")})).CiphertextBlob
		s.grant = *harness.Must[*kms.CreateGrantOutput](t)(client.CreateGrant(ctx, &kms.CreateGrantInput{
			KeyId: &s.key, GranteePrincipal: aws.String(somebody), RetiringPrincipal: aws.String(somebody),
			Operations: []types.GrantOperation{types.GrantOperationDecrypt},
		})).GrantId
	case "sign":
		s.made = harness.Must[*kms.SignOutput](t)(client.Sign(ctx, &kms.SignInput{
			KeyId: &s.key, Message: []byte("m"), SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256,
		})).Signature
	case "mac":
		s.made = harness.Must[*kms.GenerateMacOutput](t)(client.GenerateMac(ctx, &kms.GenerateMacInput{
			KeyId: &s.key, Message: []byte("m"), MacAlgorithm: types.MacAlgorithmSpecHmacSha256,
		})).Mac
	case "kem":
		s.made = harness.Must[*kms.EncapsulateOutput](t)(client.Encapsulate(ctx, &kms.EncapsulateInput{
			KeyId: &s.key, EncapsulationAlgorithm: types.EncapsulationAlgorithmSpecMlKem,
		})).SharedSecretCiphertextBlob
	case "agree":
		s.made = harness.Must[*kms.GetPublicKeyOutput](t)(client.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: &s.key})).PublicKey
	case "imported":
		w := &stateWorld{t: t, n: n, kms: client}
		w.mustSDK("ImportKeyMaterial", w.importOf(s.key))
		s.importing = w.importOf(s.key)
	case "multi":
		harness.Must[*kms.ReplicateKeyOutput](t)(client.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: &s.key, ReplicaRegion: aws.String(harness.SecondRegion)}))
	}
	harness.Must[*kms.PutKeyPolicyOutput](t)(client.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{
		KeyId: &s.key, Policy: &policy, BypassPolicyLockoutSafetyCheck: true,
	}))
	return s
}

// newStoreSubject makes an external key store, or only what makes one.
func newStoreSubject(t *testing.T, n *harness.Node, of, name string) subject {
	t.Helper()
	client, ctx := n.SDK(), t.Context()
	// All have the same certificate.
	p, path := xksproxy.Start(t), xksproxy.Path
	s := subject{store: harness.Members{
		"CustomKeyStoreName": name, "CustomKeyStoreType": "EXTERNAL_KEY_STORE", "XksProxyConnectivity": "PUBLIC_ENDPOINT",
		"XksProxyUriEndpoint": p.Endpoint, "XksProxyUriPath": path,
		"XksProxyAuthenticationCredential": harness.Members{"AccessKeyId": xksproxy.AccessKeyID, "RawSecretAccessKey": xksproxy.Secret},
	}}
	if of == "store" {
		return s
	}
	s.storeID = *harness.Must[*kms.CreateCustomKeyStoreOutput](t)(client.CreateCustomKeyStore(ctx, &kms.CreateCustomKeyStoreInput{
		CustomKeyStoreName: &name, CustomKeyStoreType: types.CustomKeyStoreTypeExternalKeyStore,
		XksProxyConnectivity: types.XksProxyConnectivityTypePublicEndpoint, XksProxyUriEndpoint: &p.Endpoint, XksProxyUriPath: &path,
		XksProxyAuthenticationCredential: &types.XksProxyAuthenticationCredentialType{
			AccessKeyId: aws.String(xksproxy.AccessKeyID), RawSecretAccessKey: aws.String(xksproxy.Secret),
		},
	})).CustomKeyStoreId
	if of == "connected store" {
		harness.Must[*kms.ConnectCustomKeyStoreOutput](t)(client.ConnectCustomKeyStore(ctx, &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: &s.storeID}))
	}
	return s
}

// outcomes is how an operation is brought to each of its outcomes.
type outcomes struct {
	// of is the kind of subject, of subjectKinds; "" for a symmetric key.
	of string
	// ok is a request that succeeds for a subject.
	ok func(subject) harness.Members
	// invalid is a request that breaks a rule of its members; without one, an empty
	// request does.
	invalid harness.Members
	// failed is a request that fails for another reason, with the error.
	failed  harness.Members
	failure string
	// noPolicy says that no key policy can deny the operation to the account's root user: it is
	// on no key, or key policies have no say in it.
	noPolicy bool
}

const noStore = "cks-1234567890abcdef0"

// everyOutcome has a row for each operation.
var everyOutcome = map[string]outcomes{
	"CreateKey": {ok: func(subject) harness.Members { return harness.Members{"Description": "x"} }, invalid: harness.Members{"KeyUsage": "NONSENSE"},
		failed: harness.Members{"Policy": "{}"}, failure: "MalformedPolicyDocumentException", noPolicy: true},
	"DescribeKey": {ok: onKey(nil), failed: harness.Members{"KeyId": harness.NoKey}, failure: "NotFoundException"},
	"ListKeys": {ok: func(subject) harness.Members { return harness.Members{} }, invalid: harness.Members{"Limit": 0},
		failed: harness.Members{"Marker": "bm8="}, failure: "InvalidMarkerException", noPolicy: true},
	"UpdateKeyDescription": {ok: onKey(harness.Members{"Description": "y"}), failed: harness.Members{"KeyId": harness.NoKey, "Description": "y"}, failure: "NotFoundException"},
	"EnableKey":            {ok: onKey(nil), failed: harness.Members{"KeyId": harness.NoKey}, failure: "NotFoundException"},
	"DisableKey":           {ok: onKey(nil), failed: harness.Members{"KeyId": harness.NoKey}, failure: "NotFoundException"},
	"ScheduleKeyDeletion":  {ok: onKey(harness.Members{"PendingWindowInDays": 7}), failed: harness.Members{"KeyId": harness.NoKey}, failure: "NotFoundException"},
	"CancelKeyDeletion":    {ok: onKey(nil), failed: harness.Members{"KeyId": harness.NoKey}, failure: "NotFoundException"},
	"CreateAlias": {ok: func(s subject) harness.Members {
		return harness.Members{"AliasName": s.alias + "/new", "TargetKeyId": s.key}
	},
		failed: harness.Members{"AliasName": "alias/lost", "TargetKeyId": harness.NoKey}, failure: "NotFoundException"},
	"UpdateAlias": {ok: func(s subject) harness.Members { return harness.Members{"AliasName": s.alias, "TargetKeyId": s.other} },
		failed: harness.Members{"AliasName": "alias/lost", "TargetKeyId": harness.NoKey}, failure: "NotFoundException"},
	"DeleteAlias": {ok: func(s subject) harness.Members { return harness.Members{"AliasName": s.alias} },
		failed: harness.Members{"AliasName": "alias/lost"}, failure: "NotFoundException"},
	"ListAliases": {ok: onKey(nil), invalid: harness.Members{"Limit": 0},
		failed: harness.Members{"Marker": "bm8="}, failure: "InvalidMarkerException", noPolicy: true},
	"TagResource": {ok: onKey(harness.Members{"Tags": []any{map[string]any{"TagKey": "a", "TagValue": "b"}}}),
		failed: harness.Members{"KeyId": harness.NoKey, "Tags": []any{map[string]any{"TagKey": "a", "TagValue": "b"}}}, failure: "NotFoundException"},
	"UntagResource":    {ok: onKey(harness.Members{"TagKeys": []string{"a"}}), failed: harness.Members{"KeyId": harness.NoKey, "TagKeys": []string{"a"}}, failure: "NotFoundException"},
	"ListResourceTags": {ok: onKey(nil), failed: harness.Members{"KeyId": harness.NoKey}, failure: "NotFoundException"},
	"GetKeyPolicy":     {ok: onKey(nil), failed: harness.Members{"KeyId": harness.NoKey}, failure: "NotFoundException"},
	"PutKeyPolicy":     {ok: onKey(harness.Members{"Policy": harness.RootPolicy()}), failed: harness.Members{"KeyId": harness.NoKey, "Policy": harness.RootPolicy()}, failure: "NotFoundException"},
	"ListKeyPolicies":  {ok: onKey(nil), failed: harness.Members{"KeyId": harness.NoKey}, failure: "NotFoundException"},
	"Encrypt":          {ok: onKey(harness.Members{"Plaintext": []byte("x")}), failed: harness.Members{"KeyId": harness.NoKey, "Plaintext": []byte("x")}, failure: "NotFoundException"},
	"Decrypt": {ok: func(s subject) harness.Members { return harness.Members{"CiphertextBlob": s.blob} }, invalid: harness.Members{"CiphertextBlob": []byte{}},
		failed: harness.Members{"CiphertextBlob": []byte("nonsense")}, failure: "InvalidCiphertextException"},
	"ReEncrypt": {ok: func(s subject) harness.Members {
		return harness.Members{"CiphertextBlob": s.blob, "DestinationKeyId": s.other}
	},
		failed: harness.Members{"CiphertextBlob": []byte("nonsense"), "DestinationKeyId": harness.NoKey}, failure: "InvalidCiphertextException"},
	"GenerateDataKey": {ok: onKey(harness.Members{"KeySpec": "AES_256"}), failed: harness.Members{"KeyId": harness.NoKey, "KeySpec": "AES_256"}, failure: "NotFoundException"},
	"GenerateDataKeyWithoutPlaintext": {ok: onKey(harness.Members{"NumberOfBytes": 9}),
		failed: harness.Members{"KeyId": harness.NoKey, "NumberOfBytes": 9}, failure: "NotFoundException"},
	"GenerateRandom": {ok: func(subject) harness.Members { return harness.Members{"NumberOfBytes": 9} }, invalid: harness.Members{"NumberOfBytes": 0},
		failed: harness.Members{"NumberOfBytes": 9, "CustomKeyStoreId": noStore}, failure: "CustomKeyStoreNotFoundException", noPolicy: true},

	"Sign":         {of: "sign", ok: onKey(signing), failed: absent(signing), failure: "NotFoundException"},
	"Verify":       {of: "sign", ok: onKey(signing, "Signature"), failed: absent(signing, "Signature"), failure: "NotFoundException"},
	"GetPublicKey": {of: "sign", ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},
	"GenerateMac":  {of: "mac", ok: onKey(macing), failed: absent(macing), failure: "NotFoundException"},
	"VerifyMac":    {of: "mac", ok: onKey(macing, "Mac"), failed: absent(macing, "Mac"), failure: "NotFoundException"},
	"DeriveSharedSecret": {of: "agree", ok: onKey(harness.Members{"KeyAgreementAlgorithm": "ECDH"}, "PublicKey"),
		failed: absent(harness.Members{"KeyAgreementAlgorithm": "ECDH"}, "PublicKey"), failure: "NotFoundException"},
	"Encapsulate": {of: "kem", ok: onKey(encapsulating), failed: absent(encapsulating), failure: "NotFoundException"},
	"Decapsulate": {of: "kem", ok: onKey(encapsulating, "SharedSecretCiphertextBlob"),
		failed: absent(encapsulating, "SharedSecretCiphertextBlob"), failure: "NotFoundException"},
	"GenerateDataKeyPair":                 {ok: onKey(ofP256), failed: absent(ofP256), failure: "NotFoundException"},
	"GenerateDataKeyPairWithoutPlaintext": {ok: onKey(ofP256), failed: absent(ofP256), failure: "NotFoundException"},

	"CreateGrant": {ok: onKey(granting), failed: absent(granting), failure: "NotFoundException"},
	"ListGrants":  {ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},
	"ListRetirableGrants": {ok: func(subject) harness.Members { return harness.Members{"RetiringPrincipal": somebody} },
		failed: harness.Members{"RetiringPrincipal": somebody, "Marker": "bm8="}, failure: "InvalidMarkerException", noPolicy: true},
	"RetireGrant": {ok: func(s subject) harness.Members { return harness.Members{"KeyId": s.arn, "GrantId": s.grant} }, invalid: harness.Members{"GrantId": ""},
		failed: harness.Members{"GrantToken": "bm8="}, failure: "InvalidGrantTokenException", noPolicy: true},
	"RevokeGrant": {ok: func(s subject) harness.Members { return harness.Members{"KeyId": s.key, "GrantId": s.grant} },
		failed: absent(harness.Members{"GrantId": strings.Repeat("1", 64)}), failure: "NotFoundException"},

	"EnableKeyRotation":    {ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},
	"DisableKeyRotation":   {ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},
	"GetKeyRotationStatus": {ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},
	"RotateKeyOnDemand":    {ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},
	"ListKeyRotations":     {ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},
	"GetKeyLastUsage":      {ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},

	"GetParametersForImport": {of: "imported", ok: onKey(importWrapping), failed: absent(importWrapping), failure: "NotFoundException"},
	"ImportKeyMaterial": {of: "imported", ok: func(s subject) harness.Members { return s.importing },
		failed: absent(harness.Members{"ImportToken": []byte("x"), "EncryptedKeyMaterial": []byte("x"), "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}), failure: "NotFoundException"},
	"DeleteImportedKeyMaterial": {of: "imported", ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},

	"ReplicateKey": {of: "multi", ok: onKey(harness.Members{"ReplicaRegion": harness.ThirdRegion}),
		failed: absent(harness.Members{"ReplicaRegion": harness.ThirdRegion}), failure: "NotFoundException"},
	"UpdatePrimaryRegion": {of: "multi", ok: onKey(harness.Members{"PrimaryRegion": harness.SecondRegion}),
		failed: absent(harness.Members{"PrimaryRegion": harness.SecondRegion}), failure: "NotFoundException"},

	"CreateCustomKeyStore": {of: "store", ok: func(s subject) harness.Members { return s.store },
		failed: harness.Members{"CustomKeyStoreName": "x", "CloudHsmClusterId": "cluster-2a34b5cdefg", "KeyStorePassword": "kmsPswd"}, failure: "UnsupportedOperationException", noPolicy: true},
	"ConnectCustomKeyStore":    onStore("disconnected store", nil),
	"DisconnectCustomKeyStore": onStore("connected store", nil),
	"UpdateCustomKeyStore":     onStore("disconnected store", harness.Members{"NewCustomKeyStoreName": "renamed"}),
	"DeleteCustomKeyStore":     onStore("disconnected store", nil),
	"DescribeCustomKeyStores": {of: "connected store", ok: onStore("", nil).ok, invalid: harness.Members{"Limit": 0},
		failed: harness.Members{"CustomKeyStoreId": noStore}, failure: "CustomKeyStoreNotFoundException", noPolicy: true},
}

const somebody = "arn:aws:iam::" + harness.Account + ":user/somebody"

var (
	signing        = harness.Members{"Message": []byte("m"), "SigningAlgorithm": "ECDSA_SHA_256"}
	macing         = harness.Members{"Message": []byte("m"), "MacAlgorithm": "HMAC_SHA_256"}
	encapsulating  = harness.Members{"EncapsulationAlgorithm": "ML_KEM"}
	ofP256         = harness.Members{"KeyPairSpec": "ECC_NIST_P256"}
	granting       = harness.Members{"GranteePrincipal": somebody, "Operations": []any{"Encrypt"}}
	importWrapping = harness.Members{"WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}
)

// onKey asks for the subject's key, with what was made with it as the member made.
func onKey(more harness.Members, made ...string) func(subject) harness.Members {
	return func(s subject) harness.Members {
		in := harness.Members{"KeyId": s.key}
		maps.Copy(in, more)
		for _, name := range made {
			in[name] = s.made
		}
		return in
	}
}

// absent asks for a key that does not exist.
func absent(more harness.Members, made ...string) harness.Members {
	return onKey(more, made...)(subject{key: harness.NoKey, made: []byte("x")})
}

// onStore is an operation on a custom key store.
func onStore(of string, more harness.Members) outcomes {
	with := func(store string) harness.Members {
		in := harness.Members{"CustomKeyStoreId": store}
		maps.Copy(in, more)
		return in
	}
	return outcomes{
		of: of, ok: func(s subject) harness.Members { return with(s.storeID) },
		failed: with(noStore), failure: "CustomKeyStoreNotFoundException", noPolicy: true,
	}
}
