package integration

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
	importing              input // of material
	store                  input // that makes a key store
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
	m := sdkMust[*kms.CreateKeyOutput](t)(client.CreateKey(ctx, &kind)).KeyMetadata
	s.key, s.arn = *m.KeyId, *m.Arn
	s.other = *sdkMust[*kms.CreateKeyOutput](t)(client.CreateKey(ctx, &kms.CreateKeyInput{})).KeyMetadata.KeyId
	sdkMust[*kms.CreateAliasOutput](t)(client.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &s.alias, TargetKeyId: &s.key}))
	switch of {
	case "":
		s.blob = sdkMust[*kms.EncryptOutput](t)(client.Encrypt(ctx, &kms.EncryptInput{KeyId: &s.key, Plaintext: []byte("subject")})).CiphertextBlob
		s.grant = *sdkMust[*kms.CreateGrantOutput](t)(client.CreateGrant(ctx, &kms.CreateGrantInput{
			KeyId: &s.key, GranteePrincipal: aws.String(somebody), RetiringPrincipal: aws.String(somebody),
			Operations: []types.GrantOperation{types.GrantOperationDecrypt},
		})).GrantId
	case "sign":
		s.made = sdkMust[*kms.SignOutput](t)(client.Sign(ctx, &kms.SignInput{
			KeyId: &s.key, Message: []byte("m"), SigningAlgorithm: types.SigningAlgorithmSpecEcdsaSha256,
		})).Signature
	case "mac":
		s.made = sdkMust[*kms.GenerateMacOutput](t)(client.GenerateMac(ctx, &kms.GenerateMacInput{
			KeyId: &s.key, Message: []byte("m"), MacAlgorithm: types.MacAlgorithmSpecHmacSha256,
		})).Mac
	case "kem":
		s.made = sdkMust[*kms.EncapsulateOutput](t)(client.Encapsulate(ctx, &kms.EncapsulateInput{
			KeyId: &s.key, EncapsulationAlgorithm: types.EncapsulationAlgorithmSpecMlKem,
		})).SharedSecretCiphertextBlob
	case "agree":
		s.made = sdkMust[*kms.GetPublicKeyOutput](t)(client.GetPublicKey(ctx, &kms.GetPublicKeyInput{KeyId: &s.key})).PublicKey
	case "imported":
		w := &stateWorld{t: t, n: n, kms: client}
		w.mustSDK("ImportKeyMaterial", w.importOf(s.key))
		s.importing = input(w.importOf(s.key))
	case "multi":
		sdkMust[*kms.ReplicateKeyOutput](t)(client.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: &s.key, ReplicaRegion: aws.String(secondRegion)}))
	}
	sdkMust[*kms.PutKeyPolicyOutput](t)(client.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{
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
	s := subject{store: input{
		"CustomKeyStoreName": name, "CustomKeyStoreType": "EXTERNAL_KEY_STORE", "XksProxyConnectivity": "PUBLIC_ENDPOINT",
		"XksProxyUriEndpoint": p.Endpoint, "XksProxyUriPath": path,
		"XksProxyAuthenticationCredential": input{"AccessKeyId": xksproxy.AccessKeyID, "RawSecretAccessKey": xksproxy.Secret},
	}}
	if of == "store" {
		return s
	}
	s.storeID = *sdkMust[*kms.CreateCustomKeyStoreOutput](t)(client.CreateCustomKeyStore(ctx, &kms.CreateCustomKeyStoreInput{
		CustomKeyStoreName: &name, CustomKeyStoreType: types.CustomKeyStoreTypeExternalKeyStore,
		XksProxyConnectivity: types.XksProxyConnectivityTypePublicEndpoint, XksProxyUriEndpoint: &p.Endpoint, XksProxyUriPath: &path,
		XksProxyAuthenticationCredential: &types.XksProxyAuthenticationCredentialType{
			AccessKeyId: aws.String(xksproxy.AccessKeyID), RawSecretAccessKey: aws.String(xksproxy.Secret),
		},
	})).CustomKeyStoreId
	if of == "connected store" {
		sdkMust[*kms.ConnectCustomKeyStoreOutput](t)(client.ConnectCustomKeyStore(ctx, &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: &s.storeID}))
	}
	return s
}

const noKey = "00000000-0000-4000-8000-000000000000"

// outcomes is how an operation is brought to each of its outcomes.
type outcomes struct {
	// of is the kind of subject, of subjectKinds; "" for a symmetric key.
	of string
	// ok is a request that succeeds for a subject.
	ok func(subject) input
	// invalid is a request that breaks a rule of its members; without one, an empty
	// request does.
	invalid input
	// failed is a request that fails for another reason, with the error.
	failed  input
	failure string
	// nobody says why nobody can be denied the operation yet; "" if somebody can.
	nobody string
}

const onlyRoot = "it is on no key, so only identity policies could deny it, and the account's root, which has none, is the only caller"

const noStore = "cks-1234567890abcdef0"

// everyOutcome has a row for each operation.
var everyOutcome = map[string]outcomes{
	"CreateKey": {ok: func(subject) input { return input{"Description": "x"} }, invalid: input{"KeyUsage": "NONSENSE"},
		failed: input{"Policy": "{}"}, failure: "MalformedPolicyDocumentException", nobody: onlyRoot},
	"DescribeKey": {ok: onKey(nil), failed: input{"KeyId": noKey}, failure: "NotFoundException"},
	"ListKeys": {ok: func(subject) input { return input{} }, invalid: input{"Limit": 0},
		failed: input{"Marker": "bm8="}, failure: "InvalidMarkerException", nobody: onlyRoot},
	"UpdateKeyDescription": {ok: onKey(input{"Description": "y"}), failed: input{"KeyId": noKey, "Description": "y"}, failure: "NotFoundException"},
	"EnableKey":            {ok: onKey(nil), failed: input{"KeyId": noKey}, failure: "NotFoundException"},
	"DisableKey":           {ok: onKey(nil), failed: input{"KeyId": noKey}, failure: "NotFoundException"},
	"ScheduleKeyDeletion":  {ok: onKey(input{"PendingWindowInDays": 7}), failed: input{"KeyId": noKey}, failure: "NotFoundException"},
	"CancelKeyDeletion":    {ok: onKey(nil), failed: input{"KeyId": noKey}, failure: "NotFoundException"},
	"CreateAlias": {ok: func(s subject) input { return input{"AliasName": s.alias + "/new", "TargetKeyId": s.key} },
		failed: input{"AliasName": "alias/lost", "TargetKeyId": noKey}, failure: "NotFoundException"},
	"UpdateAlias": {ok: func(s subject) input { return input{"AliasName": s.alias, "TargetKeyId": s.other} },
		failed: input{"AliasName": "alias/lost", "TargetKeyId": noKey}, failure: "NotFoundException"},
	"DeleteAlias": {ok: func(s subject) input { return input{"AliasName": s.alias} },
		failed: input{"AliasName": "alias/lost"}, failure: "NotFoundException"},
	"ListAliases": {ok: onKey(nil), invalid: input{"Limit": 0},
		failed: input{"Marker": "bm8="}, failure: "InvalidMarkerException", nobody: onlyRoot},
	"TagResource": {ok: onKey(input{"Tags": []any{map[string]any{"TagKey": "a", "TagValue": "b"}}}),
		failed: input{"KeyId": noKey, "Tags": []any{map[string]any{"TagKey": "a", "TagValue": "b"}}}, failure: "NotFoundException"},
	"UntagResource":    {ok: onKey(input{"TagKeys": []string{"a"}}), failed: input{"KeyId": noKey, "TagKeys": []string{"a"}}, failure: "NotFoundException"},
	"ListResourceTags": {ok: onKey(nil), failed: input{"KeyId": noKey}, failure: "NotFoundException"},
	"GetKeyPolicy":     {ok: onKey(nil), failed: input{"KeyId": noKey}, failure: "NotFoundException"},
	"PutKeyPolicy":     {ok: onKey(input{"Policy": rootPolicy()}), failed: input{"KeyId": noKey, "Policy": rootPolicy()}, failure: "NotFoundException"},
	"ListKeyPolicies":  {ok: onKey(nil), failed: input{"KeyId": noKey}, failure: "NotFoundException"},
	"Encrypt":          {ok: onKey(input{"Plaintext": []byte("x")}), failed: input{"KeyId": noKey, "Plaintext": []byte("x")}, failure: "NotFoundException"},
	"Decrypt": {ok: func(s subject) input { return input{"CiphertextBlob": s.blob} }, invalid: input{"CiphertextBlob": []byte{}},
		failed: input{"CiphertextBlob": []byte("nonsense")}, failure: "InvalidCiphertextException"},
	"ReEncrypt": {ok: func(s subject) input { return input{"CiphertextBlob": s.blob, "DestinationKeyId": s.other} },
		failed: input{"CiphertextBlob": []byte("nonsense"), "DestinationKeyId": noKey}, failure: "InvalidCiphertextException"},
	"GenerateDataKey": {ok: onKey(input{"KeySpec": "AES_256"}), failed: input{"KeyId": noKey, "KeySpec": "AES_256"}, failure: "NotFoundException"},
	"GenerateDataKeyWithoutPlaintext": {ok: onKey(input{"NumberOfBytes": 9}),
		failed: input{"KeyId": noKey, "NumberOfBytes": 9}, failure: "NotFoundException"},
	"GenerateRandom": {ok: func(subject) input { return input{"NumberOfBytes": 9} }, invalid: input{"NumberOfBytes": 0},
		failed: input{"NumberOfBytes": 9, "CustomKeyStoreId": noStore}, failure: "CustomKeyStoreNotFoundException", nobody: onlyRoot},

	"Sign":         {of: "sign", ok: onKey(signing), failed: absent(signing), failure: "NotFoundException"},
	"Verify":       {of: "sign", ok: onKey(signing, "Signature"), failed: absent(signing, "Signature"), failure: "NotFoundException"},
	"GetPublicKey": {of: "sign", ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},
	"GenerateMac":  {of: "mac", ok: onKey(macing), failed: absent(macing), failure: "NotFoundException"},
	"VerifyMac":    {of: "mac", ok: onKey(macing, "Mac"), failed: absent(macing, "Mac"), failure: "NotFoundException"},
	"DeriveSharedSecret": {of: "agree", ok: onKey(input{"KeyAgreementAlgorithm": "ECDH"}, "PublicKey"),
		failed: absent(input{"KeyAgreementAlgorithm": "ECDH"}, "PublicKey"), failure: "NotFoundException"},
	"Encapsulate": {of: "kem", ok: onKey(encapsulating), failed: absent(encapsulating), failure: "NotFoundException"},
	"Decapsulate": {of: "kem", ok: onKey(encapsulating, "SharedSecretCiphertextBlob"),
		failed: absent(encapsulating, "SharedSecretCiphertextBlob"), failure: "NotFoundException"},
	"GenerateDataKeyPair":                 {ok: onKey(ofP256), failed: absent(ofP256), failure: "NotFoundException"},
	"GenerateDataKeyPairWithoutPlaintext": {ok: onKey(ofP256), failed: absent(ofP256), failure: "NotFoundException"},

	"CreateGrant": {ok: onKey(granting), failed: absent(granting), failure: "NotFoundException"},
	"ListGrants":  {ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},
	"ListRetirableGrants": {ok: func(subject) input { return input{"RetiringPrincipal": somebody} },
		failed: input{"RetiringPrincipal": somebody, "Marker": "bm8="}, failure: "InvalidMarkerException", nobody: onlyRoot},
	"RetireGrant": {ok: func(s subject) input { return input{"KeyId": s.arn, "GrantId": s.grant} }, invalid: input{"GrantId": ""},
		failed: input{"GrantToken": "bm8="}, failure: "InvalidGrantTokenException", nobody: "key policies have no say in it, and root is the account that made the grant"},
	"RevokeGrant": {ok: func(s subject) input { return input{"KeyId": s.key, "GrantId": s.grant} },
		failed: absent(input{"GrantId": strings.Repeat("1", 64)}), failure: "NotFoundException"},

	"EnableKeyRotation":    {ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},
	"DisableKeyRotation":   {ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},
	"GetKeyRotationStatus": {ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},
	"RotateKeyOnDemand":    {ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},
	"ListKeyRotations":     {ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},
	"GetKeyLastUsage":      {ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},

	"GetParametersForImport": {of: "imported", ok: onKey(importWrapping), failed: absent(importWrapping), failure: "NotFoundException"},
	"ImportKeyMaterial": {of: "imported", ok: func(s subject) input { return s.importing },
		failed: absent(input{"ImportToken": []byte("x"), "EncryptedKeyMaterial": []byte("x"), "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}), failure: "NotFoundException"},
	"DeleteImportedKeyMaterial": {of: "imported", ok: onKey(nil), failed: absent(nil), failure: "NotFoundException"},

	"ReplicateKey": {of: "multi", ok: onKey(input{"ReplicaRegion": thirdRegion}),
		failed: absent(input{"ReplicaRegion": thirdRegion}), failure: "NotFoundException"},
	"UpdatePrimaryRegion": {of: "multi", ok: onKey(input{"PrimaryRegion": secondRegion}),
		failed: absent(input{"PrimaryRegion": secondRegion}), failure: "NotFoundException"},

	"CreateCustomKeyStore": {of: "store", ok: func(s subject) input { return s.store },
		failed: input{"CustomKeyStoreName": "x", "CloudHsmClusterId": "cluster-2a34b5cdefg", "KeyStorePassword": "kmsPswd"}, failure: "UnsupportedOperationException", nobody: onlyRoot},
	"ConnectCustomKeyStore":    onStore("disconnected store", nil),
	"DisconnectCustomKeyStore": onStore("connected store", nil),
	"UpdateCustomKeyStore":     onStore("disconnected store", input{"NewCustomKeyStoreName": "renamed"}),
	"DeleteCustomKeyStore":     onStore("disconnected store", nil),
	"DescribeCustomKeyStores": {of: "connected store", ok: onStore("", nil).ok, invalid: input{"Limit": 0},
		failed: input{"CustomKeyStoreId": noStore}, failure: "CustomKeyStoreNotFoundException", nobody: onlyRoot},
}

const somebody = "arn:aws:iam::" + harness.Account + ":user/somebody"

var (
	signing        = input{"Message": []byte("m"), "SigningAlgorithm": "ECDSA_SHA_256"}
	macing         = input{"Message": []byte("m"), "MacAlgorithm": "HMAC_SHA_256"}
	encapsulating  = input{"EncapsulationAlgorithm": "ML_KEM"}
	ofP256         = input{"KeyPairSpec": "ECC_NIST_P256"}
	granting       = input{"GranteePrincipal": somebody, "Operations": []any{"Encrypt"}}
	importWrapping = input{"WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}
)

// onKey asks for the subject's key, with what was made with it as the member made.
func onKey(more input, made ...string) func(subject) input {
	return func(s subject) input {
		in := input{"KeyId": s.key}
		maps.Copy(in, more)
		for _, name := range made {
			in[name] = s.made
		}
		return in
	}
}

// absent asks for a key that does not exist.
func absent(more input, made ...string) input {
	return onKey(more, made...)(subject{key: noKey, made: []byte("x")})
}

// onStore is an operation on a custom key store.
func onStore(of string, more input) outcomes {
	with := func(store string) input {
		in := input{"CustomKeyStoreId": store}
		maps.Copy(in, more)
		return in
	}
	return outcomes{
		of: of, ok: func(s subject) input { return with(s.storeID) },
		failed: with(noStore), failure: "CustomKeyStoreNotFoundException", nobody: onlyRoot,
	}
}
