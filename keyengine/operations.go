package keyengine

import (
	"maps"
	"slices"

	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// OperationNamed returns the operation with the given AWS name, or nil.
func OperationNamed(name string) *request.Operation { return ops.Table[name] }

// Operations returns all operations, ordered by name.
func Operations() []*request.Operation {
	list := make([]*request.Operation, 0, len(ops.Table))
	for _, name := range slices.Sorted(maps.Keys(ops.Table)) {
		list = append(list, ops.Table[name])
	}
	return list
}
