package integration

// pending are operations of AWS's model that are not served yet.
var pending = []string{
	"CreateGrant", "ListGrants", "ListRetirableGrants", "RetireGrant", "RevokeGrant",
	"CreateCustomKeyStore", "ConnectCustomKeyStore", "DescribeCustomKeyStores", "UpdateCustomKeyStore", "DisconnectCustomKeyStore", "DeleteCustomKeyStore",
}
