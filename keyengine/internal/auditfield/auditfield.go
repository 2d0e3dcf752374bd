// Package auditfield creates the fields of audit records, including those for the members
// of a request. Only members whose schema permits it are included.
package auditfield

import (
	"slices"
	"strings"

	"github.com/conclavekms/conclave/auditlog/auditpb"
)

// Every request has several fields, so each is a single allocation together with its value.

// Text returns a field with a text.
func Text(name, value string) *auditpb.Field {
	var f struct {
		field auditpb.Field
		value auditpb.Field_Text
	}
	f.value.Text = value
	f.field.Name, f.field.Value = name, &f.value
	return &f.field
}

// Number returns a field with a number.
func Number(name string, value int) *auditpb.Field {
	return &auditpb.Field{Name: name, Value: &auditpb.Field_Number{Number: int64(value)}}
}

// Flag returns a field with a boolean.
func Flag(name string, value bool) *auditpb.Field {
	return &auditpb.Field{Name: name, Value: &auditpb.Field_Flag{Flag: value}}
}

// TextList returns a field with a list. It keeps items.
func TextList(name string, items []string) *auditpb.Field {
	var f struct {
		field auditpb.Field
		value auditpb.Field_List
		list  auditpb.TextList
	}
	f.list.Items = items
	f.value.List = &f.list
	f.field.Name, f.field.Value = name, &f.value
	return &f.field
}

// TextMap returns a field with the pairs of m in the order of their keys, as records
// require.
func TextMap(name string, m map[string]string) *auditpb.Field {
	var f struct {
		field auditpb.Field
		value auditpb.Field_Map
		list  auditpb.TextMap
		pairs [1]*auditpb.TextPair
		pair  [1]auditpb.TextPair
	}
	free := f.pair[:]
	f.list.Pairs = f.pairs[:0]
	if len(m) > len(free) {
		free = make([]auditpb.TextPair, len(m))
		f.list.Pairs = make([]*auditpb.TextPair, 0, len(m))
	}
	for k, v := range m {
		p := &free[len(f.list.Pairs)]
		p.Key, p.Value = k, v
		f.list.Pairs = append(f.list.Pairs, p)
	}
	slices.SortFunc(f.list.Pairs, func(a, b *auditpb.TextPair) int { return strings.Compare(a.Key, b.Key) })
	f.value.Map = &f.list
	f.field.Name, f.field.Value = name, &f.value
	return &f.field
}

// TextOf returns the text of the first field with a name; "" if there is none.
func TextOf(fields []*auditpb.Field, name string) string {
	for _, f := range fields {
		if f.GetName() == name {
			return f.GetText()
		}
	}
	return ""
}

// TextIn returns a text of a field that is a map; "" if there is none.
func TextIn(fields []*auditpb.Field, name, key string) string {
	for _, f := range fields {
		if f.GetName() != name {
			continue
		}
		for _, p := range f.GetMap().GetPairs() {
			if p.GetKey() == key {
				return p.GetValue()
			}
		}
	}
	return ""
}
