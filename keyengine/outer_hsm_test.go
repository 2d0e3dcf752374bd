//go:build pkcs11

package keyengine

import (
	"bytes"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/softhsm"
	"github.com/conclavekms/conclave/keyengine/internal/keystore"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const testHSM = "cluster-abcdefghijk"

// newHSM gives the room's engines a token, and what makes a store of it.
func (r *room) newHSM() (softhsm.Token, *kmsapi.CreateCustomKeyStoreInput) {
	r.t.Helper()
	token := softhsm.NewToken(r.t)
	r.useKeyStores(keystore.Config{PKCS11Module: token.Module, PKCS11Tokens: map[string]string{testHSM: token.Label}})
	return token, &kmsapi.CreateCustomKeyStoreInput{CustomKeyStoreName: new("hsm"), CloudHsmClusterId: new(testHSM), KeyStorePassword: &token.PIN}
}

func TestHSMStore(t *testing.T) {
	r := newRoom(t)
	token, in := r.newHSM()
	for name, tt := range map[string]struct {
		spoil func(*kmsapi.CreateCustomKeyStoreInput)
		kind  *kmsapi.Error
	}{
		"no token":            {func(in *kmsapi.CreateCustomKeyStoreInput) { in.CloudHsmClusterId = nil }, kmsapi.ErrValidation},
		"no password":         {func(in *kmsapi.CreateCustomKeyStoreInput) { in.KeyStorePassword = nil }, kmsapi.ErrValidation},
		"certificate":         {func(in *kmsapi.CreateCustomKeyStoreInput) { in.TrustAnchorCertificate = new("x") }, kmsapi.ErrValidation},
		"token nobody named":  {func(in *kmsapi.CreateCustomKeyStoreInput) { in.CloudHsmClusterId = new("cluster-bbbbbbbbbbb") }, kmsapi.ErrCloudHsmClusterNotFound},
		"external key member": {func(in *kmsapi.CreateCustomKeyStoreInput) { in.XksProxyUriPath = new("/kms/xks/v1") }, kmsapi.ErrValidation},
	} {
		bad := *in
		tt.spoil(&bad)
		_, err := call[kmsapi.CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", &bad)
		t.Run(name, func(t *testing.T) { wantError(t, err, tt.kind, "…") })
	}
	wrong := *in
	wrong.KeyStorePassword = new("another PIN")
	id := must[kmsapi.CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", &wrong).CustomKeyStoreId
	second := *in
	second.CustomKeyStoreName = new("second")
	_, err := call[kmsapi.CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", &second)
	wantError(t, err, kmsapi.ErrCloudHsmClusterInUse, "…")
	connect := &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: id}
	must[request.None](r, "ConnectCustomKeyStore", connect)
	if e := r.storeEntry(*id); *e.ConnectionState != "FAILED" || *e.ConnectionErrorCode != "INVALID_CREDENTIALS" || *e.CloudHsmClusterId != testHSM || e.XksProxyConfiguration != nil {
		t.Errorf("with a wrong PIN it is %+v", e)
	}
	must[request.None](r, "DisconnectCustomKeyStore", &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: id})
	_, err = call[request.None](r, "UpdateCustomKeyStore", &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: id, CloudHsmClusterId: new("cluster-bbbbbbbbbbb")})
	wantError(t, err, kmsapi.ErrCloudHsmClusterNotRelated, "…")
	must[request.None](r, "UpdateCustomKeyStore", &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: id, KeyStorePassword: &token.PIN})
	random := &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(32)), CustomKeyStoreId: id}
	_, err = call[kmsapi.GenerateRandomOutput](r, "GenerateRandom", random)
	wantError(t, err, kmsapi.ErrCustomStoreInvalidState, "…")
	must[request.None](r, "ConnectCustomKeyStore", connect)
	if e := r.storeEntry(*id); *e.ConnectionState != "CONNECTED" {
		t.Fatalf("connected it is %+v", e)
	}
	_, err = call[request.None](r, "UpdateCustomKeyStore", &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: id, KeyStorePassword: &token.PIN})
	wantError(t, err, kmsapi.ErrCustomStoreInvalidState, "…")
	one, two := must[kmsapi.GenerateRandomOutput](r, "GenerateRandom", random).Plaintext, must[kmsapi.GenerateRandomOutput](r, "GenerateRandom", random).Plaintext
	if len(one) != 32 || bytes.Equal(one, two) {
		t.Errorf("random bytes %x, %x", one, two)
	}

	m := must[kmsapi.CreateKeyOutput](r, "CreateKey", &kmsapi.CreateKeyInput{Origin: new(kmsapi.OriginHSM), CustomKeyStoreId: id}).KeyMetadata
	if *m.Origin != kmsapi.OriginHSM || *m.CloudHsmClusterId != testHSM || *m.CustomKeyStoreId != *id || m.XksKeyConfiguration != nil || m.CurrentKeyMaterialId != nil {
		t.Errorf("made %+v", m)
	}
	ec := map[string]string{"a": "b"}
	enc := must[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: m.KeyId, Plaintext: []byte("plaintext"), EncryptionContext: ec})
	decrypt := &kmsapi.DecryptInput{CiphertextBlob: enc.CiphertextBlob, EncryptionContext: ec}
	if got := must[kmsapi.DecryptOutput](r, "Decrypt", decrypt); string(got.Plaintext) != "plaintext" {
		t.Errorf("decrypted to %q", got.Plaintext)
	}
	dk := must[kmsapi.GenerateDataKeyOutput](r, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: m.KeyId, KeySpec: new("AES_256")})
	if got := must[kmsapi.DecryptOutput](r, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: dk.CiphertextBlob}); !bytes.Equal(got.Plaintext, dk.Plaintext) {
		t.Error("the data key does not come back")
	}
	must[request.None](r, "DisconnectCustomKeyStore", &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: id})
	_, err = call[kmsapi.DecryptOutput](r, "Decrypt", decrypt)
	wantError(t, err, kmsapi.ErrInvalidState, *m.Arn+" is unavailable.")
	must[request.None](r, "ConnectCustomKeyStore", connect)
	must[kmsapi.DecryptOutput](r, "Decrypt", decrypt)

	// Without the token nothing opens, though all of the cluster's keys are there.
	r.first.services.Stores.Close()
	_, err = call[kmsapi.DecryptOutput](r, "Decrypt", decrypt)
	wantError(t, err, kmsapi.ErrInvalidState, "The token of the custom key store failed.")
}

func TestHSMModule(t *testing.T) {
	if _, err := keystore.Open(keystore.Config{PKCS11Module: "/none.so"}, time.Now); err == nil {
		t.Error("a module that is not there is taken")
	}
}
