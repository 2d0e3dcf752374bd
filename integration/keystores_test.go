package integration

import (
	"bytes"
	"errors"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/integration/xksproxy"
)

// TestExternalKeyStore uses a key in an external key store with AWS's SDK on all
// nodes of a real cluster, over TLS to a real proxy: what one node encrypts another
// decrypts, and what is disconnected on one is dead on all.
func TestExternalKeyStore(t *testing.T) {
	t.Parallel()
	p := xksproxy.Start(t)
	p.AddKey("external-key")
	c := harness.NewCluster(t, 3, harness.Options{Configure: harness.TrustStores(t)})
	ctx := t.Context()
	first := c.Nodes[0].SDK()
	store, err := first.CreateCustomKeyStore(ctx, &kms.CreateCustomKeyStoreInput{
		CustomKeyStoreName: aws.String("external"), CustomKeyStoreType: types.CustomKeyStoreTypeExternalKeyStore,
		XksProxyConnectivity: types.XksProxyConnectivityTypePublicEndpoint, XksProxyUriEndpoint: &p.Endpoint, XksProxyUriPath: aws.String(xksproxy.Path),
		XksProxyAuthenticationCredential: &types.XksProxyAuthenticationCredentialType{
			AccessKeyId: aws.String(xksproxy.AccessKeyID), RawSecretAccessKey: aws.String(xksproxy.Secret),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	id := store.CustomKeyStoreId
	if _, err := c.Nodes[1].SDK().ConnectCustomKeyStore(ctx, &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: id}); err != nil {
		t.Fatal(err)
	}
	list, err := c.Nodes[2].SDK().DescribeCustomKeyStores(ctx, &kms.DescribeCustomKeyStoresInput{CustomKeyStoreName: aws.String("external")})
	if err != nil || len(list.CustomKeyStores) != 1 || list.CustomKeyStores[0].ConnectionState != types.ConnectionStateTypeConnected ||
		*list.CustomKeyStores[0].XksProxyConfiguration.UriEndpoint != p.Endpoint {
		t.Fatalf("described as %+v, %v", list, err)
	}
	key, err := c.Nodes[2].SDK().CreateKey(ctx, &kms.CreateKeyInput{Origin: types.OriginTypeExternalKeyStore, CustomKeyStoreId: id, XksKeyId: aws.String("external-key")})
	if err != nil {
		t.Fatal(err)
	}
	m := key.KeyMetadata
	if *m.CustomKeyStoreId != *id || *m.XksKeyConfiguration.Id != "external-key" || m.CurrentKeyMaterialId != nil || m.KeyState != types.KeyStateEnabled {
		t.Errorf("the key is %+v", m)
	}
	plaintext, ec := []byte("on one node, on another"), map[string]string{"k": "v"}
	var blobs [][]byte
	for _, n := range c.Nodes {
		enc, err := n.SDK().Encrypt(ctx, &kms.EncryptInput{KeyId: m.KeyId, Plaintext: plaintext, EncryptionContext: ec})
		if err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, enc.CiphertextBlob)
	}
	for i, n := range c.Nodes {
		dec, err := n.SDK().Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blobs[(i+1)%len(blobs)], EncryptionContext: ec})
		if err != nil || !bytes.Equal(dec.Plaintext, plaintext) {
			t.Errorf("node %s: %v", n.ID, err)
		}
		dk, err := n.SDK().GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: m.KeyId, KeySpec: types.DataKeySpecAes256})
		if err != nil || len(dk.Plaintext) != 32 {
			t.Errorf("data key of node %s: %v", n.ID, err)
		}
	}
	for _, r := range p.Requests(xksproxy.Encrypt) {
		if r.Metadata.Key != *m.Arn || r.Region != harness.Region || bytes.Contains(r.Plaintext, plaintext) {
			t.Errorf("the proxy was asked %+v", r)
		}
	}

	// A proxy that is down fails its own keys, and nothing else.
	plain, err := first.CreateKey(ctx, &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	p.Fail(xksproxy.Encrypt, xksproxy.Reset())
	_, err = first.Encrypt(ctx, &kms.EncryptInput{KeyId: m.KeyId, Plaintext: plaintext})
	if invalid, ok := errors.AsType[*types.KMSInvalidStateException](err); !ok || invalid.Message == nil {
		t.Errorf("with the proxy down: %v", err)
	}
	if _, err := first.Encrypt(ctx, &kms.EncryptInput{KeyId: plain.KeyMetadata.KeyId, Plaintext: plaintext}); err != nil {
		t.Errorf("another key meanwhile: %v", err)
	}
	p.Fail(xksproxy.Encrypt, nil)

	if _, err := c.Nodes[1].SDK().DisconnectCustomKeyStore(ctx, &kms.DisconnectCustomKeyStoreInput{CustomKeyStoreId: id}); err != nil {
		t.Fatal(err)
	}
	for i, n := range c.Nodes {
		_, err := n.SDK().Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blobs[i], EncryptionContext: ec})
		if _, ok := errors.AsType[*types.KMSInvalidStateException](err); !ok {
			t.Errorf("node %s after the store was disconnected: %v", n.ID, err)
		}
		d, err := n.SDK().DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: m.KeyId})
		if err != nil || d.KeyMetadata.KeyState != types.KeyStateUnavailable {
			t.Errorf("node %s describes %+v, %v", n.ID, d, err)
		}
	}
	_, err = first.DeleteCustomKeyStore(ctx, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: id})
	if _, ok := errors.AsType[*types.CustomKeyStoreHasCMKsException](err); !ok {
		t.Errorf("deleting a store with a key: %v", err)
	}
	c.NoFaults()
}
