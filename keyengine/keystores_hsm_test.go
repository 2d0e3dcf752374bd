//go:build pkcs11

package keyengine

import (
	"bytes"
	"testing"

	"github.com/conclavekms/conclave/integration/softhsm"
	"github.com/conclavekms/conclave/keyengine/internal/keystore"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const testHSM = "cluster-abcdefghijk"

// newHSM gives all engines a token of a PKCS #11 module, and returns a request that creates a
// key store with it.
func (c *testCluster) newHSM() (softhsm.Token, *kmsapi.CreateCustomKeyStoreInput) {
	c.t.Helper()
	token := softhsm.NewToken(c.t)
	c.useKeyStores(keystore.Config{PKCS11Module: token.Module, PKCS11Tokens: map[string]string{testHSM: token.Label}})
	return token, &kmsapi.CreateCustomKeyStoreInput{CustomKeyStoreName: new("hsm"), CloudHsmClusterId: new(testHSM), KeyStorePassword: &token.PIN}
}

func TestHSMStore(t *testing.T) {
	c := newTestCluster(t)
	token, in := c.newHSM()
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
		_, err := call[kmsapi.CreateCustomKeyStoreOutput](c, "CreateCustomKeyStore", &bad)
		t.Run(name, func(t *testing.T) { wantError(t, err, tt.kind, "…") })
	}
	wrong := *in
	wrong.KeyStorePassword = new("another PIN")
	id := must[kmsapi.CreateCustomKeyStoreOutput](c, "CreateCustomKeyStore", &wrong).CustomKeyStoreId
	second := *in
	second.CustomKeyStoreName = new("second")
	_, err := call[kmsapi.CreateCustomKeyStoreOutput](c, "CreateCustomKeyStore", &second)
	wantError(t, err, kmsapi.ErrCloudHsmClusterInUse, "…")
	connect := &kmsapi.ConnectCustomKeyStoreInput{CustomKeyStoreId: id}
	must[request.None](c, "ConnectCustomKeyStore", connect)
	if e := c.describeStore(*id); *e.ConnectionState != "FAILED" || *e.ConnectionErrorCode != "INVALID_CREDENTIALS" || *e.CloudHsmClusterId != testHSM || e.XksProxyConfiguration != nil {
		t.Errorf("with a wrong PIN, got %+v, want FAILED with INVALID_CREDENTIALS", e)
	}
	must[request.None](c, "DisconnectCustomKeyStore", &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: id})
	_, err = call[request.None](c, "UpdateCustomKeyStore", &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: id, CloudHsmClusterId: new("cluster-bbbbbbbbbbb")})
	wantError(t, err, kmsapi.ErrCloudHsmClusterNotRelated, "…")
	must[request.None](c, "UpdateCustomKeyStore", &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: id, KeyStorePassword: &token.PIN})
	random := &kmsapi.GenerateRandomInput{NumberOfBytes: new(int32(32)), CustomKeyStoreId: id}
	_, err = call[kmsapi.GenerateRandomOutput](c, "GenerateRandom", random)
	wantError(t, err, kmsapi.ErrCustomStoreInvalidState, "…")
	must[request.None](c, "ConnectCustomKeyStore", connect)
	if e := c.describeStore(*id); *e.ConnectionState != "CONNECTED" {
		t.Fatalf("after ConnectCustomKeyStore, got %+v, want CONNECTED", e)
	}
	_, err = call[request.None](c, "UpdateCustomKeyStore", &kmsapi.UpdateCustomKeyStoreInput{CustomKeyStoreId: id, KeyStorePassword: &token.PIN})
	wantError(t, err, kmsapi.ErrCustomStoreInvalidState, "…")
	one, two := must[kmsapi.GenerateRandomOutput](c, "GenerateRandom", random).Plaintext, must[kmsapi.GenerateRandomOutput](c, "GenerateRandom", random).Plaintext
	if len(one) != 32 || bytes.Equal(one, two) {
		t.Errorf("GenerateRandom returned %x and %x", one, two)
	}

	m := must[kmsapi.CreateKeyOutput](c, "CreateKey", &kmsapi.CreateKeyInput{Origin: new(kmsapi.OriginHSM), CustomKeyStoreId: id}).KeyMetadata
	if *m.Origin != kmsapi.OriginHSM || *m.CloudHsmClusterId != testHSM || *m.CustomKeyStoreId != *id || m.XksKeyConfiguration != nil || m.CurrentKeyMaterialId != nil {
		t.Errorf("CreateKey returned %+v", m)
	}
	ec := map[string]string{"a": "b"}
	enc := must[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: m.KeyId, Plaintext: []byte("plaintext"), EncryptionContext: ec})
	decrypt := &kmsapi.DecryptInput{CiphertextBlob: enc.CiphertextBlob, EncryptionContext: ec}
	if got := must[kmsapi.DecryptOutput](c, "Decrypt", decrypt); string(got.Plaintext) != "plaintext" {
		t.Errorf("Decrypt returned %q, want plaintext", got.Plaintext)
	}
	dk := must[kmsapi.GenerateDataKeyOutput](c, "GenerateDataKey", &kmsapi.GenerateDataKeyInput{KeyId: m.KeyId, KeySpec: new("AES_256")})
	if got := must[kmsapi.DecryptOutput](c, "Decrypt", &kmsapi.DecryptInput{CiphertextBlob: dk.CiphertextBlob}); !bytes.Equal(got.Plaintext, dk.Plaintext) {
		t.Error("Decrypt of a data key's ciphertext returned another one")
	}
	must[request.None](c, "DisconnectCustomKeyStore", &kmsapi.DisconnectCustomKeyStoreInput{CustomKeyStoreId: id})
	_, err = call[kmsapi.DecryptOutput](c, "Decrypt", decrypt)
	wantError(t, err, kmsapi.ErrInvalidState, *m.Arn+" is unavailable.")
	must[request.None](c, "ConnectCustomKeyStore", connect)
	must[kmsapi.DecryptOutput](c, "Decrypt", decrypt)

	// Without the token, ciphertexts cannot be decrypted with the cluster's keys alone.
	c.engine.services.Stores.Close()
	_, err = call[kmsapi.DecryptOutput](c, "Decrypt", decrypt)
	wantError(t, err, kmsapi.ErrInvalidState, "The token of the custom key store failed.")
}
