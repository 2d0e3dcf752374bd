package keyengine

import (
	"fmt"
	"maps"
	"slices"

	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/stsops"
)

// table has the operations of all services.
var table = merged(ops.Table, stsops.Table)

func merged(tables ...map[string]*request.Operation) map[string]*request.Operation {
	all := make(map[string]*request.Operation)
	for _, t := range tables {
		for name, op := range t {
			if all[name] != nil {
				panic(fmt.Sprintf("keyengine: two operations are called %s", name))
			}
			all[name] = op
		}
	}
	return all
}

// OperationNamed returns the operation with the given AWS name, or nil.
func OperationNamed(name string) *request.Operation { return table[name] }

// Operations returns all operations of KMS, ordered by name.
func Operations() []*request.Operation {
	list := make([]*request.Operation, 0, len(ops.Table))
	for _, name := range slices.Sorted(maps.Keys(ops.Table)) {
		list = append(list, ops.Table[name])
	}
	return list
}
