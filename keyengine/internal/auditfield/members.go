package auditfield

import (
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Members are the members of an operation's input that its records contain.
type Members struct {
	schema *kmsapi.Schema
	// defaults are the fields for absent members, by index, or nil. All records share them,
	// so they must not be changed.
	defaults []*auditpb.Field
}

// NewMembers returns the members that a schema permits in records.
func NewMembers(s *kmsapi.Schema) Members {
	r := Members{s, make([]*auditpb.Field, len(s.Members))}
	for i := range s.Members {
		if m := &s.Members[i]; m.Default != "" {
			r.defaults[i] = defaultField(m)
		}
	}
	return r
}

// Fields returns the fields for an input, which is a pointer to a structure of the schema.
func (r *Members) Fields(in any) []*auditpb.Field {
	v := reflect.ValueOf(in).Elem()
	out := make([]*auditpb.Field, 0, len(r.schema.Members))
	for i := range r.schema.Members {
		m := &r.schema.Members[i]
		if !m.Audited {
			continue
		}
		f := v.Field(i)
		if f.IsNil() {
			if r.defaults[i] != nil {
				out = append(out, r.defaults[i])
			}
			continue
		}
		out = append(out, memberField(m, f))
	}
	return out
}

// memberField returns the field for a member that is present.
func memberField(m *kmsapi.Member, f reflect.Value) *auditpb.Field {
	switch m.Kind {
	case kmsapi.KindText:
		return Text(m.Label, f.Elem().String())
	case kmsapi.KindNumber:
		return Number(m.Label, int(f.Elem().Int()))
	case kmsapi.KindFlag:
		return Flag(m.Label, f.Elem().Bool())
	case kmsapi.KindTextList:
		return TextList(m.Label, f.Interface().([]string))
	case kmsapi.KindTextMap:
		return TextMap(m.Label, f.Interface().(map[string]string))
	case kmsapi.KindTime:
		return Text(m.Label, FormatTime(*f.Interface().(*time.Time)))
	case kmsapi.KindStructure:
		return TextMap(m.Label, structureTexts(m.Inner, f.Elem()))
	case kmsapi.KindStructureList:
		return TextList(m.Label, structureLines(m.Inner, f))
	}
	return &auditpb.Field{Name: m.Label} // blobs are never recorded
}

// defaultField returns the field for an absent member. The schema has checked that the
// default is a valid value.
func defaultField(m *kmsapi.Member) *auditpb.Field {
	switch m.Kind {
	case kmsapi.KindFlag:
		return Flag(m.Label, m.Default == "true")
	case kmsapi.KindNumber:
		n, _ := strconv.Atoi(m.Default)
		return Number(m.Label, n)
	default:
		return Text(m.Label, m.Default)
	}
}

// structureTexts returns a structure of texts and maps of texts as a single map.
func structureTexts(s *kmsapi.Schema, v reflect.Value) map[string]string {
	out := make(map[string]string)
	for i := range s.Members {
		m := &s.Members[i]
		f := v.Field(i)
		if !m.Audited || f.IsNil() {
			continue
		}
		switch m.Kind {
		case kmsapi.KindText:
			out[m.Label] = f.Elem().String()
		case kmsapi.KindTextMap:
			for k, v := range f.Interface().(map[string]string) {
				out[m.Label+"."+k] = v
			}
		}
	}
	return out
}

// structureLines returns structures of texts, one line each.
func structureLines(s *kmsapi.Schema, list reflect.Value) []string {
	lines := make([]string, 0, list.Len())
	for i := range list.Len() {
		var parts []string
		for j := range s.Members {
			m := &s.Members[j]
			if f := list.Index(i).Field(j); m.Audited && m.Kind == kmsapi.KindText && !f.IsNil() {
				parts = append(parts, m.Label+"="+f.Elem().String())
			}
		}
		lines = append(lines, strings.Join(parts, " "))
	}
	return lines
}

// FormatTime formats times in records as CloudTrail does for KMS.
func FormatTime(t time.Time) string { return t.UTC().Format("Jan 2, 2006, 3:04:05 PM") }
