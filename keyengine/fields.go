package keyengine

import (
	"slices"
	"strings"

	"github.com/conclavekms/conclave/auditlog/auditpb"
)

// The fields of records, as every request has several of them: each is one
// allocation together with its value.

func text(name, value string) *auditpb.Field {
	var f struct {
		field auditpb.Field
		value auditpb.Field_Text
	}
	f.value.Text = value
	f.field.Name, f.field.Value = name, &f.value
	return &f.field
}

func number(name string, value int) *auditpb.Field {
	return &auditpb.Field{Name: name, Value: &auditpb.Field_Number{Number: int64(value)}}
}

func flag(name string, value bool) *auditpb.Field {
	return &auditpb.Field{Name: name, Value: &auditpb.Field_Flag{Flag: value}}
}

func textList(name string, items []string) *auditpb.Field {
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

// textMap has the pairs in the order of their keys, as records have to.
func textMap(name string, m map[string]string) *auditpb.Field {
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
		p := take(&free)
		p.Key, p.Value = k, v
		f.list.Pairs = append(f.list.Pairs, p)
	}
	slices.SortFunc(f.list.Pairs, func(a, b *auditpb.TextPair) int { return strings.Compare(a.Key, b.Key) })
	f.value.Map = &f.list
	f.field.Name, f.field.Value = name, &f.value
	return &f.field
}
