package awsapi

import (
	"encoding/base64"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
)

// appendOutput appends the JSON of the structure that out points to. Members
// that are nil are left out. The others are in the order of the fields, and
// maps in the order of their keys, so that an output has only one encoding.
//
// If dst has to grow, the old buffer is overwritten.
func appendOutput(dst []byte, s *kmsapi.Schema, out any) ([]byte, error) {
	v, err := s.Of(out)
	if err != nil {
		return nil, err
	}
	if !v.IsValid() { // a nil pointer
		return append(dst, "{}"...), nil
	}
	return appendStructure(dst, s, v), nil
}

func appendStructure(b []byte, s *kmsapi.Schema, v reflect.Value) []byte {
	b = append(b, '{')
	start := len(b)
	for i := range s.Members {
		fv := v.Field(i)
		if fv.IsNil() {
			continue
		}
		if len(b) > start {
			b = append(b, ',')
		}
		m := &s.Members[i]
		b = append(b, '"')
		b = append(b, m.Name...)
		b = append(b, '"', ':')
		b = appendMember(b, m, fv)
	}
	return append(b, '}')
}

func appendMember(b []byte, m *kmsapi.Member, v reflect.Value) []byte {
	switch x := v.Addr().Interface().(type) {
	case **string:
		return appendText(b, **x)
	case **int32:
		return strconv.AppendInt(b, int64(**x), 10)
	case **bool:
		return strconv.AppendBool(b, **x)
	case **time.Time:
		return appendTime(b, **x)
	case *[]byte:
		b = transport.Grow(b, base64.StdEncoding.EncodedLen(len(*x))+2)
		b = append(b, '"')
		b = base64.StdEncoding.AppendEncode(b, *x)
		return append(b, '"')
	case *[]string:
		b = append(b, '[')
		for i, s := range *x {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendText(b, s)
		}
		return append(b, ']')
	case *map[string]string:
		b = append(b, '{')
		for i, k := range slices.Sorted(maps.Keys(*x)) {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendText(b, k)
			b = append(b, ':')
			b = appendText(b, (*x)[k])
		}
		return append(b, '}')
	}
	if m.Kind == kmsapi.KindStructure {
		return appendStructure(b, m.Inner, v.Elem())
	}
	b = append(b, '[')
	for i := range v.Len() {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendStructure(b, m.Inner, v.Index(i))
	}
	return append(b, ']')
}

// appendText appends a string. Invalid UTF-8 is replaced by U+FFFD; the
// engine's texts have none.
func appendText[T string | []byte](b []byte, s T) []byte {
	b = transport.Grow(b, len(s)+2)
	b, _ = jsontext.AppendQuote(b, s)
	return b
}

// appendTime appends seconds since 1970, with milliseconds as a fraction if
// there are any.
func appendTime(b []byte, t time.Time) []byte {
	ms := t.UnixMilli()
	if ms < 0 {
		b = append(b, '-')
		ms = -ms
	}
	b = strconv.AppendInt(b, ms/1000, 10)
	if frac := ms % 1000; frac != 0 {
		b = append(b, '.', byte('0'+frac/100), byte('0'+frac/10%10), byte('0'+frac%10))
	}
	return b
}
