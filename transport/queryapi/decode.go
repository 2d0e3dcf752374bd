package queryapi

import (
	"encoding/base64"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// decode decodes the form into the structure that in points to, by its schema. Absent
// members leave fields nil; an empty list, map or structure is a parameter with its name
// and no value. Unknown members are ignored in structures that restrict nothing; elsewhere
// they are a ValidationException, as is everywhere a name that differs from a member's only
// in case, hyphens or underscores. Values of the wrong type are malformed, and so are lists
// whose items are not numbered from 1 without gaps.
func (f form) decode(s *kmsapi.Schema, in any) error {
	v, err := s.Of(in)
	if err != nil {
		return err
	}
	return f.structure(s, v, 0, "")
}

// structure decodes parameters whose names have the names of members at the given byte. The
// structure is the value of the member within.
func (f form) structure(s *kmsapi.Schema, v reflect.Value, at int, within string) error {
	var unknown error
	for len(f) > 0 {
		name, end, group, rest := f.next(at)
		f = rest
		if i, ok := s.Index([]byte(name)); ok {
			if err := group.member(&s.Members[i], v.Field(i), end); err != nil {
				return err
			}
		} else if unknown == nil && (at > 0 || !isProtocol(name)) {
			unknown = s.Unknown(name, within)
		}
	}
	return unknown
}

// isProtocol reports whether a parameter with that name is part of the protocol, and not a
// member of the input. Those of a signature are here only if the form is the query string.
func isProtocol(name string) bool {
	return name == "Action" || name == "Version" || strings.HasPrefix(name, "X-Amz-")
}

// member decodes the value of a member, whose name ends at the given byte.
func (f form) member(m *kmsapi.Member, v reflect.Value, end int) error {
	switch m.Kind {
	case kmsapi.KindStructure:
		v.Set(reflect.New(m.Inner.Type))
		if empty, err := f.empty(m, end); empty || err != nil {
			return err
		}
		return f.structure(m.Inner, v.Elem(), end+1, m.Name)
	case kmsapi.KindStructureList:
		v.Set(reflect.MakeSlice(v.Type(), 0, 0))
		return f.items(m, end, "member", func(item form, end int) error {
			to := reflect.New(m.Inner.Type).Elem()
			empty, err := item.empty(m, end)
			if !empty && err == nil {
				err = item.structure(m.Inner, to, end+1, m.Name)
			}
			v.Set(reflect.Append(v, to))
			return err
		})
	case kmsapi.KindTextList:
		list := []string{}
		err := f.items(m, end, "member", func(item form, end int) error {
			s, err := item.single(m, end)
			list = append(list, s)
			return err
		})
		v.Set(reflect.ValueOf(list))
		return err
	case kmsapi.KindTextMap:
		pairs := make(map[string]string)
		v.Set(reflect.ValueOf(pairs))
		return f.items(m, end, "entry", func(entry form, end int) error { return entry.pair(m, end, pairs) })
	}
	s, err := f.single(m, end)
	if err != nil {
		return err
	}
	return scalar(m, v, s)
}

// single returns the value of a member that is not nested.
func (f form) single(m *kmsapi.Member, end int) (string, error) {
	if len(f) > 1 || !f.ends(end) {
		return "", malformed("%s has a single value.", m.Name)
	}
	return f[0].value, nil
}

// empty reports whether a nested member is there but has nothing in it.
func (f form) empty(m *kmsapi.Member, end int) (bool, error) {
	if !f.ends(end) {
		return false, nil
	}
	if len(f) > 1 || f[0].value != "" {
		return false, malformed("%s is nested and has no value of its own.", m.Name)
	}
	return true, nil
}

// items calls item with the parameters of each item of a list or map, in the order of their
// numbers, and the byte where these end.
func (f form) items(m *kmsapi.Member, end int, word string, item func(form, int) error) error {
	if empty, err := f.empty(m, end); empty || err != nil {
		return err
	}
	bad := func() error {
		return malformed("%s is a list: its items are %s.%s.1 and so on, without gaps.", m.Name, m.Name, word)
	}
	segment, end, f, rest := f.next(end + 1)
	if segment != word || len(rest) > 0 || f.ends(end) {
		return bad()
	}
	for n := 1; len(f) > 0; n++ {
		number, at, group, rest := f.next(end + 1)
		if number != strconv.Itoa(n) {
			return bad()
		}
		if err := item(group, at); err != nil {
			return err
		}
		f = rest
	}
	return nil
}

// pair adds an entry of a map.
func (f form) pair(m *kmsapi.Member, end int, pairs map[string]string) error {
	if len(f) == 2 && f[0].name[end:] == ".key" && f[1].name[end:] == ".value" {
		if _, twice := pairs[f[0].value]; !twice {
			pairs[f[0].value] = f[1].value
			return nil
		}
	}
	return malformed("%s is a map: its entries are %s.entry.1.key, %s.entry.1.value and so on, with different keys.", m.Name, m.Name, m.Name)
}

// maxNumber is the length of the longest number that is parsed.
const maxNumber = 16

// strict decodes base64.
var strict = base64.StdEncoding.Strict()

// scalar decodes a value that is not nested.
func scalar(m *kmsapi.Member, v reflect.Value, s string) error {
	switch m.Kind {
	case kmsapi.KindText:
		v.Set(reflect.ValueOf(&s))
		return nil
	case kmsapi.KindNumber:
		if n, err := strconv.ParseInt(s, 10, 32); err == nil && len(s) <= maxNumber {
			v.Set(reflect.ValueOf(new(int32(n))))
			return nil
		}
	case kmsapi.KindFlag:
		if s == "true" || s == "false" {
			v.Set(reflect.ValueOf(new(s == "true")))
			return nil
		}
	case kmsapi.KindTime:
		// Years 1 to 9999, which answers and records can represent.
		if t, err := time.Parse(time.RFC3339Nano, s); err == nil && t.UTC().Year() >= 1 && t.UTC().Year() <= 9999 {
			v.Set(reflect.ValueOf(new(t.UTC())))
			return nil
		}
	case kmsapi.KindBlob:
		b, err := strict.AppendDecode([]byte{}, []byte(s)) // an empty blob is not an absent one
		// The decoder ignores line breaks; then the lengths differ.
		if err == nil && strict.EncodedLen(len(b)) == len(s) {
			v.SetBytes(b)
			return nil
		}
		clear(b[:cap(b)])
	}
	return malformed("The value of %s is not of its type.", m.Name)
}
