package keyengine

import (
	"maps"
	"slices"
)

// OperationNamed is the operation that AWS calls name; nil when there is none.
func OperationNamed(name string) *Operation { return table[name] }

// Operations are all operations by name.
func Operations() []*Operation {
	ops := make([]*Operation, 0, len(table))
	for _, name := range slices.Sorted(maps.Keys(table)) {
		ops = append(ops, table[name])
	}
	return ops
}
