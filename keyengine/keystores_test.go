package keyengine

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/integration/xksproxy"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/keystore"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/xks"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

func inStore(store, xksKey string) *kmsapi.CreateKeyInput {
	return &kmsapi.CreateKeyInput{Origin: new(kmsapi.OriginXKS), CustomKeyStoreId: &store, XksKeyId: &xksKey}
}

// newStoreKey makes an external key and creates a KMS key for it.
func (c *testCluster) newStoreKey(p *xksproxy.Proxy, store, xksKey string) (id, arn string) {
	c.t.Helper()
	p.AddKey(xksKey)
	m := must[kmsapi.CreateKeyOutput](c, "CreateKey", inStore(store, xksKey)).KeyMetadata
	return *m.KeyId, *m.Arn
}

func TestStoreKey(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	p := c.newProxy()
	store := c.newStore(p)
	p.AddKey("key-1")
	m := must[kmsapi.CreateKeyOutput](c, "CreateKey", inStore(store, "key-1")).KeyMetadata
	if *m.Origin != kmsapi.OriginXKS || *m.CustomKeyStoreId != store || *m.XksKeyConfiguration.Id != "key-1" || *m.KeyState != "Enabled" || !*m.Enabled ||
		m.CurrentKeyMaterialId != nil || *m.KeySpec != kmsapi.SpecSymmetric || *m.MultiRegion {
		t.Errorf("CreateKey returned %+v", m)
	}
	if q := p.Requests(xksproxy.Metadata); len(q) != 1 || q[0].Key != "key-1" || q[0].Metadata.Operation != "CreateKey" || q[0].Metadata.Principal == "" || q[0].Metadata.Key != "" {
		t.Errorf("the proxy got %+v, want one request of CreateKey for key-1", q)
	}
	id, ec := m.KeyId, map[string]string{"of": "this"}
	plaintext := bytes.Repeat([]byte("PLAINTEXT-CANARY"), 256)
	enc := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: id, Plaintext: plaintext, EncryptionContext: ec})
	q := p.Requests(xksproxy.Encrypt)[0]
	if q.Metadata.Operation != "Encrypt" || q.Metadata.Key != *m.Arn || q.Metadata.Principal != c.root.Principal().String() || len(q.Metadata.RequestID) != 36 {
		t.Errorf("the proxy got metadata %+v", q.Metadata)
	}
	if bytes.Contains(q.Plaintext, []byte("CANARY")) || bytes.Contains(enc.CiphertextBlob, []byte("CANARY")) {
		t.Error("the proxy, or the ciphertext, has the plaintext")
	}
	if !bytes.Equal(q.AAD, enc.CiphertextBlob[:len(q.AAD)]) || len(q.AAD) == 0 {
		t.Error("the additional authenticated data is not the ciphertext's header")
	}
	p.Rotate() // old ciphertexts stay good
	dec := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: enc.CiphertextBlob, EncryptionContext: ec})
	if !bytes.Equal(dec.Plaintext, plaintext) || dec.KeyMaterialId != nil {
		t.Errorf("Decrypt returned %d bytes, material %v", len(dec.Plaintext), dec.KeyMaterialId)
	}
	dk := must[kmsapi.GenerateDataKeyOutput](c, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: id, KeySpec: new("AES_256")})
	if got := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: dk.CiphertextBlob, KeyId: id}); !bytes.Equal(got.Plaintext, dk.Plaintext) || dk.KeyMaterialId != nil {
		t.Errorf("Decrypt of a data key's ciphertext returned another one")
	}
	must[kmsapi.GenerateDataKeyWithoutPlaintextOutput](c, "GenerateDataKeyWithoutPlaintext", &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: id, KeySpec: new("AES_256")})
	// From the key store to a key without one, back, and to the same key.
	plain, _ := c.newKey()
	out := must[kmsapi.ReEncryptOutput](c, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: enc.CiphertextBlob, SourceEncryptionContext: ec, DestinationKeyId: &plain})
	back := must[kmsapi.ReEncryptOutput](c, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: out.CiphertextBlob, DestinationKeyId: id})
	again := must[kmsapi.ReEncryptOutput](c, "ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: back.CiphertextBlob, DestinationKeyId: id})
	if got := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: again.CiphertextBlob}); !bytes.Equal(got.Plaintext, plaintext) {
		t.Error("Decrypt after three ReEncrypts returned another plaintext")
	}
	if out.SourceKeyMaterialId != nil || back.DestinationKeyMaterialId != nil {
		t.Error("ReEncrypt returned the material of a key in a key store")
	}
	calls := len(p.Requests(xksproxy.Encrypt))
	_, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: id, Plaintext: plaintext, DryRun: new(true)})
	if wantError(t, err, kmsapi.ErrDryRun, request.ErrDryRun.Message); len(p.Requests(xksproxy.Encrypt)) != calls {
		t.Error("a dry run of Encrypt sent a request to the proxy")
	}
	must[request.None](c, "DisableKey", &kmsapi.DisableKeyInput{KeyId: id})
	_, err = call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: id, Plaintext: plaintext})
	if wantError(t, err, kmsapi.ErrDisabled, "…"); len(p.Requests(xksproxy.Encrypt)) != calls {
		t.Error("Encrypt with a disabled key sent a request to the proxy")
	}
	must[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: id})
	_, err = callAs[kmsapi.EncryptOutput](c, c.engine, c.newUser(aliceARN), "Encrypt", &kmsapi.EncryptInput{KeyId: id, Plaintext: plaintext})
	if wantError(t, err, kmsapi.ErrAccessDenied, "…"); len(p.Requests(xksproxy.Encrypt)) != calls {
		t.Error("Encrypt of a caller without permission sent a request to the proxy")
	}
}

func TestCreateStoreKeyErrors(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	p := c.newProxy()
	store := c.newStore(p)
	c.newStoreKey(p, store, "used")
	p.AddKey("new")
	p.PutKey("disabled", &xksproxy.Key{Spec: "AES_256", Usages: []string{"ENCRYPT", "DECRYPT"}, Disabled: true})
	p.PutKey("short", &xksproxy.Key{Spec: "AES_128", Usages: []string{"ENCRYPT", "DECRYPT"}})
	p.PutKey("encrypts", &xksproxy.Key{Spec: "AES_256", Usages: []string{"ENCRYPT"}})
	for _, tt := range []struct {
		name    string
		spoil   func(*kmsapi.CreateKeyInput)
		kind    *kmsapi.Error
		message string
	}{
		{"no key store", func(in *kmsapi.CreateKeyInput) { in.CustomKeyStoreId = nil }, kmsapi.ErrValidation, "Origin EXTERNAL_KEY_STORE needs a CustomKeyStoreId."},
		{"no external key", func(in *kmsapi.CreateKeyInput) { in.XksKeyId = nil }, kmsapi.ErrValidation, "…"},
		{"another origin", func(in *kmsapi.CreateKeyInput) { in.Origin = new(kmsapi.OriginHSM) }, kmsapi.ErrValidation, "…"},
		{"origin of another type", func(in *kmsapi.CreateKeyInput) { in.Origin, in.XksKeyId = new(kmsapi.OriginHSM), nil }, kmsapi.ErrUnsupported, "…"},
		{"multi-Region", func(in *kmsapi.CreateKeyInput) { in.MultiRegion = new(true) }, kmsapi.ErrUnsupported, "Multi-Region keys cannot be in a custom key store."},
		{"asymmetric", func(in *kmsapi.CreateKeyInput) { in.KeySpec, in.KeyUsage = new("RSA_2048"), new(kmsapi.UsageSign) }, kmsapi.ErrUnsupported, "…"},
		{"HMAC", func(in *kmsapi.CreateKeyInput) { in.KeySpec, in.KeyUsage = new("HMAC_256"), new(kmsapi.UsageMac) }, kmsapi.ErrUnsupported, "…"},
		{"unknown store", func(in *kmsapi.CreateKeyInput) { in.CustomKeyStoreId = new("cks-none") }, kmsapi.ErrCustomStoreNotFound, ""},
		{"key in use", func(in *kmsapi.CreateKeyInput) { in.XksKeyId = new("used") }, kmsapi.ErrXksKeyAlreadyInUse, "…"},
		{"unknown key", func(in *kmsapi.CreateKeyInput) { in.XksKeyId = new("none") }, kmsapi.ErrXksKeyNotFound, "…"},
		{"disabled key", func(in *kmsapi.CreateKeyInput) { in.XksKeyId = new("disabled") }, kmsapi.ErrXksKeyInvalidConfiguration, "…"},
		{"short key", func(in *kmsapi.CreateKeyInput) { in.XksKeyId = new("short") }, kmsapi.ErrXksKeyInvalidConfiguration, "…"},
		{"key that only encrypts", func(in *kmsapi.CreateKeyInput) { in.XksKeyId = new("encrypts") }, kmsapi.ErrXksKeyInvalidConfiguration, "…"},
		{"policy that locks out", func(in *kmsapi.CreateKeyInput) {
			in.Policy = new(policyDocument(statement("Allow", testAccount, "kms:Encrypt")))
		}, kmsapi.ErrMalformedPolicy, "…"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := inStore(store, "new")
			tt.spoil(in)
			_, err := call[kmsapi.CreateKeyOutput](c, "CreateKey", in)
			wantError(t, err, tt.kind, tt.message)
		})
	}
	must[request.None](c, "DisconnectCustomKeyStore", &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &store})
	asked := len(p.Requests(xksproxy.Metadata))
	_, err := call[kmsapi.CreateKeyOutput](c, "CreateKey", inStore(store, "new"))
	if wantError(t, err, kmsapi.ErrCustomStoreInvalidState, "…"); len(p.Requests(xksproxy.Metadata)) != asked {
		t.Error("CreateKey sent a request to the proxy of a disconnected key store")
	}
	// A key that is pending deletion still uses the key store and its external key.
	_, err = call[request.None](c, "DeleteCustomKeyStore", &kmsapi.DeleteCustomKeyStoreInput{CustomKeyStoreId: &store})
	wantError(t, err, kmsapi.ErrCustomStoreHasKeys, "…")
}

// Operations that keys in key stores do not support.
func TestStoreKeyRefusals(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	p := c.newProxy()
	store := c.newStore(p)
	id, arn := c.newStoreKey(p, store, "k")
	wrong := arn + " origin is EXTERNAL_KEY_STORE which is not valid for this operation."
	for name, in := range map[string]any{
		"GenerateDataKeyPair":                 &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")},
		"GenerateDataKeyPairWithoutPlaintext": &kmsapi.GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")},
		"EnableKeyRotation":                   &kmsapi.EnableKeyRotationInput{KeyId: &id},
		"DisableKeyRotation":                  &kmsapi.DisableKeyRotationInput{KeyId: &id},
		"RotateKeyOnDemand":                   &kmsapi.RotateKeyOnDemandInput{KeyId: &id},
		"GetParametersForImport":              &kmsapi.GetParametersForImportInput{KeyId: &id, WrappingAlgorithm: new("RSAES_OAEP_SHA_256"), WrappingKeySpec: new("RSA_2048")},
		"DeleteImportedKeyMaterial":           &kmsapi.DeleteImportedKeyMaterialInput{KeyId: &id},
	} {
		_, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, name), in)
		wantError(t, err, kmsapi.ErrUnsupported, wrong)
	}
	if *c.rotationStatus(id).KeyRotationEnabled {
		t.Error("rotation is enabled for a key in a key store")
	}
	_, err := call[kmsapi.GenerateRandomOutput](c, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(1)), CustomKeyStoreId: &store})
	wantError(t, err, kmsapi.ErrUnsupported, "External key stores generate no random bytes.")
	_, err = call[kmsapi.GenerateRandomOutput](c, "GenerateRandom", &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(1)), CustomKeyStoreId: new("cks-none")})
	wantError(t, err, kmsapi.ErrCustomStoreNotFound, "")
}

// The states in AWS's table of keys whose key store is not connected. A key that is pending
// deletion stays so.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	p := c.newProxy()
	store := c.newStore(p)
	id, arn := c.newStoreKey(p, store, "k")
	plain, _ := c.newKey()
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	byPlain := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &plain, Plaintext: []byte("x")}).CiphertextBlob
	must[request.None](c, "CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/old"), TargetKeyId: &id})
	must[request.None](c, "DisconnectCustomKeyStore", &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &store})
	tests := []struct {
		op   string
		in   any
		want string // "ok", U is unavailable, N is not pending deletion
	}{
		{"Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}, "U"},
		{"Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob}, "U"},
		{"ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &plain}, "U"},
		{"ReEncrypt", &kmsapi.ReEncryptInput{CiphertextBlob: byPlain, DestinationKeyId: &id}, "U"},
		{"GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_128")}, "U"},
		{"GenerateDataKeyWithoutPlaintext", &kmsapi.GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: new("AES_128")}, "U"},
		{"GenerateDataKeyPair", &kmsapi.GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: new("ECC_NIST_P256")}, "U"},
		{"CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id}, "N"},
		{"DisableKey", &kmsapi.DisableKeyInput{KeyId: &id}, "ok"},
		{"Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}, "U"}, // not Disabled
		{"EnableKey", &kmsapi.EnableKeyInput{KeyId: &id}, "ok"},
		{"DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id}, "ok"},
		{"GetKeyPolicy", &kmsapi.GetKeyPolicyInput{KeyId: &id}, "ok"},
		{"TagResource", &kmsapi.TagResourceInput{KeyId: &id, Tags: manyTags(1)}, "ok"},
		{"UpdateKeyDescription", &kmsapi.UpdateKeyDescriptionInput{KeyId: &id, Description: new("x")}, "ok"},
		{"CreateAlias", &kmsapi.CreateAliasInput{AliasName: new("alias/new"), TargetKeyId: &id}, "ok"},
		{"DeleteAlias", &kmsapi.DeleteAliasInput{AliasName: new("alias/old")}, "ok"},
		{"ScheduleKeyDeletion", &kmsapi.ScheduleKeyDeletionInput{KeyId: &id}, "ok"},
	}
	describe := func(want string) {
		t.Helper()
		d := must[kmsapi.DescribeKeyOutput](c, "DescribeKey", &kmsapi.DescribeKeyInput{KeyId: &id}).KeyMetadata
		if *d.KeyState != want || *d.Enabled != (want == "Enabled") {
			t.Errorf("the key is %s, enabled %v; want %s", *d.KeyState, *d.Enabled, want)
		}
	}
	describe("Unavailable")
	for _, tt := range tests {
		t.Run(tt.op, func(t *testing.T) {
			_, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, tt.op), tt.in)
			switch tt.want {
			case "ok":
				if err != nil {
					t.Error(err)
				}
			case "U":
				wantError(t, err, kmsapi.ErrInvalidState, arn+" is unavailable.")
			case "N":
				wantError(t, err, kmsapi.ErrInvalidState, arn+" is not pending deletion.")
			}
		})
	}
	describe("PendingDeletion")
	_, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, kmsapi.ErrInvalidState, arn+" is pending deletion.")
	must[kmsapi.CancelKeyDeletionOutput](c, "CancelKeyDeletion", &kmsapi.CancelKeyDeletionInput{KeyId: &id})
	describe("Unavailable")
	must[request.None](c, "ConnectCustomKeyStore", &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: &store})
	describe("Disabled") // DisableKey and EnableKey took effect, and so did the cancelled deletion
	must[request.None](c, "EnableKey", &kmsapi.EnableKeyInput{KeyId: &id})
	describe("Enabled")
	must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
}

// How each kind of operation answers each failure of a proxy.
func TestProxyErrors(t *testing.T) {
	t.Parallel()
	all := xks.Failures()
	if len(all) != len(keystore.XksFailures) || len(all) != len(xksproxy.Names)+6 {
		t.Fatalf("there are %d failures, %d rows for them, and %d named errors of proxies", len(all), len(keystore.XksFailures), len(xksproxy.Names))
	}
	for _, f := range all {
		row, ok := keystore.XksFailures[f]
		if !ok || row.Store == nil || row.Key == nil || row.Connection == "" || row.Message == "" {
			t.Errorf("the row of %s is incomplete", f)
		}
	}
	c := newTestCluster(t)
	p := c.newProxy()
	store := c.newStore(p)
	id, _ := c.newStoreKey(p, store, "k")
	p.AddKey("new")
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	tenant := storeAt(p, "second")
	tenant.XksProxyUriPath = new(xksproxy.TenantPath)
	second := *must[kmsapi.CreateCustomKeyStoreOutput](c, "CreateCustomKeyStore", tenant).CustomKeyStoreId
	faults := map[xks.Failure]xksproxy.Fault{xks.ErrMalformed: xksproxy.Says("<html>"), xks.ErrUnreachable: xksproxy.Reset()}
	for name := range xksproxy.Names {
		faults[xks.Failure(name)] = xksproxy.Named(name)
	}
	for f, fault := range faults {
		t.Run(string(f), func(t *testing.T) {
			row := keystore.XksFailures[f]
			for _, op := range []string{xksproxy.Health, xksproxy.Metadata, xksproxy.Encrypt, xksproxy.Decrypt} {
				p.Fail(op, fault)
				defer p.Fail(op, nil)
			}
			_, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
			wantError(t, err, kmsapi.ErrInvalidState, row.Message)
			_, err = call[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
			wantError(t, err, kmsapi.ErrInvalidState, row.Message)
			if rec := c.lastRecord(); rec.ErrorCode != "KMSInvalidStateException" {
				t.Errorf("the record has error %q, want KMSInvalidStateException", rec.ErrorCode)
			}
			_, err = call[kmsapi.GenerateDataKeyOutput](c, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256")})
			wantError(t, err, kmsapi.ErrInvalidState, row.Message)
			_, err = call[kmsapi.CreateKeyOutput](c, "CreateKey", inStore(store, "new"))
			wantError(t, err, row.Key, row.Message)
			_, err = call[request.None](c, "UpdateCustomKeyStore", &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: &store, XksProxyAuthenticationCredential: testCredential()})
			wantError(t, err, row.Store, row.Message)
			must[request.None](c, "ConnectCustomKeyStore", &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: &second})
			if e := c.describeStore(second); *e.ConnectionState != "FAILED" || *e.ConnectionErrorCode != row.Connection {
				t.Errorf("after ConnectCustomKeyStore the key store is %s, want FAILED with %s", *e.ConnectionState, row.Connection)
			}
			must[request.None](c, "DisconnectCustomKeyStore", &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &second})
		})
	}
	p.Fail(xksproxy.Encrypt, xksproxy.Wrong(map[string]any{"ciphertextDataIntegrityValue": make([]byte, 32)}))
	_, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, kmsapi.ErrInvalidState, keystore.MalformedMessage)
	// The proxy returns another plaintext.
	p.Fail(xksproxy.Decrypt, xksproxy.Wrong(map[string]any{"plaintext": make([]byte, 1+keymat.MessageOverhead)}))
	_, err = call[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob})
	wantError(t, err, kmsapi.ErrInvalidState, keystore.MalformedMessage)
	c.useKeyStores(keystore.Config{AllowPrivateEndpoints: true, Roots: p.Roots(), Timeout: 50 * time.Millisecond})
	p.Fail(xksproxy.Encrypt, xksproxy.Delay(time.Minute))
	_, err = call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, kmsapi.ErrInvalidState, keystore.XksFailures[xks.ErrTimeout].Message)
}

// Every altered ciphertext is refused with the same error, without a request to the proxy.
func TestStoreCiphertexts(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	c.engine.limits = newLimits(Config{RefusalRate: 1e6, RefusalBurst: 1e6, Clock: c.Clock})
	p := c.newProxy()
	store := c.newStore(p)
	id, _ := c.newStoreKey(p, store, "k")
	other, _ := c.newStoreKey(p, store, "other")
	blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionContext: map[string]string{"a": "b"}}).CiphertextBlob
	byOther := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &other, Plaintext: []byte("x")}).CiphertextBlob
	inner := p.Requests(xksproxy.Encrypt)[0].Plaintext
	refused := func(b []byte, ec map[string]string, what string, n int) {
		t.Helper()
		if _, err := call[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: b, EncryptionContext: ec, KeyId: &id}); err == nil ||
			err.Error() != "InvalidCiphertextException" && !strings.HasPrefix(err.Error(), "IncorrectKeyException") {
			t.Fatalf("%s %d: got error %v, want InvalidCiphertextException or IncorrectKeyException", what, n, err)
		}
	}
	ec := map[string]string{"a": "b"}
	for i := range 8 * len(blob) {
		b := bytes.Clone(blob)
		b[i/8] ^= 1 << (i % 8)
		refused(b, ec, "bit", i)
	}
	for i := 1; i < len(blob); i++ {
		refused(blob[:i], ec, "cut to", i)
	}
	refused(blob, nil, "without context", 0)
	refused(byOther, nil, "of another key", 0)
	// What the proxy encrypted cannot be decrypted without it.
	refused(inner, ec, "the message that the store encrypted", 0)
	if n := len(p.Requests(xksproxy.Decrypt)); n != 0 {
		t.Errorf("the proxy got %d requests, want 0", n)
	}
	must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: blob, EncryptionContext: ec, KeyId: &id})
}

// Once DisconnectCustomKeyStore has returned, no node uses the key store's keys, also for a
// request that began before and has sent its request to the proxy.
func TestDisconnectEverywhere(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, withNodes(2))
	p := c.newProxy()
	store := c.newStore(p)
	id, arn := c.newStoreKey(p, store, "k")
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	p.Fail(xksproxy.Encrypt, xksproxy.Hold(arrived, release))
	var wg sync.WaitGroup
	var err error
	wg.Go(func() {
		_, err = callAs[kmsapi.EncryptOutput](c, c.engines["n2"], c.root, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	})
	<-arrived
	must[request.None](c, "DisconnectCustomKeyStore", &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &store})
	close(release)
	wg.Wait()
	wantError(t, err, kmsapi.ErrInvalidState, arn+" is unavailable.")
	c.Replica("n2").FallBehind()
	_, err = callAs[kmsapi.EncryptOutput](c, c.engines["n2"], c.root, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, kmsapi.ErrInvalidState, arn+" is unavailable.")
}

// However often a request is evaluated, each node sends one request to the proxy for it, and
// none while the leader holds the log.
func TestProxyOnce(t *testing.T) {
	t.Parallel()
	for _, leads := range []string{"n1", "n2"} {
		t.Run("leader "+leads, func(t *testing.T) {
			c := newTestCluster(t, withNodes(2))
			p := c.newProxy()
			store := c.newStore(p)
			id, _ := c.newStoreKey(p, store, "k")
			blob := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
			c.Leader = c.Replica(leads)
			most := 1
			if leads == "n2" {
				most = 2
			}
			// The key changes before each proposal of n1.
			n := 0
			replica := c.Replica("n1")
			replica.BeforeCommit = func(*fsmpb.Record) {
				n++
				c.modifyKey(id, func(k *fsmpb.Key) { k.Description = fmt.Sprint(n) })
			}
			for name, tt := range map[string]struct {
				in any
				op string
			}{
				"Encrypt":         {&kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}, xksproxy.Encrypt},
				"Decrypt":         {&kmsapi.DecryptInput{CiphertextBlob: blob}, xksproxy.Decrypt},
				"GenerateDataKey": {&kmsapi.GenerateDataKeyInput{KeyId: &id, KeySpec: new("AES_256")}, xksproxy.Encrypt},
			} {
				n = 0
				before := len(p.Requests(tt.op))
				out, err := c.engine.Do(t.Context(), c.caller(c.root), OperationNamed(KMS, name), tt.in)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if n != record.MaxTries {
					t.Errorf("%s: got %d proposals, want %d", name, n, record.MaxTries)
				}
				if got := len(p.Requests(tt.op)) - before; got != most {
					t.Errorf("%s: the proxy got %d requests, want %d", name, got, most)
				}
				if dk, ok := out.(*kmsapi.GenerateDataKeyOutput); ok {
					replica.BeforeCommit = nil
					if got := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: dk.CiphertextBlob}); !bytes.Equal(got.Plaintext, dk.Plaintext) {
						t.Error("the ciphertext is not that of the data key")
					}
					break
				}
			}
		})
	}
}

// While the leader executes a request and waits for a proxy, other requests are answered.
func TestLogIsNotHeld(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	p := c.newProxy()
	store := c.newStore(p)
	id, _ := c.newStoreKey(p, store, "k")
	plain, _ := c.newKey()
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	p.Fail(xksproxy.Encrypt, xksproxy.Hold(arrived, release))
	var wg sync.WaitGroup
	var err error
	wg.Go(func() {
		_, err = c.engine.exclusive(context.Background(), c.caller(c.root), OperationNamed(KMS, "Encrypt"), &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	})
	<-arrived
	must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &plain, Plaintext: []byte("x")})
	close(release)
	wg.Wait()
	if err != nil {
		t.Errorf("Encrypt on the leader: %v", err)
	}
	if n := len(p.Requests(xksproxy.Encrypt)); n != 1 {
		t.Errorf("the proxy got %d requests, want 1", n)
	}
}
