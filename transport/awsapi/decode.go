package awsapi

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
)

const (
	// maxDepth is the depth of the deepest body. The deepest input has four
	// levels.
	maxDepth = 32
	// maxValues is the number of values in a body, including nested and unknown
	// ones. An encryption context within its limit has at most half as many.
	maxValues = 1 << 14
	// maxNumber is the length of the longest number that is parsed.
	maxNumber = 64
)

// decoder decodes one body at a time. It is reused.
type decoder struct {
	src    bytes.Buffer
	json   *jsontext.Decoder
	values int // how many more there may be
	// unknown is the error for the first unknown member that may not be ignored.
	unknown error
}

// decode decodes the JSON of an AWS request into the structure that in points to, by its
// schema. Absent members and nulls leave fields nil. Unknown members are ignored in
// structures that restrict nothing; elsewhere they are a ValidationException, as is
// everywhere a name that differs from a member's only in case, hyphens or underscores. All
// other errors are a SerializationException: invalid JSON (RFC 8259, UTF-8, no member twice),
// a value of the wrong type, a blob that is not base64.
func (d *decoder) decode(s *kmsapi.Schema, in any, body []byte) error {
	v, err := s.Of(in)
	if err != nil {
		return err
	}
	if len(body) == 0 {
		return nil // clients of operations without members may send nothing
	}
	d.src = *bytes.NewBuffer(body)
	if d.json == nil {
		d.json = jsontext.NewDecoder(&d.src)
	} else {
		d.json.Reset(&d.src)
	}
	d.values, d.unknown = maxValues, nil
	if err := d.structure(s, v, ""); err != nil {
		return err
	}
	if _, err := d.json.ReadToken(); err != io.EOF {
		return malformed("Something follows the JSON object of the request body.")
	}
	return d.unknown
}

func malformed(format string, args ...any) error {
	return &kmsapi.Error{Code: transport.ErrSerialization.Code, Message: fmt.Sprintf(format, args...)}
}

// syntax is the error for invalid JSON. It leaves out the parser's own message,
// which repeats parts of the body.
func syntax(err error) error {
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return malformed("The request body has a JSON object with the same member twice.")
	}
	if s, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return malformed("The request body is not valid JSON, at byte %d.", s.ByteOffset)
	}
	return malformed("The request body is not valid JSON.")
}

// unexpected is the error for a value of the wrong type.
func unexpected(member string, kind jsontext.Kind, want string) error {
	at := ""
	if member != "" {
		at = " (" + member + ")"
	}
	var name string
	switch kind {
	case jsontext.KindString:
		name = "STRING_VALUE"
	case jsontext.KindNumber:
		name = "NUMBER_VALUE"
	case jsontext.KindTrue:
		name = "TRUE_VALUE"
	case jsontext.KindFalse:
		name = "FALSE_VALUE"
	case jsontext.KindNull:
		name = "NULL_VALUE"
	case jsontext.KindBeginObject:
		return malformed("Start of structure or map found where not expected%s.", at)
	case jsontext.KindBeginArray:
		return malformed("Start of list found where not expected%s.", at)
	}
	return malformed("%s can not be converted to %s%s.", name, want, at)
}

// expect checks the kind of the next value without consuming it.
func (d *decoder) expect(member string, kind jsontext.Kind, want string) error {
	switch k := d.json.PeekKind(); k {
	case kind:
		return nil
	case jsontext.KindInvalid, jsontext.KindEndObject, jsontext.KindEndArray:
		_, err := d.json.ReadToken()
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return syntax(err)
	default:
		return unexpected(member, k, want)
	}
}

// count counts one value, and fails if the body has too many.
func (d *decoder) count() error {
	if d.values--; d.values < 0 {
		return malformed("The request body has more than %d values.", maxValues)
	}
	return nil
}

// each reads an object, calling member with each name, quoted; member reads the
// value.
func (d *decoder) each(name, want string, member func(quoted []byte) error) error {
	if err := d.expect(name, jsontext.KindBeginObject, want); err != nil {
		return err
	}
	if _, err := d.json.ReadToken(); err != nil {
		return syntax(err)
	}
	for d.json.PeekKind() != jsontext.KindEndObject {
		if err := d.count(); err != nil {
			return err
		}
		// Checked before it is read, as instead of a name there may be an array
		// a million levels deep.
		if err := d.expect("", jsontext.KindString, "a member name"); err != nil {
			return err
		}
		quoted, err := d.json.ReadValue()
		if err != nil {
			return syntax(err)
		}
		if err := member(quoted); err != nil {
			return err
		}
	}
	if _, err := d.json.ReadToken(); err != nil {
		return syntax(err)
	}
	return nil
}

// list reads an array, calling item to read each value.
func (d *decoder) list(name string, item func() error) error {
	if err := d.expect(name, jsontext.KindBeginArray, "a list"); err != nil {
		return err
	}
	if _, err := d.json.ReadToken(); err != nil {
		return syntax(err)
	}
	for d.json.PeekKind() != jsontext.KindEndArray {
		if err := d.count(); err != nil {
			return err
		}
		if err := item(); err != nil {
			return err
		}
	}
	if _, err := d.json.ReadToken(); err != nil {
		return syntax(err)
	}
	return nil
}

// structure reads an object into v.
func (d *decoder) structure(s *kmsapi.Schema, v reflect.Value, name string) error {
	return d.each(name, "a structure", func(quoted []byte) error {
		i, ok := lookup(s, quoted)
		if !ok {
			if d.unknown == nil {
				d.unknown = s.Unknown(text(quoted), name)
			}
			return d.skip()
		}
		if d.json.PeekKind() == jsontext.KindNull {
			if _, err := d.json.ReadToken(); err != nil {
				return syntax(err)
			}
			return nil
		}
		return d.member(&s.Members[i], v.Field(i))
	})
}

func lookup(s *kmsapi.Schema, quoted []byte) (int, bool) {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return s.Index(quoted[1 : len(quoted)-1])
	}
	return s.Index([]byte(text(quoted)))
}

// member reads a value that is not null into a field.
func (d *decoder) member(m *kmsapi.Member, v reflect.Value) error {
	switch to := v.Addr().Interface().(type) {
	case **string:
		s, err := d.text(m.Name)
		*to = &s
		return err
	case **int32:
		n, err := d.number(m.Name)
		*to = &n
		return err
	case **bool:
		b, err := d.flag(m.Name)
		*to = &b
		return err
	case **time.Time:
		t, err := d.time(m.Name)
		*to = &t
		return err
	case *[]byte:
		b, err := d.blob(m.Name)
		*to = b
		return err
	case *[]string:
		*to = []string{}
		return d.list(m.Name, func() error {
			s, err := d.text(m.Name)
			*to = append(*to, s)
			return err
		})
	case *map[string]string:
		pairs := make(map[string]string)
		*to = pairs
		return d.each(m.Name, "a map", func(quoted []byte) error {
			key := text(quoted)
			s, err := d.text(m.Name)
			pairs[key] = s
			return err
		})
	}
	if m.Kind == kmsapi.KindStructure {
		v.Set(reflect.New(v.Type().Elem()))
		return d.structure(m.Inner, v.Elem(), m.Name)
	}
	v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	item := reflect.New(v.Type().Elem()).Elem()
	return d.list(m.Name, func() error {
		item.SetZero()
		if err := d.structure(m.Inner, item, m.Name); err != nil {
			return err
		}
		v.Set(reflect.Append(v, item))
		return nil
	})
}

// skip skips an unknown value, whose depth is limited.
func (d *decoder) skip() error {
	outside := d.json.StackDepth()
	for {
		if _, err := d.json.ReadToken(); err != nil {
			return syntax(err)
		}
		if err := d.count(); err != nil {
			return err
		}
		switch depth := d.json.StackDepth(); {
		case depth == outside:
			return nil
		case depth > maxDepth:
			return malformed("The request body is nested more than %d deep.", maxDepth)
		}
	}
}

// scalar reads a value of a kind that is not nested.
func (d *decoder) scalar(name string, kind jsontext.Kind, want string) (jsontext.Value, error) {
	if err := d.expect(name, kind, want); err != nil {
		return nil, err
	}
	raw, err := d.json.ReadValue()
	if err != nil {
		return nil, syntax(err)
	}
	return raw, nil
}

// text decodes a JSON string that the parser has accepted.
func text(quoted []byte) string {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return string(quoted[1 : len(quoted)-1])
	}
	b, _ := jsontext.AppendUnquote(nil, quoted)
	return string(b)
}

func (d *decoder) text(name string) (string, error) {
	raw, err := d.scalar(name, jsontext.KindString, "a String")
	if err != nil {
		return "", err
	}
	return text(raw), nil
}

func (d *decoder) number(name string) (int32, error) {
	raw, err := d.scalar(name, jsontext.KindNumber, "an Integer")
	if err != nil {
		return 0, err
	}
	if len(raw) <= maxNumber {
		if n, err := strconv.ParseInt(string(raw), 10, 32); err == nil {
			return int32(n), nil
		}
	}
	return 0, unexpected(name, jsontext.KindNumber, "an Integer")
}

func (d *decoder) flag(name string) (bool, error) {
	if k := d.json.PeekKind(); k != jsontext.KindTrue {
		if err := d.expect(name, jsontext.KindFalse, "a Boolean"); err != nil {
			return false, err
		}
	}
	t, err := d.json.ReadToken()
	if err != nil {
		return false, syntax(err)
	}
	return t.Bool(), nil
}

// time reads seconds since 1970 with a fraction, which is truncated to
// milliseconds.
func (d *decoder) time(name string) (time.Time, error) {
	raw, err := d.scalar(name, jsontext.KindNumber, "a Timestamp")
	if err != nil {
		return time.Time{}, err
	}
	if len(raw) <= maxNumber {
		// Years 1 to 9999, which answers and records can represent.
		if s, err := strconv.ParseFloat(string(raw), 64); err == nil && s >= -62135596800 && s < 253402300800 {
			return time.UnixMilli(int64(math.Round(s * 1000))).UTC(), nil
		}
	}
	return time.Time{}, unexpected(name, jsontext.KindNumber, "a Timestamp")
}

var standard = base64.StdEncoding.Strict()

func (d *decoder) blob(name string) ([]byte, error) {
	raw, err := d.scalar(name, jsontext.KindString, "a Blob")
	if err != nil {
		return nil, err
	}
	encoded := []byte(raw[1 : len(raw)-1])
	if bytes.IndexByte(encoded, '\\') >= 0 {
		// Some encoders write "\/".
		encoded, _ = jsontext.AppendUnquote(nil, raw)
		defer clear(encoded)
	}
	// An empty blob is not an absent one.
	b, err := standard.AppendDecode([]byte{}, encoded)
	// The decoder ignores line breaks; then the lengths differ.
	if err == nil && standard.EncodedLen(len(b)) == len(encoded) {
		return b, nil
	}
	clear(b[:cap(b)])
	return nil, malformed("STRING_VALUE can not be converted to a Blob (%s): it is not base64.", name)
}
