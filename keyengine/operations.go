package keyengine

import (
	"maps"
	"slices"

	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// OperationNamed is the operation that AWS calls name; nil when there is none.
func OperationNamed(name string) *request.Operation { return ops.Table[name] }

// Operations are all operations by name.
func Operations() []*request.Operation {
	list := make([]*request.Operation, 0, len(ops.Table))
	for _, name := range slices.Sorted(maps.Keys(ops.Table)) {
		list = append(list, ops.Table[name])
	}
	return list
}
