package keyengine

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxViolations bounds what one answer reports, so that a small request cannot
// ask for a huge one. AWS states no bound; nobody reads the hundredth.
const maxViolations = 100

// validate checks an input against its plan and reports everything that is wrong
// at once, in AWS's words.
func (p *plan) validate(in any) error {
	var v violations
	v.structure(p, reflect.ValueOf(in).Elem(), "")
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

func (v *violations) structure(p *plan, s reflect.Value, prefix string) {
	for i := range p.members {
		m := &p.members[i]
		f := s.Field(m.index)
		if f.IsNil() {
			if m.required {
				value := "Value null"
				if m.sensitive {
					value = "Value"
				}
				v.add(value, prefix+m.name, "Member must not be null")
			}
			continue
		}
		v.member(m, f, prefix)
	}
}

func (v *violations) member(m *member, f reflect.Value, prefix string) {
	switch m.kind {
	case textMember:
		s := f.Elem().String()
		for c := range m.broken(s) {
			v.add(m.shown(s), prefix+m.name, c)
		}
	case numberMember:
		n := int(f.Elem().Int())
		if b := m.value; b.set && n < b.min {
			v.add(m.shown(strconv.Itoa(n)), prefix+m.name, "Member must have value greater than or equal to "+strconv.Itoa(b.min))
		} else if b.set && n > b.max {
			v.add(m.shown(strconv.Itoa(n)), prefix+m.name, "Member must have value less than or equal to "+strconv.Itoa(b.max))
		}
	case blobMember:
		if c := m.length.broken(f.Len()); c != "" {
			v.add("Value", prefix+m.name, c)
		}
	case textListMember:
		v.textList(m, f.Interface().([]string), prefix)
	case textMapMember:
		v.textMap(m, f.Interface().(map[string]string), prefix)
	case structMember:
		v.structure(m.inner, f.Elem(), prefix+m.name+".")
	case structListMember:
		if c := m.length.broken(f.Len()); c != "" {
			v.add("Value", prefix+m.name, c)
		}
		for i := range f.Len() {
			if v.n >= maxViolations {
				return
			}
			v.structure(m.inner, f.Index(i), prefix+m.name+"."+strconv.Itoa(i+1)+".member.")
		}
	}
}

// textList reports the list as a whole, as AWS does for lists of plain text.
func (v *violations) textList(m *member, list []string, prefix string) {
	if c := m.length.broken(len(list)); c != "" {
		v.add(m.shown("["+strings.Join(list, ", ")+"]"), prefix+m.name, c)
	}
	var broken []string
	for _, s := range list {
		for c := range m.each.broken(s) {
			if c != notText && m.each.length.set {
				c = m.each.length.text() // AWS lists both bounds, whichever is broken
			}
			broken = append(broken, c)
		}
		if len(broken) > 0 {
			v.add(m.shown("["+strings.Join(list, ", ")+"]"), prefix+m.name, "Member must satisfy constraint: ["+strings.Join(broken, ", ")+"]")
			return
		}
	}
}

func (v *violations) textMap(m *member, pairs map[string]string, prefix string) {
	size, text := 0, true
	for k, s := range pairs {
		size += len(k) + len(s)
		text = text && utf8.ValidString(k) && utf8.ValidString(s)
	}
	if !text {
		v.add("Value", prefix+m.name, notText)
	}
	if m.total > 0 && size > m.total {
		v.add("Value", prefix+m.name, "Member must have keys and values of at most "+strconv.Itoa(m.total)+" bytes in all")
	}
}

// notText: what is not Unicode has no place in the state, where it could not be
// encoded. Faces refuse it before; this holds for what they miss.
const notText = "Member must be Unicode text"

// broken yields the constraints that a text breaks.
func (m *member) broken(s string) func(func(string) bool) {
	return func(yield func(string) bool) {
		if m == nil {
			return
		}
		if !utf8.ValidString(s) {
			yield(notText)
			return
		}
		if m.length.set {
			if c := m.length.broken(length(s)); c != "" && !yield(c) {
				return
			}
		}
		if m.enum != nil && !m.enum.has(s) && !yield("Member must satisfy enum value set: "+m.enum.text) {
			return
		}
		if m.pattern != nil && !m.pattern.match(s) {
			yield("Member must satisfy regular expression pattern: " + m.pattern.text)
		}
	}
}

func (e *enum) has(s string) bool {
	for _, v := range e.values {
		if v == s {
			return true
		}
	}
	return false
}

func (b bounds) broken(n int) string {
	switch {
	case b.set && n < b.min:
		return "Member must have length greater than or equal to " + strconv.Itoa(b.min)
	case b.set && n > b.max:
		return "Member must have length less than or equal to " + strconv.Itoa(b.max)
	}
	return ""
}

func (b bounds) text() string {
	return "Member must have length less than or equal to " + strconv.Itoa(b.max) +
		", Member must have length greater than or equal to " + strconv.Itoa(b.min)
}

// shown is how a message begins that may show the value.
func (m *member) shown(s string) string {
	if m.sensitive {
		return "Value"
	}
	return "Value '" + strings.ToValidUTF8(s, "\uFFFD") + "'"
}
