package kmsapi

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxViolations limits the violations in one answer, so that a small request cannot cause a
// huge one. AWS documents no limit.
const maxViolations = 100

// Validate validates an input, which is a pointer to a structure of the schema. It reports
// all violations together, in AWS's words.
func (s *Schema) Validate(in any) error {
	var v violations
	v.structure(s, reflect.ValueOf(in).Elem(), "")
	if v.n == 0 {
		return nil
	}
	errors := "errors"
	if v.n == 1 {
		errors = "error"
	}
	return &Error{Code: ErrValidation.Code, Message: fmt.Sprintf("%d validation %s detected: %s", v.n, errors, v.text.String())}
}

type violations struct {
	n    int
	text strings.Builder
}

func (v *violations) add(value, path, constraint string) {
	if v.n >= maxViolations {
		return
	}
	if v.n++; v.n > 1 {
		v.text.WriteString("; ")
	}
	v.text.WriteString(value + " at '" + path + "' failed to satisfy constraint: " + constraint)
}

func (v *violations) structure(p *Schema, s reflect.Value, prefix string) {
	for i := range p.Members {
		m := &p.Members[i]
		f := s.Field(i)
		if f.IsNil() {
			if m.Required {
				value := "Value null"
				if m.Secret {
					value = "Value"
				}
				v.add(value, prefix+m.Label, "Member must not be null")
			}
			continue
		}
		v.member(m, f, prefix)
	}
}

func (v *violations) member(m *Member, f reflect.Value, prefix string) {
	switch m.Kind {
	case KindText:
		s := f.Elem().String()
		for c := range m.broken(s) {
			v.add(m.shown(s), prefix+m.Label, c)
		}
	case KindNumber:
		n := int(f.Elem().Int())
		if b := m.Range; b.Set && n < b.Min {
			v.add(m.shown(strconv.Itoa(n)), prefix+m.Label, "Member must have value greater than or equal to "+strconv.Itoa(b.Min))
		} else if b.Set && n > b.Max {
			v.add(m.shown(strconv.Itoa(n)), prefix+m.Label, "Member must have value less than or equal to "+strconv.Itoa(b.Max))
		}
	case KindBlob:
		if c := m.Length.broken(f.Len()); c != "" {
			v.add("Value", prefix+m.Label, c)
		}
	case KindTextList:
		v.textList(m, f.Interface().([]string), prefix)
	case KindTextMap:
		v.textMap(m, f.Interface().(map[string]string), prefix)
	case KindStructure:
		v.structure(m.Inner, f.Elem(), prefix+m.Label+".")
	case KindStructureList:
		if c := m.Length.broken(f.Len()); c != "" {
			v.add("Value", prefix+m.Label, c)
		}
		for i := range f.Len() {
			if v.n >= maxViolations {
				return
			}
			v.structure(m.Inner, f.Index(i), prefix+m.Label+"."+strconv.Itoa(i+1)+".member.")
		}
	}
}

// textList reports violations for the list as a whole, as AWS does for lists of plain text.
func (v *violations) textList(m *Member, list []string, prefix string) {
	if c := m.Length.broken(len(list)); c != "" {
		v.add(m.shown("["+strings.Join(list, ", ")+"]"), prefix+m.Label, c)
	}
	var broken []string
	for _, s := range list {
		for c := range m.Each.broken(s) {
			if c != notText && m.Each.Length.Set {
				c = m.Each.Length.text() // AWS lists both bounds, whichever is violated
			}
			broken = append(broken, c)
		}
		if len(broken) > 0 {
			v.add(m.shown("["+strings.Join(list, ", ")+"]"), prefix+m.Label, "Member must satisfy constraint: ["+strings.Join(broken, ", ")+"]")
			return
		}
	}
}

func (v *violations) textMap(m *Member, pairs map[string]string, prefix string) {
	size, text := 0, true
	for k, s := range pairs {
		size += len(k) + len(s)
		text = text && utf8.ValidString(k) && utf8.ValidString(s)
	}
	if !text {
		v.add("Value", prefix+m.Label, notText)
	}
	if m.Total > 0 && size > m.Total {
		v.add("Value", prefix+m.Label, "Member must have keys and values of at most "+strconv.Itoa(m.Total)+" bytes in all")
	}
}

// notText is the violation of a text that is not valid UTF-8, which could not be encoded in
// the state. Faces refuse it before; this check is for what they miss.
const notText = "Member must be Unicode text"

// broken yields the constraints that a text violates.
func (m *Member) broken(s string) func(func(string) bool) {
	return func(yield func(string) bool) {
		if m == nil {
			return
		}
		if !utf8.ValidString(s) {
			yield(notText)
			return
		}
		if m.Length.Set {
			if c := m.Length.broken(length(s)); c != "" && !yield(c) {
				return
			}
		}
		if m.Enum != nil && !m.Enum.Has(s) && !yield("Member must satisfy enum value set: "+m.Enum.text) {
			return
		}
		if m.Pattern != nil && !m.Pattern.match(s) {
			yield("Member must satisfy regular expression pattern: " + m.Pattern.text)
		}
	}
}

func (b Bounds) broken(n int) string {
	switch {
	case b.Set && n < b.Min:
		return "Member must have length greater than or equal to " + strconv.Itoa(b.Min)
	case b.Set && n > b.Max:
		return "Member must have length less than or equal to " + strconv.Itoa(b.Max)
	}
	return ""
}

func (b Bounds) text() string {
	return "Member must have length less than or equal to " + strconv.Itoa(b.Max) +
		", Member must have length greater than or equal to " + strconv.Itoa(b.Min)
}

// shown returns the beginning of a message, with the value if that may be shown.
func (m *Member) shown(s string) string {
	if m.Secret {
		return "Value"
	}
	return "Value '" + strings.ToValidUTF8(s, "\uFFFD") + "'"
}

// length returns the length of a text in characters, as AWS counts it.
func length(s string) int { return utf8.RuneCountInString(s) }
