package integration

// pending are operations of AWS's model that are not served yet.
var pending = []string{
	"CreateGrant", "ListGrants", "ListRetirableGrants", "RetireGrant", "RevokeGrant",
	"CreateCustomKeyStore", "ConnectCustomKeyStore", "DescribeCustomKeyStores", "UpdateCustomKeyStore", "DisconnectCustomKeyStore", "DeleteCustomKeyStore",
}

// pendingMembers are members of answers that belong to what is not served yet.
var pendingMembers = []string{
	"ListGrantsResponse.NextMarker", "GrantListEntry.RetiringPrincipal", "GrantListEntry.Constraints", "GrantConstraints.EncryptionContextSubset", "GrantConstraints.EncryptionContextEquals",
	"DescribeCustomKeyStoresResponse.NextMarker", "KeyMetadata.CustomKeyStoreId", "KeyMetadata.XksKeyConfiguration",
	"CustomKeyStoresListEntry.ConnectionErrorCode", "CustomKeyStoresListEntry.XksProxyConfiguration",
	"XksProxyConfigurationType.VpcEndpointServiceName", "XksProxyConfigurationType.VpcEndpointServiceOwner",
}
