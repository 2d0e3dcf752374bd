package kmsapi

import "time"

// Inputs and outputs of the operations on custom key stores.

// ConnectCustomKeyStoreInput is the input of ConnectCustomKeyStore, which makes the keys in
// a key store usable.
type ConnectCustomKeyStoreInput struct {
	CustomKeyStoreId *string `kms:"required,len=1..64,log"`
}

// XksProxyAuthenticationCredential is the credential that signs requests to an external key
// store proxy.
type XksProxyAuthenticationCredential struct {
	AccessKeyId        *string `kms:"required,len=20..30,pattern=xksAccessKeyId,secret,nolog"`
	RawSecretAccessKey *string `kms:"required,len=43..64,pattern=xksSecret,secret,nolog"`
}

// Input and output of CreateCustomKeyStore, which registers a key store outside the
// cluster.
type (
	CreateCustomKeyStoreInput struct {
		CustomKeyStoreName               *string                           `kms:"required,len=1..256,log"`
		CloudHsmClusterId                *string                           `kms:"len=19..24,pattern=hsmCluster,log"`
		TrustAnchorCertificate           *string                           `kms:"len=1..5000,nolog"`
		KeyStorePassword                 *string                           `kms:"len=7..32,secret,nolog"`
		CustomKeyStoreType               *string                           `kms:"enum=CustomKeyStoreType,log"`
		XksProxyUriEndpoint              *string                           `kms:"len=10..128,pattern=xksEndpoint,log"`
		XksProxyUriPath                  *string                           `kms:"len=10..128,pattern=xksPath,log"`
		XksProxyVpcEndpointServiceName   *string                           `kms:"len=20..64,pattern=vpcService,log"`
		XksProxyVpcEndpointServiceOwner  *string                           `kms:"len=12..12,pattern=account,log"`
		XksProxyAuthenticationCredential *XksProxyAuthenticationCredential `kms:"open,log"`
		XksProxyConnectivity             *string                           `kms:"enum=XksProxyConnectivityType,log"`
	}

	CreateCustomKeyStoreOutput struct {
		CustomKeyStoreId *string
	}
)

// DeleteCustomKeyStoreInput is the input of DeleteCustomKeyStore, which deletes a key store
// without keys.
type DeleteCustomKeyStoreInput struct {
	CustomKeyStoreId *string `kms:"required,len=1..64,log"`
}

// XksProxyConfiguration describes how an external key store is reached.
type XksProxyConfiguration struct {
	Connectivity            *string
	AccessKeyId             *string `kms:"secret"`
	UriEndpoint             *string
	UriPath                 *string
	VpcEndpointServiceName  *string
	VpcEndpointServiceOwner *string
}

// CustomKeyStoresListEntry describes a custom key store.
type CustomKeyStoresListEntry struct {
	CustomKeyStoreId       *string
	CustomKeyStoreName     *string
	CloudHsmClusterId      *string
	TrustAnchorCertificate *string
	ConnectionState        *string
	ConnectionErrorCode    *string
	CreationDate           *time.Time
	CustomKeyStoreType     *string
	XksProxyConfiguration  *XksProxyConfiguration
}

// Input and output of DescribeCustomKeyStores, which lists all key stores or describes one.
type (
	DescribeCustomKeyStoresInput struct {
		CustomKeyStoreId   *string `kms:"len=1..64,narrows,log"`
		CustomKeyStoreName *string `kms:"len=1..256,narrows,log"`
		Limit              *int32  `kms:"range=1..1000,log"`
		Marker             *string `kms:"len=1..1024,pattern=marker,log"`
	}

	DescribeCustomKeyStoresOutput struct {
		CustomKeyStores []CustomKeyStoresListEntry
		NextMarker      *string
		Truncated       *bool
	}
)

// DisconnectCustomKeyStoreInput is the input of DisconnectCustomKeyStore, which makes the
// keys in a key store unusable until it is connected again.
type DisconnectCustomKeyStoreInput struct {
	CustomKeyStoreId *string `kms:"required,len=1..64,log"`
}

// UpdateCustomKeyStoreInput is the input of UpdateCustomKeyStore, which changes the
// settings of a key store.
type UpdateCustomKeyStoreInput struct {
	CustomKeyStoreId                 *string                           `kms:"required,len=1..64,log"`
	NewCustomKeyStoreName            *string                           `kms:"len=1..256,log"`
	KeyStorePassword                 *string                           `kms:"len=7..32,secret,nolog"`
	CloudHsmClusterId                *string                           `kms:"len=19..24,pattern=hsmCluster,log"`
	XksProxyUriEndpoint              *string                           `kms:"len=10..128,pattern=xksEndpoint,log"`
	XksProxyUriPath                  *string                           `kms:"len=10..128,pattern=xksPath,log"`
	XksProxyVpcEndpointServiceName   *string                           `kms:"len=20..64,pattern=vpcService,log"`
	XksProxyVpcEndpointServiceOwner  *string                           `kms:"len=12..12,pattern=account,log"`
	XksProxyAuthenticationCredential *XksProxyAuthenticationCredential `kms:"open,log"`
	XksProxyConnectivity             *string                           `kms:"enum=XksProxyConnectivityType,log"`
}
