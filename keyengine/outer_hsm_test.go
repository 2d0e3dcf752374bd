//go:build pkcs11

package keyengine

import (
	"bytes"
	"testing"

	"github.com/conclavekms/conclave/integration/softhsm"
)

const testHSM = "cluster-abcdefghijk"

// newHSM gives the room's engines a token, and what makes a store of it.
func (r *room) newHSM() (softhsm.Token, *CreateCustomKeyStoreInput) {
	r.t.Helper()
	token := softhsm.NewToken(r.t)
	for _, e := range r.engines {
		e.cfg.KeyStores.PKCS11Module, e.cfg.KeyStores.PKCS11Tokens = token.Module, map[string]string{testHSM: token.Label}
		o, err := newHSMOuter(e.cfg)
		if err != nil {
			r.t.Fatal(err)
		}
		e.outers[originHSM] = o // closed with the engine
	}
	return token, &CreateCustomKeyStoreInput{CustomKeyStoreName: ptr("hsm"), CloudHsmClusterId: ptr(testHSM), KeyStorePassword: &token.PIN}
}

func TestHSMStore(t *testing.T) {
	r := newRoom(t)
	token, in := r.newHSM()
	for name, tt := range map[string]struct {
		spoil func(*CreateCustomKeyStoreInput)
		kind  *Error
	}{
		"no token":            {func(in *CreateCustomKeyStoreInput) { in.CloudHsmClusterId = nil }, ErrValidation},
		"no password":         {func(in *CreateCustomKeyStoreInput) { in.KeyStorePassword = nil }, ErrValidation},
		"certificate":         {func(in *CreateCustomKeyStoreInput) { in.TrustAnchorCertificate = ptr("x") }, ErrValidation},
		"token nobody named":  {func(in *CreateCustomKeyStoreInput) { in.CloudHsmClusterId = ptr("cluster-bbbbbbbbbbb") }, ErrCloudHsmClusterNotFound},
		"external key member": {func(in *CreateCustomKeyStoreInput) { in.XksProxyUriPath = ptr("/kms/xks/v1") }, ErrValidation},
	} {
		bad := *in
		tt.spoil(&bad)
		_, err := call[CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", &bad)
		t.Run(name, func(t *testing.T) { wantError(t, err, tt.kind, "…") })
	}
	wrong := *in
	wrong.KeyStorePassword = ptr("another PIN")
	id := must[CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", &wrong).CustomKeyStoreId
	second := *in
	second.CustomKeyStoreName = ptr("second")
	_, err := call[CreateCustomKeyStoreOutput](r, "CreateCustomKeyStore", &second)
	wantError(t, err, ErrCloudHsmClusterInUse, "…")
	connect := &ConnectCustomKeyStoreInput{CustomKeyStoreId: id}
	must[none](r, "ConnectCustomKeyStore", connect)
	if e := r.storeEntry(*id); *e.ConnectionState != "FAILED" || *e.ConnectionErrorCode != "INVALID_CREDENTIALS" || *e.CloudHsmClusterId != testHSM || e.XksProxyConfiguration != nil {
		t.Errorf("with a wrong PIN it is %+v", e)
	}
	must[none](r, "DisconnectCustomKeyStore", &DisconnectCustomKeyStoreInput{CustomKeyStoreId: id})
	_, err = call[none](r, "UpdateCustomKeyStore", &UpdateCustomKeyStoreInput{CustomKeyStoreId: id, CloudHsmClusterId: ptr("cluster-bbbbbbbbbbb")})
	wantError(t, err, ErrCloudHsmClusterNotRelated, "…")
	must[none](r, "UpdateCustomKeyStore", &UpdateCustomKeyStoreInput{CustomKeyStoreId: id, KeyStorePassword: &token.PIN})
	random := &GenerateRandomInput{NumberOfBytes: ptr(int32(32)), CustomKeyStoreId: id}
	_, err = call[GenerateRandomOutput](r, "GenerateRandom", random)
	wantError(t, err, ErrCustomStoreInvalidState, "…")
	must[none](r, "ConnectCustomKeyStore", connect)
	if e := r.storeEntry(*id); *e.ConnectionState != "CONNECTED" {
		t.Fatalf("connected it is %+v", e)
	}
	_, err = call[none](r, "UpdateCustomKeyStore", &UpdateCustomKeyStoreInput{CustomKeyStoreId: id, KeyStorePassword: &token.PIN})
	wantError(t, err, ErrCustomStoreInvalidState, "…")
	one, two := must[GenerateRandomOutput](r, "GenerateRandom", random).Plaintext, must[GenerateRandomOutput](r, "GenerateRandom", random).Plaintext
	if len(one) != 32 || bytes.Equal(one, two) {
		t.Errorf("random bytes %x, %x", one, two)
	}

	m := must[CreateKeyOutput](r, "CreateKey", &CreateKeyInput{Origin: ptr(originHSM), CustomKeyStoreId: id}).KeyMetadata
	if *m.Origin != originHSM || *m.CloudHsmClusterId != testHSM || *m.CustomKeyStoreId != *id || m.XksKeyConfiguration != nil || m.CurrentKeyMaterialId != nil {
		t.Errorf("made %+v", m)
	}
	ec := map[string]string{"a": "b"}
	enc := must[EncryptOutput](r, "Encrypt", &EncryptInput{KeyId: m.KeyId, Plaintext: []byte("plaintext"), EncryptionContext: ec})
	decrypt := &DecryptInput{CiphertextBlob: enc.CiphertextBlob, EncryptionContext: ec}
	if got := must[DecryptOutput](r, "Decrypt", decrypt); string(got.Plaintext) != "plaintext" {
		t.Errorf("decrypted to %q", got.Plaintext)
	}
	dk := must[GenerateDataKeyOutput](r, "GenerateDataKey", &GenerateDataKeyInput{KeyId: m.KeyId, KeySpec: ptr("AES_256")})
	if got := must[DecryptOutput](r, "Decrypt", &DecryptInput{CiphertextBlob: dk.CiphertextBlob}); !bytes.Equal(got.Plaintext, dk.Plaintext) {
		t.Error("the data key does not come back")
	}
	must[none](r, "DisconnectCustomKeyStore", &DisconnectCustomKeyStoreInput{CustomKeyStoreId: id})
	_, err = call[DecryptOutput](r, "Decrypt", decrypt)
	wantError(t, err, ErrInvalidState, *m.Arn+" is unavailable.")
	must[none](r, "ConnectCustomKeyStore", connect)
	must[DecryptOutput](r, "Decrypt", decrypt)

	// Without the token nothing opens, though all of the cluster's keys are there.
	r.first.outers[originHSM].(*hsmOuter).close()
	_, err = call[DecryptOutput](r, "Decrypt", decrypt)
	wantError(t, err, ErrInvalidState, "The token of the custom key store failed.")
}

func TestHSMModule(t *testing.T) {
	if _, err := newHSMOuter(Config{KeyStores: KeyStoreConfig{PKCS11Module: "/none.so"}}); err == nil {
		t.Error("a module that is not there is taken")
	}
}
