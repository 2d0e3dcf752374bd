// Package forward encodes the API's structures for messages between nodes, as trees of
// typed members with names. Absent members stay absent. A message with a member that the
// reader does not know is refused, so that nodes of different versions cannot misunderstand
// each other. Blobs and maps are shared with the message and not copied, so wiping the
// structure wipes the message.
package forward

import (
	"errors"
	"fmt"
	"reflect"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/keyengine/internal/forwardpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

var errUnknownField = errors.New("it has a field that this version does not know")

// AllKnown returns an error if a message has unknown fields at any depth.
func AllKnown(m protoreflect.Message) (err error) {
	if len(m.GetUnknown()) > 0 {
		return errUnknownField
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				if err = AllKnown(v.List().Get(i).Message()); err != nil {
					break
				}
			}
		default:
			err = AllKnown(v.Message())
		}
		return err == nil
	})
	return err
}

// Wipe clears the blobs of a message that was not, or only partly, unpacked.
func Wipe(s *forwardpb.Struct) {
	for _, m := range s.GetMembers() {
		wipeValue(m.GetValue())
	}
}

func wipeValue(v *forwardpb.Value) {
	clear(v.GetBlob())
	Wipe(v.GetStruct())
	for _, e := range v.GetList().GetValues() {
		wipeValue(e)
	}
}

// Pack returns the message for the structure of the schema that v points to.
func Pack(s *kmsapi.Schema, v any) (*forwardpb.Struct, error) {
	from, err := s.Of(v)
	if err != nil {
		return nil, err
	}
	return packStruct(s, from), nil
}

func packStruct(s *kmsapi.Schema, v reflect.Value) *forwardpb.Struct {
	out := new(forwardpb.Struct)
	for i := range s.Members {
		if f := v.Field(i); !f.IsNil() {
			m := &s.Members[i]
			out.Members = append(out.Members, &forwardpb.Member{Name: m.Name, Value: packMember(m, f)})
		}
	}
	return out
}

// packMember packs a member that is present.
func packMember(m *kmsapi.Member, f reflect.Value) *forwardpb.Value {
	v := new(forwardpb.Value)
	switch m.Kind {
	case kmsapi.KindText:
		v.Kind = &forwardpb.Value_Text{Text: f.Elem().String()}
	case kmsapi.KindNumber:
		v.Kind = &forwardpb.Value_Number{Number: f.Elem().Int()}
	case kmsapi.KindFlag:
		v.Kind = &forwardpb.Value_Flag{Flag: f.Elem().Bool()}
	case kmsapi.KindTime:
		v.Kind = &forwardpb.Value_Time{Time: timestamppb.New(*f.Interface().(*time.Time))}
	case kmsapi.KindBlob:
		v.Kind = &forwardpb.Value_Blob{Blob: f.Bytes()}
	case kmsapi.KindTextList:
		l := new(forwardpb.List)
		for _, s := range f.Interface().([]string) {
			l.Values = append(l.Values, &forwardpb.Value{Kind: &forwardpb.Value_Text{Text: s}})
		}
		v.Kind = &forwardpb.Value_List{List: l}
	case kmsapi.KindTextMap:
		v.Kind = &forwardpb.Value_Map{Map: &forwardpb.Map{Pairs: f.Interface().(map[string]string)}}
	case kmsapi.KindNumberMap:
		pairs := new(forwardpb.Struct)
		for name, n := range f.Interface().(map[string]int32) {
			pairs.Members = append(pairs.Members, &forwardpb.Member{Name: name, Value: &forwardpb.Value{Kind: &forwardpb.Value_Number{Number: int64(n)}}})
		}
		v.Kind = &forwardpb.Value_Struct{Struct: pairs}
	case kmsapi.KindStructure:
		v.Kind = &forwardpb.Value_Struct{Struct: packStruct(m.Inner, f.Elem())}
	case kmsapi.KindStructureList:
		l := new(forwardpb.List)
		for i := range f.Len() {
			l.Values = append(l.Values, &forwardpb.Value{Kind: &forwardpb.Value_Struct{Struct: packStruct(m.Inner, f.Index(i))}})
		}
		v.Kind = &forwardpb.Value_List{List: l}
	}
	return v
}

// Unpack fills the empty structure of the schema that v points to. After an error it may be
// partly filled.
func Unpack(s *kmsapi.Schema, v any, from *forwardpb.Struct) error {
	to, err := s.Of(v)
	if err != nil {
		return err
	}
	return unpackStruct(s, to, from)
}

func unpackStruct(s *kmsapi.Schema, v reflect.Value, from *forwardpb.Struct) error {
	seen := make([]bool, len(s.Members))
	for _, m := range from.GetMembers() {
		i, ok := s.Index([]byte(m.GetName()))
		if !ok || seen[i] {
			return fmt.Errorf("member %.64q: %w", m.GetName(), errUnknownField)
		}
		seen[i] = true
		if err := unpackMember(&s.Members[i], v.Field(i), m.GetValue()); err != nil {
			return fmt.Errorf("member %s: %w", m.GetName(), err)
		}
	}
	return nil
}

var errKind = errors.New("it has another type")

func unpackMember(m *kmsapi.Member, f reflect.Value, from *forwardpb.Value) error {
	switch k := from.GetKind().(type) {
	case *forwardpb.Value_Text:
		if to, ok := f.Addr().Interface().(**string); ok {
			*to = &k.Text
			return nil
		}
	case *forwardpb.Value_Number:
		if to, ok := f.Addr().Interface().(**int32); ok && int64(int32(k.Number)) == k.Number {
			*to = new(int32(k.Number))
			return nil
		}
	case *forwardpb.Value_Flag:
		if to, ok := f.Addr().Interface().(**bool); ok {
			*to = &k.Flag
			return nil
		}
	case *forwardpb.Value_Time:
		if to, ok := f.Addr().Interface().(**time.Time); ok && k.Time.IsValid() {
			*to = new(k.Time.AsTime())
			return nil
		}
	case *forwardpb.Value_Blob:
		if to, ok := f.Addr().Interface().(*[]byte); ok {
			*to = k.Blob
			return nil
		}
	case *forwardpb.Value_Map:
		if to, ok := f.Addr().Interface().(*map[string]string); ok {
			if *to = k.Map.GetPairs(); *to == nil {
				*to = map[string]string{}
			}
			return nil
		}
	case *forwardpb.Value_Struct:
		if m.Kind == kmsapi.KindStructure {
			f.Set(reflect.New(m.Inner.Type))
			return unpackStruct(m.Inner, f.Elem(), k.Struct)
		}
		if to, ok := f.Addr().Interface().(*map[string]int32); ok {
			return unpackNumbers(to, k.Struct)
		}
	case *forwardpb.Value_List:
		return unpackList(m, f, k.List.GetValues())
	}
	return errKind
}

func unpackNumbers(to *map[string]int32, from *forwardpb.Struct) error {
	*to = make(map[string]int32, len(from.GetMembers()))
	for _, m := range from.GetMembers() {
		k, ok := m.GetValue().GetKind().(*forwardpb.Value_Number)
		if !ok || int64(int32(k.Number)) != k.Number {
			return errKind
		}
		(*to)[m.GetName()] = int32(k.Number)
	}
	return nil
}

func unpackList(m *kmsapi.Member, f reflect.Value, from []*forwardpb.Value) error {
	switch m.Kind {
	case kmsapi.KindTextList:
		list := make([]string, len(from))
		for i, item := range from {
			k, ok := item.GetKind().(*forwardpb.Value_Text)
			if !ok {
				return errKind
			}
			list[i] = k.Text
		}
		f.Set(reflect.ValueOf(list))
		return nil
	case kmsapi.KindStructureList:
		f.Set(reflect.MakeSlice(f.Type(), len(from), len(from)))
		for i, item := range from {
			k, ok := item.GetKind().(*forwardpb.Value_Struct)
			if !ok {
				return errKind
			}
			if err := unpackStruct(m.Inner, f.Index(i), k.Struct); err != nil {
				return err
			}
		}
		return nil
	}
	return errKind
}
