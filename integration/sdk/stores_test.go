package sdk

import (
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/conclavekms/conclave/integration/xksproxy"
)

// store is a new external key store, disconnected.
func (r *sdkRound) store() (id *string, p *xksproxy.Proxy) {
	r.Helper()
	p = xksproxy.Start(r)
	p.AddKey("external")
	return call(r, (*kms.Client).CreateCustomKeyStore, &kms.CreateCustomKeyStoreInput{
		CustomKeyStoreName: aws.String(r.Name()), CustomKeyStoreType: types.CustomKeyStoreTypeExternalKeyStore,
		XksProxyConnectivity: types.XksProxyConnectivityTypePublicEndpoint, XksProxyUriEndpoint: &p.Endpoint, XksProxyUriPath: aws.String(xksproxy.Path),
		XksProxyAuthenticationCredential: &types.XksProxyAuthenticationCredentialType{
			AccessKeyId: aws.String(xksproxy.AccessKeyID), RawSecretAccessKey: aws.String(xksproxy.Secret),
		},
	}).CustomKeyStoreId, p
}

func (r *sdkRound) connect(id *string) {
	r.Helper()
	call(r, (*kms.Client).ConnectCustomKeyStore, &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: id})
	is(r, "state", r.described(id).ConnectionState, types.ConnectionStateTypeConnected)
}

func (r *sdkRound) described(id *string) types.CustomKeyStoresListEntry {
	r.Helper()
	list := call(r, (*kms.Client).DescribeCustomKeyStores, &kms.DescribeCustomKeyStoresInput{CustomKeyStoreId: id}).CustomKeyStores
	if len(list) != 1 {
		r.Fatalf("%d key stores are described", len(list))
	}
	return list[0]
}

func sdkCreateCustomKeyStore(r *sdkRound) {
	id, p := r.store()
	s := r.described(id)
	is(r, "state", s.ConnectionState, types.ConnectionStateTypeDisconnected)
	is(r, "endpoint", *s.XksProxyConfiguration.UriEndpoint, p.Endpoint)
	refused(r, "UnsupportedOperationException", (*kms.Client).CreateCustomKeyStore, &kms.CreateCustomKeyStoreInput{
		CustomKeyStoreName: aws.String("hsm"), CloudHsmClusterId: aws.String("cluster-2a34b5cdefg"), KeyStorePassword: aws.String("kmsPswd"),
		TrustAnchorCertificate: aws.String("certificate"),
	})
}

func sdkConnectCustomKeyStore(r *sdkRound) {
	id, _ := r.store()
	r.connect(id)
	key := call(r, (*kms.Client).CreateKey, &kms.CreateKeyInput{
		Origin: types.OriginTypeExternalKeyStore, CustomKeyStoreId: id, XksKeyId: aws.String("external"),
	}).KeyMetadata.KeyId
	blob := call(r, (*kms.Client).Encrypt, &kms.EncryptInput{KeyId: key, Plaintext: []byte("outside")}).CiphertextBlob
	is(r, "plaintext", string(call(r, (*kms.Client).Decrypt, &kms.DecryptInput{CiphertextBlob: blob}).Plaintext), "outside")
	call(r, (*kms.Client).DisconnectCustomKeyStore, &kms.DisconnectCustomKeyStoreInput{CustomKeyStoreId: id})
	refused(r, "KMSInvalidStateException", (*kms.Client).Decrypt, &kms.DecryptInput{CiphertextBlob: blob})
	refused(r, "CustomKeyStoreHasCMKsException", (*kms.Client).DeleteCustomKeyStore, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: id})
}

func sdkDescribeCustomKeyStores(r *sdkRound) {
	id, _ := r.store()
	is(r, "name", *r.described(id).CustomKeyStoreName, r.Name())
}

func sdkUpdateCustomKeyStore(r *sdkRound) {
	id, _ := r.store()
	call(r, (*kms.Client).UpdateCustomKeyStore, &kms.UpdateCustomKeyStoreInput{CustomKeyStoreId: id, NewCustomKeyStoreName: aws.String("renamed")})
	is(r, "name", *r.described(id).CustomKeyStoreName, "renamed")
}

func sdkDisconnectCustomKeyStore(r *sdkRound) {
	id, _ := r.store()
	r.connect(id)
	call(r, (*kms.Client).DisconnectCustomKeyStore, &kms.DisconnectCustomKeyStoreInput{CustomKeyStoreId: id})
	is(r, "state", r.described(id).ConnectionState, types.ConnectionStateTypeDisconnected)
}

func sdkDeleteCustomKeyStore(r *sdkRound) {
	id, _ := r.store()
	call(r, (*kms.Client).DeleteCustomKeyStore, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: id})
	refused(r, "CustomKeyStoreNotFoundException", (*kms.Client).DescribeCustomKeyStores, &kms.DescribeCustomKeyStoresInput{CustomKeyStoreId: id})
}
