package keyengine

import (
	"cmp"
	"maps"
	"slices"

	"github.com/conclavekms/conclave/keyengine/internal/iamops"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
)

// tables has the operations of each service by name.
var tables = map[Service]map[string]*Operation{
	KMS: ops.Table,
	IAM: iamops.Table,
}

// OperationNamed returns the operation of a service with the given AWS name, or nil.
func OperationNamed(service Service, name string) *Operation { return tables[service][name] }

// Operations returns all operations, ordered by service and name.
func Operations() []*Operation {
	var list []*Operation
	for _, service := range slices.Sorted(maps.Keys(tables)) {
		list = append(list, OperationsOf(service)...)
	}
	return list
}

// OperationsOf returns the operations of a service, ordered by name.
func OperationsOf(service Service) []*Operation {
	return slices.SortedFunc(maps.Values(tables[service]), func(a, b *Operation) int { return cmp.Compare(a.Name, b.Name) })
}
