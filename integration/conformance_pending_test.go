package integration

// pending are operations that no example shows yet.
var pending = []string{
	"CreateCustomKeyStore", "ConnectCustomKeyStore", "DescribeCustomKeyStores", "UpdateCustomKeyStore", "DisconnectCustomKeyStore", "DeleteCustomKeyStore",
}

// pendingMembers are members of answers that no example shows yet.
var pendingMembers = []string{
	"DescribeCustomKeyStoresResponse.NextMarker", "KeyMetadata.CustomKeyStoreId", "KeyMetadata.XksKeyConfiguration",
	"CustomKeyStoresListEntry.ConnectionErrorCode", "CustomKeyStoresListEntry.XksProxyConfiguration",
	"XksProxyConfigurationType.VpcEndpointServiceName", "XksProxyConfigurationType.VpcEndpointServiceOwner",
}
