package request

import (
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Growing are the operations that make the state grow for good. They are refused when the
// nodes' disks have little room left, so that keys can be used, restricted and deleted for
// longer. PutKeyPolicy is not one of them, because it must always be possible to withdraw
// authority; nor are CreateAccessKey, with which a key is replaced, and what attaches policies.
var Growing = map[string]bool{
	"CreateKey": true, "ReplicateKey": true, "ImportKeyMaterial": true, "RotateKeyOnDemand": true,
	"CreateAlias": true, "CreateGrant": true, "TagResource": true, "CreateCustomKeyStore": true,
	"CreateUser": true, "CreateGroup": true, "CreateRole": true, "CreatePolicy": true, "CreateOpenIDConnectProvider": true,
	"TagUser": true, "TagRole": true, "TagPolicy": true, "TagOpenIDConnectProvider": true,
}

// mayGrow refuses a growing operation when disk space is low. Its error code is the one for
// quotas, because clients report that at once; they would retry a 5xx, which cannot help
// here.
func (s *Services) mayGrow(op *Operation) error {
	if s.MayGrow == nil || !Growing[op.Name] || s.MayGrow() {
		return nil
	}
	full := kmsapi.ErrLimitExceeded
	if op.Service == IAM {
		full = iamapi.ErrLimitExceeded
	}
	return kmsapi.Errorf(full, "The disks of the cluster's nodes have too little room for more keys, users and the like. Make room on them; what is there can be used.")
}
