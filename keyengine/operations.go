package keyengine

import (
	"cmp"
	"maps"
	"slices"

	"github.com/conclavekms/conclave/keyengine/internal/iamops"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/simulateops"
	"github.com/conclavekms/conclave/keyengine/internal/stsops"
	"github.com/conclavekms/conclave/keyengine/internal/trailops"
)

// tables has the operations of each service by name.
var tables = byService(ops.Table, iamops.Table, simulateops.Table, stsops.Table, trailops.Table)

func byService(all ...map[string]*Operation) map[Service]map[string]*Operation {
	tables := make(map[Service]map[string]*Operation)
	for _, table := range all {
		for name, op := range table {
			of := tables[op.Service]
			if of == nil {
				of = make(map[string]*Operation)
				tables[op.Service] = of
			}
			if of[name] != nil {
				panic("keyengine: two operations of " + string(op.Service) + " are called " + name)
			}
			of[name] = op
		}
	}
	return tables
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
