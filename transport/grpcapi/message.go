package grpcapi

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// A message binds a structure of the API to the protobuf message with the same members.
// Binding fails unless both have exactly the same members, so a member that was added on one
// side only is noticed when the server is created, not when a caller misses it.
//
// Values are shared, not copied: after a conversion both sides hold the same strings, maps and
// byte slices.
type message struct {
	schema *kmsapi.Schema
	pb     reflect.Type // struct
	fields []int        // of the message, by member
	inner  []*message   // by member; nil for those that are not structures
	// strict is set for generated messages, which record unknown members. A caller that asks
	// for something that this version does not know must not be answered as if it had not
	// asked for it.
	strict bool
}

var (
	errUnknownMember = errors.New("the request has a member that this version does not know")
	errTime          = errors.New("a time of the request is out of range")
)

var (
	protoMessage = reflect.TypeFor[proto.Message]()
	pbTime       = reflect.TypeFor[*timestamppb.Timestamp]()
)

// bind binds the structures of a schema to the struct of a message.
func bind(s *kmsapi.Schema, pb reflect.Type) (*message, error) {
	if pb.Kind() != reflect.Struct {
		return nil, fmt.Errorf("%v is not a message for %v", pb, s.Type)
	}
	m := &message{
		schema: s, pb: pb, strict: reflect.PointerTo(pb).Implements(protoMessage),
		fields: make([]int, len(s.Members)), inner: make([]*message, len(s.Members)),
	}
	left := make(map[string]reflect.StructField)
	var faults []error
	for _, f := range members(pb) {
		if other, ok := left[memberName(f.Name)]; ok {
			faults = append(faults, fmt.Errorf("%v: %s and %s are one member", pb, other.Name, f.Name))
		}
		left[memberName(f.Name)] = f
	}
	for i := range s.Members {
		name := memberName(s.Members[i].Name)
		f, ok := left[name]
		if !ok {
			faults = append(faults, fmt.Errorf("%v lacks %v's %s", pb, s.Type, s.Members[i].Name))
			continue
		}
		delete(left, name)
		m.fields[i] = f.Index[0]
		var err error
		if m.inner[i], err = bindMember(&s.Members[i], s.Type.Field(i).Type, f.Type); err != nil {
			faults = append(faults, fmt.Errorf("%v.%s: %w", s.Type, s.Members[i].Name, err))
		}
	}
	for _, f := range members(pb) {
		if _, ok := left[memberName(f.Name)]; ok {
			faults = append(faults, fmt.Errorf("%v lacks %v's %s", s.Type, pb, f.Name))
		}
	}
	return m, errors.Join(faults...)
}

// bindMember checks that the values of a member can be converted to and from a field of a
// message. It returns the binding of a structure.
func bindMember(m *kmsapi.Member, own, pb reflect.Type) (*message, error) {
	isMessage := func(t reflect.Type) bool { return t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct }
	switch {
	case m.Kind == kmsapi.KindTime && pb == pbTime:
		return nil, nil
	case m.Kind == kmsapi.KindStructure && isMessage(pb):
		return bind(m.Inner, pb.Elem())
	case m.Kind == kmsapi.KindStructureList && pb.Kind() == reflect.Slice && isMessage(pb.Elem()):
		return bind(m.Inner, pb.Elem().Elem())
	case m.Kind != kmsapi.KindTime && m.Inner == nil && own == pb:
		return nil, nil
	}
	return nil, fmt.Errorf("%v cannot be converted to %v", own, pb)
}

// members returns a struct's exported fields. The internal state of a generated
// message is not exported.
func members(t reflect.Type) []reflect.StructField {
	var fs []reflect.StructField
	for f := range t.Fields() {
		if f.IsExported() {
			fs = append(fs, f)
		}
	}
	return fs
}

// memberName normalises a name, so that AWSAccountId and AwsAccountId are the
// same.
func memberName(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "")) }

// decode converts a message to a structure, which must be empty.
func (m *message) decode(to, from reflect.Value) error {
	if m.strict && len(from.Addr().Interface().(proto.Message).ProtoReflect().GetUnknown()) > 0 {
		return errUnknownMember
	}
	for i := range m.schema.Members {
		f := from.Field(m.fields[i])
		if f.IsNil() {
			continue
		}
		if err := m.decodeMember(i, to.Field(i), f); err != nil {
			return err
		}
	}
	return nil
}

func (m *message) decodeMember(i int, to, from reflect.Value) error {
	switch inner := m.inner[i]; m.schema.Members[i].Kind {
	case kmsapi.KindTime:
		ts := from.Interface().(*timestamppb.Timestamp)
		if len(ts.ProtoReflect().GetUnknown()) > 0 {
			return errUnknownMember
		}
		if ts.CheckValid() != nil {
			return errTime
		}
		to.Set(reflect.ValueOf(new(ts.AsTime())))
	case kmsapi.KindStructure:
		to.Set(reflect.New(inner.schema.Type))
		return inner.decode(to.Elem(), from.Elem())
	case kmsapi.KindStructureList:
		to.Set(reflect.MakeSlice(to.Type(), from.Len(), from.Len()))
		for j := range from.Len() {
			item := from.Index(j)
			if item.IsNil() {
				continue
			}
			if err := inner.decode(to.Index(j), item.Elem()); err != nil {
				return err
			}
		}
	default:
		to.Set(from)
	}
	return nil
}

// encode converts a structure to a message, which must be empty.
func (m *message) encode(to, from reflect.Value) {
	for i := range m.schema.Members {
		if f := from.Field(i); !f.IsNil() {
			m.encodeMember(i, to.Field(m.fields[i]), f)
		}
	}
}

func (m *message) encodeMember(i int, to, from reflect.Value) {
	switch inner := m.inner[i]; m.schema.Members[i].Kind {
	case kmsapi.KindTime:
		to.Set(reflect.ValueOf(timestamppb.New(*from.Interface().(*time.Time))))
	case kmsapi.KindStructure:
		to.Set(reflect.New(inner.pb))
		inner.encode(to.Elem(), from.Elem())
	case kmsapi.KindStructureList:
		to.Set(reflect.MakeSlice(to.Type(), from.Len(), from.Len()))
		for j := range from.Len() {
			item := reflect.New(inner.pb)
			inner.encode(item.Elem(), from.Index(j))
			to.Index(j).Set(item)
		}
	default:
		to.Set(from)
	}
}

// wipe overwrites all blobs of a message, or only the secret ones.
func (m *message) wipe(v reflect.Value, all bool) {
	for i := range m.schema.Members {
		member, f := &m.schema.Members[i], v.Field(m.fields[i])
		switch {
		case member.Kind == kmsapi.KindBlob:
			if all || member.Secret {
				clear(f.Bytes())
			}
		case member.Kind == kmsapi.KindStructure && !f.IsNil():
			m.inner[i].wipe(f.Elem(), all)
		case member.Kind == kmsapi.KindStructureList:
			for j := range f.Len() {
				if item := f.Index(j); !item.IsNil() {
					m.inner[i].wipe(item.Elem(), all)
				}
			}
		}
	}
}
