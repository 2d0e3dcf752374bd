package keyengine

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/integration/xksproxy"
	"github.com/conclavekms/conclave/keyengine/attesttest"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/cryptops"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
	"github.com/conclavekms/conclave/policy/lint"
)

// kmsConditionKeys is what AWS says about its condition keys: their types, and those of each
// action.
type kmsConditionKeys struct {
	Keys          map[string]string
	ResourceTypes map[string][]string
	Actions       map[string]struct{ Resources, Keys []string }
}

// of returns the keys of an action, with those of keys if it is on one, and the old names of
// two of them. Keys with a placeholder have what the requests of this test use.
func (d *kmsConditionKeys) of(action string) []string {
	a := d.Actions[action]
	keys := slices.Clone(a.Keys)
	if slices.Contains(a.Resources, "key") {
		keys = append(keys, d.ResourceTypes["key"]...)
	}
	if slices.Contains(keys, "kms:KeySpec") {
		keys = append(keys, "kms:CustomerMasterKeySpec", "kms:CustomerMasterKeyUsage")
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// resourceOf returns the resources of an action to which conditions apply.
func (d *kmsConditionKeys) resourceOf(action string) string {
	if slices.Contains(d.Actions[action].Resources, "key") {
		return "arn:aws:kms:*:*:key/*"
	}
	return "*"
}

func readKMSConditionKeys(t *testing.T) *kmsConditionKeys {
	t.Helper()
	b, err := os.ReadFile("testdata/iam-data/kms.json")
	if err != nil {
		t.Fatal(err)
	}
	d := new(kmsConditionKeys)
	if err := json.Unmarshal(b, d); err != nil {
		t.Fatal(err)
	}
	delete(d.Actions, "SynchronizeMultiRegionKey") // which nobody asks for
	// The data is older than these two.
	for _, name := range []string{"Encapsulate", "Decapsulate"} {
		a := d.Actions[name]
		a.Resources, a.Keys = []string{"key"}, []string{"kms:CallerAccount", "kms:RequestAlias", "kms:ViaService"}
		d.Actions[name] = a
	}
	return d
}

// A conditionRequest makes requests for an action. Without one, the request is that of the
// table of key states.
type conditionRequest struct {
	op   string // default: the action
	kind string // of the key, of stateKinds
	// imported is set if the key's material is imported.
	imported bool
	// in returns a request in which the condition key has the value in values.
	in func(k *conditionKey) any
	// values are the values of keys in the request. Keys that describe a key are added.
	values map[string]string
}

// A conditionKey is a KMS key for one case: a multi-Region primary key with an alias and tags.
type conditionKey struct {
	*stateKey
	alias string
	// about is the condition key of the case.
	about string
	proxy *xksproxy.Proxy
}

// recipient returns a Recipient for a case about its measurements, and nil for another.
func (k *conditionKey) recipient() *kmsapi.RecipientInfo {
	payload := k.enclave.Payload(k.Clock.Now())
	switch name, ok := strings.CutPrefix(k.about, "kms:RecipientAttestation:"); {
	case !ok:
		return nil
	case strings.HasPrefix(name, "NitroTPM"):
		payload = payload.OfTPM()
	}
	return recipientWith(k.enclave.Chain.Sign(attesttest.Encode(payload)))
}

var caseContext = map[string]string{"Dept": "IT", "Case": "1"}

// withContext returns values together with those of caseContext.
func withContext(values map[string]string) map[string]string {
	values["kms:EncryptionContext:${EncryptionContextKey}"] = "IT"
	values["kms:EncryptionContextKeys"] = "Dept"
	return values
}

// algorithm returns values with an encryption algorithm.
func algorithm(values map[string]string) map[string]string {
	values["kms:EncryptionAlgorithm"] = kmsapi.AlgorithmSymmetric
	return values
}

// newGrantInput returns a request for a grant that has what the case is about.
func newGrantInput(k *conditionKey) *kmsapi.CreateGrantInput {
	k.exist(bobARN, carolARN)
	in := &kmsapi.CreateGrantInput{
		KeyId: &k.id, GranteePrincipal: new(bobARN), RetiringPrincipal: new(carolARN), Operations: []string{"Encrypt", "Decrypt"},
		Constraints: &kmsapi.GrantConstraints{EncryptionContextSubset: caseContext},
	}
	switch k.about {
	case "kms:GranteeServicePrincipal", "kms:GrantConstraintSourceArn", "kms:RetiringServicePrincipal":
		in.GranteePrincipal, in.RetiringPrincipal = nil, nil
		in.GranteeServicePrincipal, in.RetiringServicePrincipal = new(backupService), new(backupService)
		in.Constraints.SourceArn = new(tableARN)
	}
	return in
}

// conditionRequests has the actions with keys of their own.
func conditionRequests() map[string]conditionRequest {
	dataKey := algorithm(withContext(map[string]string{}))
	pair := algorithm(withContext(map[string]string{"kms:DataKeyPairSpec": "ECC_NIST_P256"}))
	reEncrypt := func(k *conditionKey) any {
		blob := must[kmsapi.EncryptOutput](k.testCluster, "Encrypt", &kmsapi.EncryptInput{KeyId: &k.id, Plaintext: []byte("x"), EncryptionContext: caseContext}).CiphertextBlob
		return &kmsapi.ReEncryptInput{
			CiphertextBlob: blob, SourceKeyId: &k.alias, SourceEncryptionContext: caseContext,
			DestinationKeyId: new(k.aliasOf(k.other)), DestinationEncryptionContext: caseContext,
		}
	}
	sign := func(k *conditionKey) *kmsapi.SignInput {
		in := k.signInput(k.alias)
		if k.about == "kms:MessageType" {
			in.MessageType, in.Message = new("DIGEST"), make([]byte, 32)
		}
		return in
	}
	signing := map[string]string{"kms:SigningAlgorithm": "ECDSA_SHA_256", "kms:MessageType": "DIGEST"}
	store := func(in func(k *conditionKey, id *string) any) func(k *conditionKey) any {
		return func(k *conditionKey) any {
			id := k.newStore(k.proxy)
			must[request.None](k.testCluster, "DisconnectCustomKeyStore", &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &id})
			return in(k, &id)
		}
	}
	return map[string]conditionRequest{
		"CancelKeyDeletion": {in: func(k *conditionKey) any {
			k.enter(fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION)
			return &kmsapi.CancelKeyDeletionInput{KeyId: &k.id}
		}},
		"CreateGrant": {in: func(k *conditionKey) any { return newGrantInput(k) }, values: withContext(map[string]string{
			"kms:GrantConstraintSourceArn": tableARN, "kms:GrantConstraintType": "EncryptionContextSubset", "kms:GrantIsForAWSResource": "false",
			"kms:GrantOperations": "Decrypt", "kms:GranteePrincipal": bobARN, "kms:GranteeServicePrincipal": backupService,
			"kms:RetiringPrincipal": carolARN, "kms:RetiringServicePrincipal": backupService,
		})},
		"CreateKey": {in: func(k *conditionKey) any {
			in := &kmsapi.CreateKeyInput{MultiRegion: new(true), Tags: caseTags()}
			if k.about == "kms:BypassPolicyLockoutSafetyCheck" {
				in.BypassPolicyLockoutSafetyCheck = new(true)
			}
			return in
		}, values: map[string]string{
			"kms:BypassPolicyLockoutSafetyCheck": "true", "aws:RequestTag/${TagKey}": "red", "aws:TagKeys": "Team",
		}},
		"Decapsulate": {kind: "kem", in: func(k *conditionKey) any {
			return decapsulateInput(k.alias, k.encapsulate(k.id).SharedSecretCiphertextBlob)
		}},
		"Decrypt": {in: func(k *conditionKey) any {
			blob := must[kmsapi.EncryptOutput](k.testCluster, "Encrypt", &kmsapi.EncryptInput{KeyId: &k.id, Plaintext: []byte("x"), EncryptionContext: caseContext}).CiphertextBlob
			return &kmsapi.DecryptInput{KeyId: &k.alias, CiphertextBlob: blob, EncryptionContext: caseContext, Recipient: k.recipient()}
		}, values: dataKey},
		"DeleteImportedKeyMaterial": {imported: true},
		"DeriveSharedSecret": {kind: "agree", in: func(k *conditionKey) any {
			return &kmsapi.DeriveSharedSecretInput{
				KeyId: &k.alias, KeyAgreementAlgorithm: new(cryptops.AlgorithmECDH), PublicKey: k.publicKey(k.id), Recipient: k.recipient(),
			}
		}, values: map[string]string{"kms:KeyAgreementAlgorithm": "ECDH"}},
		"DescribeKey": {in: func(k *conditionKey) any { return &kmsapi.DescribeKeyInput{KeyId: &k.alias} }},
		"DisableKey":  {values: map[string]string{"kms:TrailingDaysWithoutKeyUsage": "3"}},
		"EnableKeyRotation": {in: func(k *conditionKey) any {
			return &kmsapi.EnableKeyRotationInput{KeyId: &k.id, RotationPeriodInDays: new(int32(100))}
		}, values: map[string]string{"kms:RotationPeriodInDays": "100"}},
		"Encapsulate": {kind: "kem", in: func(k *conditionKey) any { return encapsulateInput(k.alias) }},
		"Encrypt": {in: func(k *conditionKey) any {
			return &kmsapi.EncryptInput{KeyId: &k.alias, Plaintext: []byte("x"), EncryptionContext: caseContext}
		}, values: dataKey},
		"GenerateDataKey": {in: func(k *conditionKey) any {
			return &kmsapi.GenerateDataKeyInput{KeyId: &k.alias, KeySpec: new("AES_256"), EncryptionContext: caseContext, Recipient: k.recipient()}
		}, values: dataKey},
		"GenerateDataKeyWithoutPlaintext": {in: func(k *conditionKey) any {
			return &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: &k.alias, KeySpec: new("AES_256"), EncryptionContext: caseContext}
		}, values: dataKey},
		"GenerateDataKeyPair": {in: func(k *conditionKey) any {
			return &kmsapi.GenerateDataKeyPairInput{KeyId: &k.alias, KeyPairSpec: new("ECC_NIST_P256"), EncryptionContext: caseContext, Recipient: k.recipient()}
		}, values: pair},
		"GenerateDataKeyPairWithoutPlaintext": {in: func(k *conditionKey) any {
			return &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &k.alias, KeyPairSpec: new("ECC_NIST_P256"), EncryptionContext: caseContext}
		}, values: pair},
		"GenerateMac": {kind: "mac", in: func(k *conditionKey) any { return k.macInput(k.alias) }, values: map[string]string{"kms:MacAlgorithm": "HMAC_SHA_256"}},
		"GenerateRandom": {in: func(k *conditionKey) any {
			return &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(8)), Recipient: k.recipient()}
		}},
		"GetParametersForImport": {imported: true, values: map[string]string{"kms:WrappingAlgorithm": "RSAES_OAEP_SHA_256", "kms:WrappingKeySpec": "RSA_2048"}},
		"GetPublicKey":           {kind: "sign", in: func(k *conditionKey) any { return &kmsapi.GetPublicKeyInput{KeyId: &k.alias} }},
		"ImportKeyMaterial": {imported: true, in: func(k *conditionKey) any {
			in := k.importInput().(*kmsapi.ImportKeyMaterialInput)
			in.ExpirationModel, in.ValidTo = new(ops.ModelExpires), new(caseValidTo(k.testCluster))
			return in
		}, values: map[string]string{"kms:ExpirationModel": ops.ModelExpires}},
		"ListGrants":   {values: map[string]string{"kms:GrantIsForAWSResource": "false"}},
		"PutKeyPolicy": {values: map[string]string{"kms:BypassPolicyLockoutSafetyCheck": "true"}, in: putDefaultPolicy},
		"ReEncryptFrom": {op: "ReEncrypt", in: reEncrypt, values: algorithm(withContext(map[string]string{
			"kms:ReEncryptOnSameKey": "false",
		}))},
		"ReEncryptTo": {op: "ReEncrypt", in: reEncrypt, values: algorithm(withContext(map[string]string{
			"kms:ReEncryptOnSameKey": "false",
		}))},
		"ReplicateKey": {values: map[string]string{"kms:ReplicaRegion": thirdRegion}},
		"RetireGrant": {in: func(k *conditionKey) any {
			g := must[kmsapi.CreateGrantOutput](k.testCluster, "CreateGrant", newGrantInput(k))
			return &kmsapi.RetireGrantInput{KeyId: &k.arn, GrantId: g.GrantId}
		}, values: withContext(map[string]string{"kms:GrantConstraintType": "EncryptionContextSubset"})},
		"RevokeGrant":         {values: map[string]string{"kms:GrantIsForAWSResource": "false"}},
		"ScheduleKeyDeletion": {values: map[string]string{"kms:ScheduleKeyDeletionPendingWindowInDays": "30", "kms:TrailingDaysWithoutKeyUsage": "3"}},
		"Sign":                {kind: "sign", in: func(k *conditionKey) any { return sign(k) }, values: signing},
		"TagResource": {in: func(k *conditionKey) any { return &kmsapi.TagResourceInput{KeyId: &k.id, Tags: caseTags()} }, values: map[string]string{
			"aws:RequestTag/${TagKey}": "red", "aws:TagKeys": "Team",
		}},
		"UntagResource": {in: func(k *conditionKey) any {
			return &kmsapi.UntagResourceInput{KeyId: &k.id, TagKeys: []string{"Team"}}
		}, values: map[string]string{"aws:TagKeys": "Team"}},
		"UpdatePrimaryRegion": {values: map[string]string{"kms:PrimaryRegion": secondRegion}},
		"Verify": {kind: "sign", in: func(k *conditionKey) any {
			in := sign(k)
			s := must[kmsapi.SignOutput](k.testCluster, "Sign", in).Signature
			return &kmsapi.VerifyInput{KeyId: in.KeyId, Message: in.Message, MessageType: in.MessageType, SigningAlgorithm: in.SigningAlgorithm, Signature: s}
		}, values: signing},
		"VerifyMac": {kind: "mac", in: func(k *conditionKey) any {
			in := k.macInput(k.alias)
			m := must[kmsapi.GenerateMacOutput](k.testCluster, "GenerateMac", in).Mac
			return &kmsapi.VerifyMacInput{KeyId: in.KeyId, Message: in.Message, MacAlgorithm: in.MacAlgorithm, Mac: m}
		}, values: map[string]string{"kms:MacAlgorithm": "HMAC_SHA_256"}},

		"CreateCustomKeyStore": {in: func(k *conditionKey) any { return storeAt(k.proxy, "store") }},
		"ConnectCustomKeyStore": {in: store(func(_ *conditionKey, id *string) any {
			return &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: id}
		})},
		"DisconnectCustomKeyStore": {in: func(k *conditionKey) any {
			return &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: new(k.newStore(k.proxy))}
		}},
		"DescribeCustomKeyStores": {in: func(*conditionKey) any { return &kmsapi.DescribeCustomKeyStoresInput{} }},
		"UpdateCustomKeyStore": {in: store(func(_ *conditionKey, id *string) any {
			return &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: id, NewCustomKeyStoreName: new("another")}
		})},
		"DeleteCustomKeyStore": {in: store(func(_ *conditionKey, id *string) any {
			return &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: id}
		})},
	}
}

func caseTags() []kmsapi.Tag { return []kmsapi.Tag{{TagKey: new("Team"), TagValue: new("red")}} }

func caseValidTo(c *testCluster) time.Time {
	return c.Clock.Now().Add(48 * time.Hour).Truncate(time.Second)
}

func putDefaultPolicy(k *conditionKey) any {
	return &kmsapi.PutKeyPolicyInput{KeyId: &k.id, Policy: new(policyDocument(rootStatement)), BypassPolicyLockoutSafetyCheck: new(true)}
}

// conditionOperators are the operators for the types of keys.
var conditionOperators = map[string]string{
	"String": "StringEquals", "ArrayOfString": "ForAnyValue:StringEquals", "Bool": "Bool", "Numeric": "NumericEquals", "Date": "DateEquals", "ARN": "ArnEquals",
}

// wrongValue returns another value of a type than the right one.
func wrongValue(kind, right string) string {
	switch kind {
	case "Bool":
		return strconv.FormatBool(right != "true")
	case "Numeric", "Date":
		n, _ := strconv.Atoi(right)
		return strconv.Itoa(n + 1)
	case "ARN":
		return right + "/other"
	}
	if lower := strings.ToLower(right); lower != right {
		return lower // the case of values counts
	}
	return right + "x"
}

// A condition on each of AWS's keys decides each action that AWS lists for it: with the right
// value the request is allowed, and with a wrong one, or if the key must be absent, denied.
func TestConditionKeys(t *testing.T) {
	t.Parallel()
	data := readKMSConditionKeys(t)
	f := newConditionFixture(t)
	requests := conditionRequests()
	covered := make(map[string]bool)
	var later []func(t *testing.T)
	for _, action := range slices.Sorted(maps.Keys(data.Actions)) {
		for i, key := range data.of(action) {
			covered[key] = true
			if testing.Short() && i > 0 {
				continue // one of an action is enough for the race detector
			}
			run := func(t *testing.T) {
				t.Run(action+" "+key, func(t *testing.T) { f.check(t, data, requests[action], action, key) })
			}
			if key == "kms:TrailingDaysWithoutKeyUsage" {
				later = append(later, run) // lets days pass, after which the enclave's certificates have expired
				continue
			}
			run(t)
		}
	}
	for _, run := range later {
		run(t)
	}
	for key := range data.Keys {
		if !covered[key] {
			t.Errorf("no action has %s", key)
		}
	}
	for action := range requests {
		if _, ok := data.Actions[action]; !ok {
			t.Errorf("AWS does not have the action %s", action)
		}
	}
	for name, op := range ops.Table {
		for _, a := range op.Actions {
			if _, ok := data.Actions[strings.TrimPrefix(a, "kms:")]; !ok {
				t.Errorf("the action %s of %s has no row", a, name)
			}
		}
	}
}

// Requests do not have the keys that AWS does not list for the action.
func TestAbsentConditionKeys(t *testing.T) {
	t.Parallel()
	data := readKMSConditionKeys(t)
	f := newConditionFixture(t)
	requests := conditionRequests()
	for _, action := range slices.Sorted(maps.Keys(data.Actions)) {
		t.Run(action, func(t *testing.T) {
			absent := make(map[string]bool)
			for key := range data.Keys {
				if strings.HasPrefix(key, "kms:") && !slices.Contains(data.of(action), key) {
					absent[strings.Replace(key, "${EncryptionContextKey}", "dept", 1)] = true
				}
			}
			_, op, in := f.newCase(t, requests[action], action, "")
			condition, _ := json.Marshal(map[string]any{"Null": absent})
			f.require(action, data.resourceOf(action), string(condition))
			if _, err := f.engine.Do(t.Context(), f.caller(f.alice), OperationNamed(KMS, op), in); err != nil {
				t.Error(err)
			}
		})
	}
}

// The linter knows each of AWS's keys, with its type.
func TestLinterKnowsConditionKeys(t *testing.T) {
	t.Parallel()
	types := map[string]lint.KeyType{
		"String": lint.TypeString, "ArrayOfString": lint.TypeString, "Bool": lint.TypeBool, "Numeric": lint.TypeNumeric, "ARN": lint.TypeARN,
		"Date": lint.TypeUnknown, // kms:ValidTo, which AWS compares with numbers too
	}
	known := make(map[string]lint.Key)
	for _, k := range lint.ConditionKeys() {
		if _, twice := known[k.Name]; twice {
			t.Errorf("%s is listed twice", k.Name)
		}
		known[k.Name] = k
	}
	for key, kind := range readKMSConditionKeys(t).Keys {
		name, _, _ := strings.Cut(key, "${")
		k, ok := known[name]
		if !ok || k.Type != types[kind] || k.Multivalued != (kind == "ArrayOfString") {
			t.Errorf("%s of type %s is known %v, as %+v", key, kind, ok, k)
		}
		delete(known, name)
	}
	for name := range known {
		if strings.HasPrefix(name, "kms:") {
			t.Errorf("AWS does not have %s", name)
		}
	}
	doc := policyDocument(`{"Effect":"Allow","Action":"kms:*","Resource":"*","Condition":{"StringEquals":{"kms:KeySpecs":"a","kms:keyspec":"b"}}}`)
	var unknown []string
	for _, f := range lint.Lint(policy.IdentityPolicy, []byte(doc), lint.Known{Keys: lint.ConditionKeys()}) {
		if f.Code == "unknown-key" {
			unknown = append(unknown, f.Message)
		}
	}
	if len(unknown) != 1 || !strings.Contains(unknown[0], "kms:KeySpecs") {
		t.Errorf("got %q, want a warning of kms:KeySpecs", unknown)
	}
}

// What a request leaves out has its default, except where authors are told to find out with
// Null whether it was left out. A key to be created is described by the request.
func TestConditionDefaults(t *testing.T) {
	t.Parallel()
	f := newConditionFixture(t)
	k := f.newKeyOfCase("", kmsapi.OriginKMS)
	signer := f.newKeyOfCase("sign", kmsapi.OriginKMS)
	imported := f.newKeyOfCase("", kmsapi.OriginImported)
	same := func(destination string) any {
		return &kmsapi.ReEncryptInput{CiphertextBlob: f.encrypt(k.id, "x"), DestinationKeyId: &destination, DryRun: new(true)}
	}
	importing := func() any {
		in := f.importRequest(imported.id, "RSA_2048", "RSAES_OAEP_SHA_256", []byte(strings.Repeat("m", 32)))
		in.ExpirationModel, in.ValidTo = nil, new(caseValidTo(f.testCluster))
		return in
	}
	replicate := func() any {
		return &kmsapi.ReplicateKeyInput{KeyId: &f.newKeyOfCase("", kmsapi.OriginKMS).id, ReplicaRegion: new(thirdRegion)}
	}
	put := func(statements ...string) func() any {
		return func() any { return &kmsapi.PutKeyPolicyInput{KeyId: &k.id, Policy: new(policyDocument(statements...))} }
	}
	create := func(edit func(in *kmsapi.CreateKeyInput)) func() any {
		return func() any {
			in := new(kmsapi.CreateKeyInput)
			edit(in)
			return in
		}
	}
	nothing := create(func(*kmsapi.CreateKeyInput) {})
	mac := create(func(in *kmsapi.CreateKeyInput) {
		in.CustomerMasterKeySpec, in.KeyUsage, in.Origin = new("HMAC_256"), new(kmsapi.UsageMac), new(kmsapi.OriginImported)
	})
	locking := strings.Replace(statement("Deny", "*", "kms:PutKeyPolicy"), `"Resource":"*"`, `"Resource":"*","Condition":{"StringEquals":{"kms:KeySpec":"SYMMETRIC_DEFAULT"}}`, 1)
	for _, tt := range []struct {
		name, op, action, condition string
		in                          func() any
		want                        *kmsapi.Error // nil for success
	}{
		{"message type", "Sign", "Sign", `{"StringEquals":{"kms:MessageType":"RAW"}}`, func() any { return f.signInput(signer.id) }, nil},
		{"rotation period", "EnableKeyRotation", "EnableKeyRotation", `{"NumericEquals":{"kms:RotationPeriodInDays":"365"}}`,
			func() any { return &kmsapi.EnableKeyRotationInput{KeyId: &k.id} }, nil},
		{"lock-out check", "PutKeyPolicy", "PutKeyPolicy", `{"Null":{"kms:BypassPolicyLockoutSafetyCheck":"true"}}`, put(rootStatement), nil},
		{"lock-out by a property of the key", "PutKeyPolicy", "PutKeyPolicy", `{}`, put(rootStatement, locking), kmsapi.ErrMalformedPolicy},
		{"lock-out by a property of a new key", "CreateKey", "CreateKey", `{}`,
			create(func(in *kmsapi.CreateKeyInput) { in.Policy = new(policyDocument(rootStatement, locking)) }), kmsapi.ErrMalformedPolicy},
		{"expiration model", "ImportKeyMaterial", "ImportKeyMaterial", `{"Null":{"kms:ExpirationModel":"true"},"NumericGreaterThan":{"kms:ValidTo":"1.5"}}`, importing, nil},
		{"same key", "ReEncrypt", "ReEncrypt*", `{"Bool":{"kms:ReEncryptOnSameKey":"true"}}`, func() any { return same(k.id) }, kmsapi.ErrDryRun},
		{"same key by alias", "ReEncrypt", "ReEncrypt*", `{"Bool":{"kms:ReEncryptOnSameKey":"true"}}`, func() any { return same(k.alias) }, kmsapi.ErrDryRun},
		{"another key", "ReEncrypt", "ReEncrypt*", `{"Bool":{"kms:ReEncryptOnSameKey":"true"}}`, func() any { return same(f.other) }, kmsapi.ErrAccessDenied},
		{"no other key", "ReEncrypt", "ReEncrypt*", `{"Bool":{"kms:ReEncryptOnSameKey":"true"}}`, func() any { return same("alias/none") }, kmsapi.ErrAccessDenied},
		{"new key", "CreateKey", "CreateKey", `{"StringEquals":{"kms:KeySpec":"SYMMETRIC_DEFAULT","kms:KeyUsage":"ENCRYPT_DECRYPT","kms:KeyOrigin":"AWS_KMS"},"Bool":{"kms:MultiRegion":"false"},
			"Null":{"kms:MultiRegionKeyType":"true","kms:BypassPolicyLockoutSafetyCheck":"true","aws:ResourceTag/Team":"true"}}`, nothing, nil},
		{"new HMAC key", "CreateKey", "CreateKey", `{"StringEquals":{"kms:KeySpec":"HMAC_256","kms:KeyUsage":"GENERATE_VERIFY_MAC","kms:KeyOrigin":"EXTERNAL"}}`, mac, nil},
		{"tags of a new key", "CreateKey", "TagResource", `{"StringEquals":{"aws:ResourceTag/Team":"red","aws:RequestTag/Team":"red","kms:KeySpec":"SYMMETRIC_DEFAULT"}}`,
			create(func(in *kmsapi.CreateKeyInput) { in.Tags = caseTags() }), nil},
		{"replica", "ReplicateKey", "CreateKey", `{"StringEquals":{"kms:MultiRegionKeyType":"REPLICA","kms:KeySpec":"SYMMETRIC_DEFAULT","aws:RequestedRegion":"` + thirdRegion + `"}}`, replicate, nil},
		{"replica is no primary", "ReplicateKey", "CreateKey", `{"StringEquals":{"kms:MultiRegionKeyType":"PRIMARY"}}`, replicate, kmsapi.ErrAccessDenied},
		{"Region of the primary", "ReplicateKey", "ReplicateKey", `{"StringEquals":{"kms:MultiRegionKeyType":"PRIMARY","aws:RequestedRegion":"` + testRegion + `"}}`, replicate, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f.t = t
			in := tt.in()
			f.require(tt.action, "*", tt.condition)
			_, err := f.engine.Do(t.Context(), f.caller(f.alice), OperationNamed(KMS, tt.op), in)
			if tt.want != nil {
				wantError(t, err, tt.want, "…")
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

// A document that cannot be verified has no measurements. It is verified only if a decision
// depends on it, or once the caller is authorised.
func TestMeasurementsOfInvalidDocument(t *testing.T) {
	t.Parallel()
	f := newConditionFixture(t)
	k := f.newKeyOfCase("", kmsapi.OriginKMS)
	document := f.enclave.Document(f.Clock.Now())
	document[len(document)-1] ^= 1
	in := &kmsapi.GenerateDataKeyInput{KeyId: &k.id, KeySpec: new("AES_256"), Recipient: recipientWith(document)}
	pcr := hex.EncodeToString(f.enclave.PCRs[0])
	for condition, want := range map[string]*kmsapi.Error{
		`{"StringEqualsIgnoreCase":{"kms:RecipientAttestation:PCR0":"` + pcr + `"}}`:        kmsapi.ErrAccessDenied,
		`{"StringEqualsIgnoreCase":{"kms:RecipientAttestation:ImageSha384":"` + pcr + `"}}`: kmsapi.ErrAccessDenied,
		`{"Null":{"kms:RecipientAttestation:PCR0":"true"}}`:                                 kmsapi.ErrValidation,
		`{}`: kmsapi.ErrValidation,
	} {
		f.require("GenerateDataKey", "*", condition)
		_, err := f.engine.Do(t.Context(), f.caller(f.alice), OperationNamed(KMS, "GenerateDataKey"), in)
		wantError(t, err, want, "…")
	}
	in.Recipient = f.recipientInfo()
	for condition, want := range map[string]*kmsapi.Error{
		`{"StringEqualsIgnoreCase":{"kms:RecipientAttestation:PCR0":"` + strings.ToUpper(pcr) + `"}}`: nil,
		`{"Null":{"kms:RecipientAttestation:PCR00":"false"}}`:                                         kmsapi.ErrAccessDenied,
		`{"Null":{"kms:RecipientAttestation:PCR+1":"false"}}`:                                         kmsapi.ErrAccessDenied,
		`{"Null":{"kms:RecipientAttestation:PCR32":"false"}}`:                                         kmsapi.ErrAccessDenied,
		`{"Null":{"kms:RecipientAttestation:NitroTPMPCR0":"false"}}`:                                  kmsapi.ErrAccessDenied,
	} {
		f.require("GenerateDataKey", "*", condition)
		_, err := f.engine.Do(t.Context(), f.caller(f.alice), OperationNamed(KMS, "GenerateDataKey"), in)
		if want != nil {
			wantError(t, err, want, "…")
		} else if err != nil {
			t.Error(err)
		}
	}
}

// conditionFixture is a cluster with a user whose policy has a condition.
type conditionFixture struct {
	*testCluster
	alice iam.Identity
	other string
	proxy *xksproxy.Proxy
}

func newConditionFixture(t *testing.T) *conditionFixture {
	c := newTestCluster(t, withRegions(threeRegions()...), withEnclave())
	c.allowManyRefusals()
	for i := range 32 {
		c.enclave.PCRs[i] = []byte(strings.Repeat(string(rune('a'+i%26)), 48))
		c.enclave.PCRs[i][0] = byte(0xa0 + i)
	}
	f := &conditionFixture{testCluster: c, proxy: c.newProxy()}
	f.alice = c.newIAMUser("alice", func(*fsmpb.User) {})
	f.other = f.newKeyOfCase("", kmsapi.OriginKMS).id
	return f
}

// newKeyOfCase creates a multi-Region primary key and a replica, both with tags and aliases.
func (f *conditionFixture) newKeyOfCase(kind, origin string) *conditionKey {
	f.t.Helper()
	k := &conditionKey{stateKey: newStateKey(f.testCluster, kind, origin, f.other, true, fsmpb.KeyState_KEY_STATE_ENABLED), proxy: f.proxy}
	for _, region := range []string{testRegion, secondRegion} {
		k.alias = k.stateKey.alias()
		mustIn[request.None](f.testCluster, region, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: &k.alias, TargetKeyId: &k.id})
		mustIn[request.None](f.testCluster, region, "TagResource", &kmsapi.TagResourceInput{KeyId: &k.id, Tags: caseTags()})
	}
	k.alias = k.aliasOf(k.id)
	return k
}

// require allows alice an action under a condition, and everything else.
func (f *conditionFixture) require(action, resource, condition string) {
	f.putUser("alice", func(u *fsmpb.User) {
		u.Inline = inline(
			fmt.Sprintf(`{"Effect":"Allow","Action":"kms:%s","Resource":%q,"Condition":%s}`, action, resource, condition),
			`{"Effect":"Allow","NotAction":"kms:`+action+`","Resource":"*"}`,
			allow("kms:"+action, "arn:aws:kms:*:*:alias/*"))
	})
}

// newCase makes a key, and a request for an action.
func (f *conditionFixture) newCase(t *testing.T, r conditionRequest, action, key string) (k *conditionKey, op string, in any) {
	f.t = t
	for s := range f.State().AllKeyStores(testAccountNumber) {
		f.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteKeyStore{DeleteKeyStore: &fsmpb.KeyStoreID{Account: s.Account, Id: s.Id}}})
	}
	origin := kmsapi.OriginKMS
	if r.imported {
		origin = kmsapi.OriginImported
	}
	k = f.newKeyOfCase(r.kind, origin)
	k.about = key
	return k, cmp.Or(r.op, action), f.input(k, cmp.Or(r.op, action), r)
}

func (f *conditionFixture) check(t *testing.T, data *kmsConditionKeys, r conditionRequest, action, key string) {
	k, op, in := f.newCase(t, r, action, key)
	values, operator := f.valuesOf(k, r, action, key), conditionOperators[data.Keys[key]]
	name := strings.NewReplacer("${EncryptionContextKey}", "dept", "${TagKey}", "team").Replace(key)
	if key == "kms:ResourceAliases" {
		operator = "ForAnyValue:StringLike"
	}
	resource := data.resourceOf(action)
	try := func(operator string, values ...string) error {
		list, _ := json.Marshal(values)
		f.require(action, resource, fmt.Sprintf(`{%q:{%q:%s}}`, operator, name, list))
		_, err := f.engine.Do(t.Context(), f.caller(f.alice), OperationNamed(KMS, op), in)
		return err
	}
	denied := func(operator string, values ...string) {
		t.Helper()
		wantError(t, try(operator, values...), kmsapi.ErrAccessDenied, "…")
	}
	if values == nil {
		denied("Null", "false")
		if err := try("Null", "true"); err != nil {
			t.Errorf("where the key must be absent: %v", err)
		}
		return
	}
	denied("Null", "true")
	var wrong []string
	for _, v := range values {
		wrong = append(wrong, wrongValue(data.Keys[key], v))
	}
	denied(operator, wrong...)
	if err := try(operator, values...); err != nil {
		t.Errorf("with the value %v: %v", values, err)
	}
}

func (f *conditionFixture) input(k *conditionKey, op string, r conditionRequest) any {
	if r.in != nil {
		return r.in(k)
	}
	for _, row := range keyStateRows() {
		if row.op == op {
			return row.in(k.stateKey)
		}
	}
	switch op {
	case "ListKeys":
		return &kmsapi.ListKeysInput{}
	case "ListRetirableGrants":
		return &kmsapi.ListRetirableGrantsInput{RetiringPrincipal: new(aliceARN)}
	}
	f.t.Fatalf("there is no request of %s", op)
	return nil
}

// valuesOf returns the values of the condition key in a request, any of which has to match;
// nil if it is absent.
func (f *conditionFixture) valuesOf(k *conditionKey, r conditionRequest, action, key string) []string {
	if v, ok := r.values[key]; ok {
		if key == "kms:TrailingDaysWithoutKeyUsage" {
			f.Advance(3*24*time.Hour + time.Hour)
		}
		return []string{v}
	}
	name := strings.TrimPrefix(key, "kms:")
	if m, ok := strings.CutPrefix(name, "RecipientAttestation:"); ok {
		if m == "ImageSha384" {
			m = "PCR0"
		}
		n, err := strconv.Atoi(strings.TrimPrefix(strings.TrimPrefix(m, "NitroTPM"), "PCR"))
		if err != nil {
			f.t.Fatal(err)
		}
		return []string{hex.EncodeToString(f.enclave.PCRs[n])}
	}
	key0 := f.keyIn(testRegion, k.id)
	if action == "CreateKey" {
		key0 = &fsmpb.Key{Spec: kmsapi.SpecSymmetric, Usage: kmsapi.UsageEncrypt, Origin: kmsapi.OriginKMS}
	}
	switch name {
	case "CallerAccount":
		return []string{testAccount}
	case "KeySpec", "CustomerMasterKeySpec":
		return []string{key0.Spec}
	case "KeyUsage", "CustomerMasterKeyUsage":
		return []string{key0.Usage}
	case "KeyOrigin":
		return []string{key0.Origin}
	case "MultiRegion":
		return []string{"true"}
	case "MultiRegionKeyType":
		if action == "UpdatePrimaryRegion" { // which is on both
			return []string{"PRIMARY", "REPLICA"}
		}
		return []string{"PRIMARY"}
	case "RequestAlias":
		if action == "ReEncryptTo" {
			return []string{f.newestAlias(f.other)}
		}
		return []string{k.alias}
	case "ResourceAliases":
		return []string{"alias/*"}
	case "ValidTo":
		return []string{strconv.FormatInt(caseValidTo(f.testCluster).Unix(), 10)}
	case "aws:ResourceTag/${TagKey}":
		return []string{"red"}
	case "ViaService":
		return nil
	}
	f.t.Fatalf("nothing says which value %s has for %s", key, action)
	return nil
}

// newestAlias returns the alias that a key was given last.
func (f *conditionFixture) newestAlias(id string) string {
	var newest *fsmpb.Alias
	for a := range f.State().AliasesOf(f.keyID(id)) {
		if newest == nil || a.Version > newest.Version {
			newest = a
		}
	}
	return newest.GetName()
}
