package awsapi

import (
	"fmt"
	"reflect"
	"time"
)

// A plan says how a structure of the engine's stands in JSON: member names are
// those of the fields. Plans are made when the handler is, so that a type the
// codec does not know is found then.
type plan struct {
	structure reflect.Type
	fields    []field
	byName    map[string]int
	blobs     []int // the fields that are blobs, or hold some
}

type field struct {
	name   string
	prefix string // `"Name":`
	inner  *plan  // of a structure, or of the structures of a list
	list   bool   // a list of structures
	secret bool   // a blob that is wiped once it has been sent
}

// secrets are the members of answers that hold keys or plaintext. They are the
// caller's once sent, and nobody else's: the engine keeps no reference to them.
var secrets = map[string]bool{"Plaintext": true, "PrivateKeyPlaintext": true, "SharedSecret": true}

// planOf returns the plan of the structure that v points to.
func planOf(v any) (*plan, error) {
	t := reflect.TypeOf(v)
	if t.Kind() != reflect.Pointer {
		return nil, fmt.Errorf("awsapi: no plan for %v", t)
	}
	return compile(t.Elem(), 0)
}

// of returns the structure that v points to, which must be the plan's; the zero
// Value for a nil pointer.
func (p *plan) of(v any) (reflect.Value, error) {
	s := reflect.ValueOf(v)
	if s.Kind() != reflect.Pointer || s.Type().Elem() != p.structure {
		return reflect.Value{}, fmt.Errorf("awsapi: %T is no pointer to %v", v, p.structure)
	}
	return s.Elem(), nil
}

func compile(t reflect.Type, depth int) (*plan, error) {
	if t.Kind() != reflect.Struct || depth > 8 {
		return nil, fmt.Errorf("awsapi: no plan for %v", t)
	}
	p := &plan{structure: t, byName: make(map[string]int, t.NumField())}
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			return nil, fmt.Errorf("awsapi: %v.%s is not exported", t, f.Name)
		}
		out := field{name: f.Name, prefix: `"` + f.Name + `":`, secret: secrets[f.Name]}
		blobs := false
		switch reflect.Zero(f.Type).Interface().(type) {
		case []byte:
			blobs = true
		case *string, *int32, *bool, *time.Time, []string, map[string]string:
		default:
			kind := f.Type.Kind()
			if kind != reflect.Pointer && kind != reflect.Slice || f.Type.Elem().Kind() != reflect.Struct {
				return nil, fmt.Errorf("awsapi: %v.%s has type %v, which has no form in JSON", t, f.Name, f.Type)
			}
			var err error
			if out.inner, err = compile(f.Type.Elem(), depth+1); err != nil {
				return nil, err
			}
			out.list = kind == reflect.Slice
			blobs = len(out.inner.blobs) > 0
		}
		if blobs {
			p.blobs = append(p.blobs, i)
		}
		p.byName[f.Name] = i
		p.fields = append(p.fields, out)
	}
	return p, nil
}

// wipe overwrites blobs of a structure: all of them, or only the secret ones.
func wipe(p *plan, v reflect.Value, all bool) {
	for _, i := range p.blobs {
		f := &p.fields[i]
		fv := v.Field(i)
		switch {
		case f.inner == nil:
			if all || f.secret {
				clear(fv.Bytes())
			}
		case f.list:
			for j := range fv.Len() {
				wipe(f.inner, fv.Index(j), all)
			}
		case !fv.IsNil():
			wipe(f.inner, fv.Elem(), all)
		}
	}
}

// wipeInput overwrites what was decoded from a request.
func (p *plan) wipeInput(in any) {
	if v, err := p.of(in); err == nil {
		wipe(p, v, true)
	}
}

// wipeOutput overwrites the secrets of an answer that has been encoded.
func (p *plan) wipeOutput(out any) {
	if v, err := p.of(out); err == nil && v.IsValid() {
		wipe(p, v, false)
	}
}
