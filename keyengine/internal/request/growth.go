package request

import "github.com/conclavekms/conclave/keyengine/kmsapi"

// Growing are the operations that make the state grow for good. They are refused
// while the nodes' disks have little room, so that what restricts, deletes and uses
// keys goes on for longer: PutKeyPolicy is not among them, as it must always be
// possible to take authority away.
var Growing = map[string]bool{
	"CreateKey": true, "ReplicateKey": true, "ImportKeyMaterial": true, "RotateKeyOnDemand": true,
	"CreateAlias": true, "CreateGrant": true, "TagResource": true, "CreateCustomKeyStore": true,
}

// mayGrow refuses an operation for which there may soon be no room. The code is the
// one that AWS has for quotas: clients report it at once, where they would repeat
// what is 5xx, and nothing gets better by repeating.
func (s *Services) mayGrow(op *Operation) error {
	if s.MayGrow == nil || !Growing[op.Name] || s.MayGrow() {
		return nil
	}
	return kmsapi.Errorf(kmsapi.ErrLimitExceeded, "The disks of the cluster's nodes have too little room for more keys, aliases, grants and tags. Make room on them; what is there can be used.")
}
