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
	"github.com/conclavekms/conclave/keyengine/internal/xks"
)

func inStore(store, xksKey string) *CreateKeyInput {
	return &CreateKeyInput{Origin: ptr(originXKS), CustomKeyStoreId: &store, XksKeyId: &xksKey}
}

// newStoreKey makes an external key, and a KMS key for it.
func (r *room) newStoreKey(p *xksproxy.Proxy, store, xksKey string) (id, arn string) {
	r.t.Helper()
	p.AddKey(xksKey)
	m := must[CreateKeyOutput](r, "CreateKey", inStore(store, xksKey)).KeyMetadata
	return *m.KeyId, *m.Arn
}

func TestStoreKey(t *testing.T) {
	r := newRoom(t)
	p := r.newProxy()
	store := r.newStore(p)
	p.AddKey("key-1")
	m := must[CreateKeyOutput](r, "CreateKey", inStore(store, "key-1")).KeyMetadata
	if *m.Origin != originXKS || *m.CustomKeyStoreId != store || *m.XksKeyConfiguration.Id != "key-1" || *m.KeyState != "Enabled" || !*m.Enabled ||
		m.CurrentKeyMaterialId != nil || *m.KeySpec != specSymmetric || *m.MultiRegion {
		t.Errorf("made %+v", m)
	}
	if q := p.Requests(xksproxy.Metadata); len(q) != 1 || q[0].Key != "key-1" || q[0].Metadata.Operation != "CreateKey" || q[0].Metadata.Principal == "" || q[0].Metadata.Key != "" {
		t.Errorf("the proxy was asked %+v", q)
	}
	id, ec := m.KeyId, map[string]string{"of": "this"}
	plaintext := bytes.Repeat([]byte("PLAINTEXT-CANARY"), 256)
	enc := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: id, Plaintext: plaintext, EncryptionContext: ec})
	q := p.Requests(xksproxy.Encrypt)[0]
	if q.Metadata.Operation != "Encrypt" || q.Metadata.Key != *m.Arn || q.Metadata.Principal != r.root.principal.String() || len(q.Metadata.RequestID) != 36 {
		t.Errorf("the proxy was told %+v", q.Metadata)
	}
	if bytes.Contains(q.Plaintext, []byte("CANARY")) || bytes.Contains(enc.CiphertextBlob, []byte("CANARY")) {
		t.Error("the proxy, or the ciphertext, has the plaintext")
	}
	if !bytes.Equal(q.AAD, enc.CiphertextBlob[:len(q.AAD)]) || len(q.AAD) == 0 {
		t.Error("the additional data is not the ciphertext's header")
	}
	p.Rotate() // old ciphertexts stay good
	dec := must[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: enc.CiphertextBlob, EncryptionContext: ec})
	if !bytes.Equal(dec.Plaintext, plaintext) || dec.KeyMaterialId != nil {
		t.Errorf("decrypted to %d bytes, material %v", len(dec.Plaintext), dec.KeyMaterialId)
	}
	dk := must[GenerateDataKeyOutput](r, "GenerateDataKey", &GenerateDataKeyInput{KeyId: id, KeySpec: ptr("AES_256")})
	if got := must[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: dk.CiphertextBlob, KeyId: id}); !bytes.Equal(got.Plaintext, dk.Plaintext) || dk.KeyMaterialId != nil {
		t.Errorf("the data key does not come back")
	}
	must[GenerateDataKeyWithoutPlaintextOutput](r, "GenerateDataKeyWithoutPlaintext", &GenerateDataKeyWithoutPlaintextInput{KeyId: id, KeySpec: ptr("AES_256")})
	// Between the store and here, both ways, and to itself.
	plain, _ := r.newKey()
	out := must[ReEncryptOutput](r, "ReEncrypt", &ReEncryptInput{CiphertextBlob: enc.CiphertextBlob, SourceEncryptionContext: ec, DestinationKeyId: &plain})
	back := must[ReEncryptOutput](r, "ReEncrypt", &ReEncryptInput{CiphertextBlob: out.CiphertextBlob, DestinationKeyId: id})
	again := must[ReEncryptOutput](r, "ReEncrypt", &ReEncryptInput{CiphertextBlob: back.CiphertextBlob, DestinationKeyId: id})
	if got := must[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: again.CiphertextBlob}); !bytes.Equal(got.Plaintext, plaintext) {
		t.Error("re-encrypted to something else")
	}
	if out.SourceKeyMaterialId != nil || back.DestinationKeyMaterialId != nil {
		t.Error("the material of a key in a key store is shown")
	}
	calls := len(p.Requests(xksproxy.Encrypt))
	_, err := call[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: id, Plaintext: plaintext, DryRun: ptr(true)})
	if wantError(t, err, ErrDryRun, errDryRun.Message); len(p.Requests(xksproxy.Encrypt)) != calls {
		t.Error("a dry run of Encrypt asks the proxy")
	}
	must[none](r, "DisableKey", &DisableKeyInput{KeyId: id})
	_, err = call[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: id, Plaintext: plaintext})
	if wantError(t, err, ErrDisabled, "…"); len(p.Requests(xksproxy.Encrypt)) != calls {
		t.Error("the proxy is asked for a disabled key")
	}
	must[none](r, "EnableKey", &EnableKeyInput{KeyId: id})
	_, err = callAs[EncryptOutput](r, r.first, r.user(aliceARN), "Encrypt", &EncryptInput{KeyId: id, Plaintext: plaintext})
	if wantError(t, err, ErrAccessDenied, "…"); len(p.Requests(xksproxy.Encrypt)) != calls {
		t.Error("the proxy is asked for a caller who may not")
	}
}

func TestCreateStoreKeyErrors(t *testing.T) {
	r := newRoom(t)
	p := r.newProxy()
	store := r.newStore(p)
	r.newStoreKey(p, store, "used")
	p.AddKey("new")
	p.PutKey("disabled", &xksproxy.Key{Spec: "AES_256", Usages: []string{"ENCRYPT", "DECRYPT"}, Disabled: true})
	p.PutKey("short", &xksproxy.Key{Spec: "AES_128", Usages: []string{"ENCRYPT", "DECRYPT"}})
	p.PutKey("encrypts", &xksproxy.Key{Spec: "AES_256", Usages: []string{"ENCRYPT"}})
	for _, tt := range []struct {
		name    string
		spoil   func(*CreateKeyInput)
		kind    *Error
		message string
	}{
		{"no key store", func(in *CreateKeyInput) { in.CustomKeyStoreId = nil }, ErrValidation, "Origin EXTERNAL_KEY_STORE needs a CustomKeyStoreId."},
		{"no external key", func(in *CreateKeyInput) { in.XksKeyId = nil }, ErrValidation, "…"},
		{"another origin", func(in *CreateKeyInput) { in.Origin = ptr(originHSM) }, ErrValidation, "…"},
		{"origin of another type", func(in *CreateKeyInput) { in.Origin, in.XksKeyId = ptr(originHSM), nil }, ErrUnsupported, "…"},
		{"multi-Region", func(in *CreateKeyInput) { in.MultiRegion = ptr(true) }, ErrUnsupported, "Multi-Region keys cannot be in a custom key store."},
		{"asymmetric", func(in *CreateKeyInput) { in.KeySpec, in.KeyUsage = ptr("RSA_2048"), ptr(usageSign) }, ErrUnsupported, "…"},
		{"HMAC", func(in *CreateKeyInput) { in.KeySpec, in.KeyUsage = ptr("HMAC_256"), ptr(usageMac) }, ErrUnsupported, "…"},
		{"unknown store", func(in *CreateKeyInput) { in.CustomKeyStoreId = ptr("cks-none") }, ErrCustomStoreNotFound, ""},
		{"key in use", func(in *CreateKeyInput) { in.XksKeyId = ptr("used") }, ErrXksKeyAlreadyInUse, "…"},
		{"unknown key", func(in *CreateKeyInput) { in.XksKeyId = ptr("none") }, ErrXksKeyNotFound, "…"},
		{"disabled key", func(in *CreateKeyInput) { in.XksKeyId = ptr("disabled") }, ErrXksKeyInvalidConfiguration, "…"},
		{"short key", func(in *CreateKeyInput) { in.XksKeyId = ptr("short") }, ErrXksKeyInvalidConfiguration, "…"},
		{"key that only encrypts", func(in *CreateKeyInput) { in.XksKeyId = ptr("encrypts") }, ErrXksKeyInvalidConfiguration, "…"},
		{"policy that locks out", func(in *CreateKeyInput) {
			in.Policy = ptr(r.policyFor(statement("Allow", testAccount, "kms:Encrypt")))
		}, ErrMalformedPolicy, "…"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := inStore(store, "new")
			tt.spoil(in)
			_, err := call[CreateKeyOutput](r, "CreateKey", in)
			wantError(t, err, tt.kind, tt.message)
		})
	}
	must[none](r, "DisconnectCustomKeyStore", &DisconnectCustomKeyStoreInput{CustomKeyStoreId: &store})
	asked := len(p.Requests(xksproxy.Metadata))
	_, err := call[CreateKeyOutput](r, "CreateKey", inStore(store, "new"))
	if wantError(t, err, ErrCustomStoreInvalidState, "…"); len(p.Requests(xksproxy.Metadata)) != asked {
		t.Error("the proxy of a disconnected store is asked")
	}
	// A key pending deletion still keeps the store, and its external key.
	_, err = call[none](r, "DeleteCustomKeyStore", &DeleteCustomKeyStoreInput{CustomKeyStoreId: &store})
	wantError(t, err, ErrCustomStoreHasKeys, "…")
}

// TestStoreKeyRefusals: what AWS does not do with keys in key stores.
func TestStoreKeyRefusals(t *testing.T) {
	r := newRoom(t)
	p := r.newProxy()
	store := r.newStore(p)
	id, arn := r.newStoreKey(p, store, "k")
	wrong := arn + " origin is EXTERNAL_KEY_STORE which is not valid for this operation."
	for name, in := range map[string]any{
		"GenerateDataKeyPair":                 &GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: ptr("ECC_NIST_P256")},
		"GenerateDataKeyPairWithoutPlaintext": &GenerateDataKeyPairWithoutPlaintextInput{KeyId: &id, KeyPairSpec: ptr("ECC_NIST_P256")},
		"EnableKeyRotation":                   &EnableKeyRotationInput{KeyId: &id},
		"DisableKeyRotation":                  &DisableKeyRotationInput{KeyId: &id},
		"GetKeyRotationStatus":                &GetKeyRotationStatusInput{KeyId: &id},
		"RotateKeyOnDemand":                   &RotateKeyOnDemandInput{KeyId: &id},
		"GetParametersForImport":              &GetParametersForImportInput{KeyId: &id, WrappingAlgorithm: ptr("RSAES_OAEP_SHA_256"), WrappingKeySpec: ptr("RSA_2048")},
		"DeleteImportedKeyMaterial":           &DeleteImportedKeyMaterialInput{KeyId: &id},
	} {
		_, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(name), in)
		wantError(t, err, ErrUnsupported, wrong)
	}
	_, err := call[GenerateRandomOutput](r, "GenerateRandom", &GenerateRandomInput{NumberOfBytes: ptr(int32(1)), CustomKeyStoreId: &store})
	wantError(t, err, ErrUnsupported, "External key stores generate no random bytes.")
	_, err = call[GenerateRandomOutput](r, "GenerateRandom", &GenerateRandomInput{NumberOfBytes: ptr(int32(1)), CustomKeyStoreId: ptr("cks-none")})
	wantError(t, err, ErrCustomStoreNotFound, "")
}

// TestUnavailable is AWS's column of key states for keys whose store is not
// connected, and that a key on its way out stays so.
func TestUnavailable(t *testing.T) {
	r := newRoom(t)
	p := r.newProxy()
	store := r.newStore(p)
	id, arn := r.newStoreKey(p, store, "k")
	plain, _ := r.newKey()
	blob := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	byPlain := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &plain, Plaintext: []byte("x")}).CiphertextBlob
	must[none](r, "CreateAlias", &CreateAliasInput{AliasName: ptr("alias/old"), TargetKeyId: &id})
	must[none](r, "DisconnectCustomKeyStore", &DisconnectCustomKeyStoreInput{CustomKeyStoreId: &store})
	tests := []struct {
		op   string
		in   any
		want string // "ok", U is unavailable, N is not pending deletion
	}{
		{"Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")}, "U"},
		{"Decrypt", &DecryptInput{CiphertextBlob: blob}, "U"},
		{"ReEncrypt", &ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: &plain}, "U"},
		{"ReEncrypt", &ReEncryptInput{CiphertextBlob: byPlain, DestinationKeyId: &id}, "U"},
		{"GenerateDataKey", &GenerateDataKeyInput{KeyId: &id, KeySpec: ptr("AES_128")}, "U"},
		{"GenerateDataKeyWithoutPlaintext", &GenerateDataKeyWithoutPlaintextInput{KeyId: &id, KeySpec: ptr("AES_128")}, "U"},
		{"GenerateDataKeyPair", &GenerateDataKeyPairInput{KeyId: &id, KeyPairSpec: ptr("ECC_NIST_P256")}, "U"},
		{"CancelKeyDeletion", &CancelKeyDeletionInput{KeyId: &id}, "N"},
		{"DisableKey", &DisableKeyInput{KeyId: &id}, "ok"},
		{"Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")}, "U"}, // not Disabled
		{"EnableKey", &EnableKeyInput{KeyId: &id}, "ok"},
		{"DescribeKey", &DescribeKeyInput{KeyId: &id}, "ok"},
		{"GetKeyPolicy", &GetKeyPolicyInput{KeyId: &id}, "ok"},
		{"TagResource", &TagResourceInput{KeyId: &id, Tags: manyTags(1)}, "ok"},
		{"UpdateKeyDescription", &UpdateKeyDescriptionInput{KeyId: &id, Description: ptr("x")}, "ok"},
		{"CreateAlias", &CreateAliasInput{AliasName: ptr("alias/new"), TargetKeyId: &id}, "ok"},
		{"DeleteAlias", &DeleteAliasInput{AliasName: ptr("alias/old")}, "ok"},
		{"ScheduleKeyDeletion", &ScheduleKeyDeletionInput{KeyId: &id}, "ok"},
	}
	describe := func(want string) {
		t.Helper()
		d := must[DescribeKeyOutput](r, "DescribeKey", &DescribeKeyInput{KeyId: &id}).KeyMetadata
		if *d.KeyState != want || *d.Enabled != (want == "Enabled") {
			t.Errorf("described as %s, enabled %v; want %s", *d.KeyState, *d.Enabled, want)
		}
	}
	describe("Unavailable")
	for _, tt := range tests {
		t.Run(tt.op, func(t *testing.T) {
			_, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(tt.op), tt.in)
			switch tt.want {
			case "ok":
				if err != nil {
					t.Error(err)
				}
			case "U":
				wantError(t, err, ErrInvalidState, arn+" is unavailable.")
			case "N":
				wantError(t, err, ErrInvalidState, arn+" is not pending deletion.")
			}
		})
	}
	describe("PendingDeletion")
	_, err := call[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, ErrInvalidState, arn+" is pending deletion.")
	must[CancelKeyDeletionOutput](r, "CancelKeyDeletion", &CancelKeyDeletionInput{KeyId: &id})
	describe("Unavailable")
	must[none](r, "ConnectCustomKeyStore", &ConnectCustomKeyStoreInput{CustomKeyStoreId: &store})
	describe("Disabled") // DisableKey and EnableKey took effect, and so did the cancelled deletion
	must[none](r, "EnableKey", &EnableKeyInput{KeyId: &id})
	describe("Enabled")
	must[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: blob})
}

// TestProxyErrors is the table of how failures of a proxy are told by each kind of
// operation, for every failure that there is.
func TestProxyErrors(t *testing.T) {
	all := xks.Failures()
	if len(all) != len(xksFailures) || len(all) != len(xksproxy.Names)+6 {
		t.Fatalf("%d failures, %d rows, %d names", len(all), len(xksFailures), len(xksproxy.Names))
	}
	for _, f := range all {
		row, ok := xksFailures[f]
		if !ok || row.store == nil || row.key == nil || row.connection == "" || row.message == "" {
			t.Errorf("%s has no whole row", f)
		}
	}
	r := newRoom(t)
	p := r.newProxy()
	store := r.newStore(p)
	id, _ := r.newStoreKey(p, store, "k")
	p.AddKey("new")
	blob := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
	tenant := storeAt(p, "second")
	tenant.XksProxyUriPath = ptr(xksproxy.TenantPath)
	second := *must[CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", tenant).CustomKeyStoreId
	faults := map[xks.Failure]xksproxy.Fault{xks.ErrMalformed: xksproxy.Says("<html>"), xks.ErrUnreachable: xksproxy.Reset()}
	for name := range xksproxy.Names {
		faults[xks.Failure(name)] = xksproxy.Named(name)
	}
	for f, fault := range faults {
		t.Run(string(f), func(t *testing.T) {
			row := xksFailures[f]
			for _, op := range []string{xksproxy.Health, xksproxy.Metadata, xksproxy.Encrypt, xksproxy.Decrypt} {
				p.Fail(op, fault)
				defer p.Fail(op, nil)
			}
			_, err := call[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")})
			wantError(t, err, ErrInvalidState, row.message)
			_, err = call[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: blob})
			wantError(t, err, ErrInvalidState, row.message)
			if rec := r.lastRecord(); rec.ErrorCode != "KMSInvalidStateException" {
				t.Errorf("the record says %q", rec.ErrorCode)
			}
			_, err = call[GenerateDataKeyOutput](r, "GenerateDataKey", &GenerateDataKeyInput{KeyId: &id, KeySpec: ptr("AES_256")})
			wantError(t, err, ErrInvalidState, row.message)
			_, err = call[CreateKeyOutput](r, "CreateKey", inStore(store, "new"))
			wantError(t, err, row.key, row.message)
			_, err = call[none](r, "UpdateCustomKeyStore", &UpdateCustomKeyStoreInput{CustomKeyStoreId: &store, XksProxyAuthenticationCredential: testCredential()})
			wantError(t, err, row.store, row.message)
			must[none](r, "ConnectCustomKeyStore", &ConnectCustomKeyStoreInput{CustomKeyStoreId: &second})
			if e := r.storeEntry(second); *e.ConnectionState != "FAILED" || *e.ConnectionErrorCode != row.connection {
				t.Errorf("connecting ends as %s, want FAILED with %s", *e.ConnectionState, row.connection)
			}
			must[none](r, "DisconnectCustomKeyStore", &DisconnectCustomKeyStoreInput{CustomKeyStoreId: &second})
		})
	}
	p.Fail(xksproxy.Encrypt, xksproxy.Wrong(map[string]any{"ciphertextDataIntegrityValue": make([]byte, 32)}))
	_, err := call[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, ErrInvalidState, malformedMessage)
	// A proxy that decrypts to something else.
	p.Fail(xksproxy.Decrypt, xksproxy.Wrong(map[string]any{"plaintext": make([]byte, 1+keymat.MessageOverhead)}))
	_, err = call[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: blob})
	wantError(t, err, ErrInvalidState, malformedMessage)
	for _, e := range r.first.outers {
		e.(*xksOuter).client = xks.New(xks.Config{AllowPrivate: true, Roots: p.Roots(), Timeout: 50 * time.Millisecond})
	}
	p.Fail(xksproxy.Encrypt, xksproxy.Delay(time.Minute))
	_, err = call[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, ErrInvalidState, xksFailures[xks.ErrTimeout].message)
}

// TestStoreCiphertexts: every altered ciphertext is refused with the one error that
// says nothing, and the proxy never sees one.
func TestStoreCiphertexts(t *testing.T) {
	r := newRoom(t)
	r.first.limits = newLimits(Config{RefusalRate: 1e6, RefusalBurst: 1e6, Clock: r.cluster.clock})
	p := r.newProxy()
	store := r.newStore(p)
	id, _ := r.newStoreKey(p, store, "k")
	other, _ := r.newStoreKey(p, store, "other")
	blob := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x"), EncryptionContext: map[string]string{"a": "b"}}).CiphertextBlob
	byOther := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &other, Plaintext: []byte("x")}).CiphertextBlob
	inner := p.Requests(xksproxy.Encrypt)[0].Plaintext
	refused := func(b []byte, ec map[string]string, what string, n int) {
		t.Helper()
		if _, err := call[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: b, EncryptionContext: ec, KeyId: &id}); err == nil ||
			err.Error() != "InvalidCiphertextException" && !strings.HasPrefix(err.Error(), "IncorrectKeyException") {
			t.Fatalf("%s %d: %v", what, n, err)
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
	// What the store's side knows opens nothing without the store, and the other
	// way round.
	refused(inner, ec, "the message that the store encrypted", 0)
	if n := len(p.Requests(xksproxy.Decrypt)); n != 0 {
		t.Errorf("the proxy was shown %d of them", n)
	}
	must[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: blob, EncryptionContext: ec, KeyId: &id})
}

// TestDisconnectEverywhere: once DisconnectCustomKeyStore has returned no node uses
// the store's keys, though it began before and had asked the proxy already.
func TestDisconnectEverywhere(t *testing.T) {
	r := newRoom(t, "n1", "n2")
	p := r.newProxy()
	store := r.newStore(p)
	id, arn := r.newStoreKey(p, store, "k")
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	p.Fail(xksproxy.Encrypt, xksproxy.Hold(arrived, release))
	var wg sync.WaitGroup
	var err error
	wg.Go(func() {
		_, err = callAs[EncryptOutput](r, r.engines["n2"], r.root, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	})
	<-arrived
	must[none](r, "DisconnectCustomKeyStore", &DisconnectCustomKeyStoreInput{CustomKeyStoreId: &store})
	close(release)
	wg.Wait()
	wantError(t, err, ErrInvalidState, arn+" is unavailable.")
	r.cluster.replica("n2").freeze()
	_, err = callAs[EncryptOutput](r, r.engines["n2"], r.root, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	wantError(t, err, ErrInvalidState, arn+" is unavailable.")
}

// TestProxyOnce: however often a request is evaluated, on this node or by the
// leader, what it asks a proxy it asks once a node; and never while the leader
// holds the log.
func TestProxyOnce(t *testing.T) {
	for _, leads := range []string{"n1", "n2"} {
		t.Run("leader "+leads, func(t *testing.T) {
			r := newRoom(t, "n1", "n2")
			p := r.newProxy()
			store := r.newStore(p)
			id, _ := r.newStoreKey(p, store, "k")
			blob := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &id, Plaintext: []byte("x")}).CiphertextBlob
			r.cluster.leader = r.cluster.replica(leads)
			most := 1
			if leads == "n2" {
				most = 2
			}
			// Each proposal of n1 finds the key changed.
			n := 0
			replica := r.cluster.replica("n1")
			replica.before = func(*fsmpb.Record) {
				n++
				r.mangle(id, func(k *fsmpb.Key) { k.Description = fmt.Sprint(n) })
			}
			for name, tt := range map[string]struct {
				in any
				op string
			}{
				"Encrypt":         {&EncryptInput{KeyId: &id, Plaintext: []byte("x")}, xksproxy.Encrypt},
				"Decrypt":         {&DecryptInput{CiphertextBlob: blob}, xksproxy.Decrypt},
				"GenerateDataKey": {&GenerateDataKeyInput{KeyId: &id, KeySpec: ptr("AES_256")}, xksproxy.Encrypt},
			} {
				n = 0
				before := len(p.Requests(tt.op))
				out, err := r.first.Do(t.Context(), r.caller(r.root), OperationNamed(name), tt.in)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				if n != maxTries {
					t.Errorf("%s: %d tries, want %d", name, n, maxTries)
				}
				if got := len(p.Requests(tt.op)) - before; got != most {
					t.Errorf("%s: the proxy was asked %d times, want %d", name, got, most)
				}
				if dk, ok := out.(*GenerateDataKeyOutput); ok {
					replica.before = nil
					if got := must[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: dk.CiphertextBlob}); !bytes.Equal(got.Plaintext, dk.Plaintext) {
						t.Error("the data key and its ciphertext are of two evaluations")
					}
					break
				}
			}
		})
	}
}

// TestLogIsNotHeld: while the leader executes a request whose proxy does not answer,
// others are answered.
func TestLogIsNotHeld(t *testing.T) {
	r := newRoom(t)
	p := r.newProxy()
	store := r.newStore(p)
	id, _ := r.newStoreKey(p, store, "k")
	plain, _ := r.newKey()
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	p.Fail(xksproxy.Encrypt, xksproxy.Hold(arrived, release))
	var wg sync.WaitGroup
	var err error
	wg.Go(func() {
		_, err = r.first.exclusive(context.Background(), r.caller(r.root), OperationNamed("Encrypt"), &EncryptInput{KeyId: &id, Plaintext: []byte("x")})
	})
	<-arrived
	must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: &plain, Plaintext: []byte("x")})
	close(release)
	wg.Wait()
	if err != nil {
		t.Errorf("the request itself: %v", err)
	}
	if n := len(p.Requests(xksproxy.Encrypt)); n != 1 {
		t.Errorf("the proxy was asked %d times", n)
	}
}
