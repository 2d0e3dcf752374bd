package integration

// pending are operations of AWS's model that are not served yet.
var pending = []string{
	"CreateCustomKeyStore", "ConnectCustomKeyStore", "DescribeCustomKeyStores", "UpdateCustomKeyStore", "DisconnectCustomKeyStore", "DeleteCustomKeyStore",
}

// pendingMembers are members of answers that belong to what is not served yet.
var pendingMembers = []string{
	"DescribeCustomKeyStoresResponse.NextMarker", "KeyMetadata.CustomKeyStoreId", "KeyMetadata.XksKeyConfiguration",
	"CustomKeyStoresListEntry.ConnectionErrorCode", "CustomKeyStoresListEntry.XksProxyConfiguration",
	"XksProxyConfigurationType.VpcEndpointServiceName", "XksProxyConfigurationType.VpcEndpointServiceOwner",
}
