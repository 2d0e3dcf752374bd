package grpcapi

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A plan carries one message between the faces: from a protobuf message to the
// engine's struct of the same members, or back. It is compiled once for a pair
// of types, and compiling fails unless each member of the one is a member of the
// other, so a member that was added on one side only is
// found when the server is made, not when a caller misses it.
//
// Values are shared, not copied: after a conversion both sides hold the same
// strings, maps and byte slices.
type plan struct {
	dst, src reflect.Type // structs
	steps    []step
	// strict makes members that the source has beyond its declared ones an
	// error: a caller who asks for something that this version does not know must
	// not be answered as if it had not asked.
	strict bool
}

type step struct {
	dst, src int // field indexes
	move     func(dst, src reflect.Value) error
}

var errUnknownMember = errors.New("the request has a member that this version does not know")

// run carries src to dst, both of the plan's struct types.
func (p *plan) run(dst, src reflect.Value) error {
	if p.strict {
		if m := src.Addr().Interface().(proto.Message); len(m.ProtoReflect().GetUnknown()) > 0 {
			return errUnknownMember
		}
	}
	for i := range p.steps {
		st := &p.steps[i]
		if err := st.move(dst.Field(st.dst), src.Field(st.src)); err != nil {
			return err
		}
	}
	return nil
}

// compilePlan makes the plan from src to dst, which are pointers to structs.
func compilePlan(dst, src reflect.Type) (*plan, error) {
	if dst.Kind() != reflect.Pointer || src.Kind() != reflect.Pointer {
		return nil, fmt.Errorf("%v and %v must be pointers to structs", dst, src)
	}
	return structPlan(dst.Elem(), src.Elem())
}

func structPlan(dst, src reflect.Type) (*plan, error) {
	if dst.Kind() != reflect.Struct || src.Kind() != reflect.Struct {
		return nil, fmt.Errorf("%v and %v must be structs", dst, src)
	}
	p := &plan{dst: dst, src: src, strict: reflect.PointerTo(src).Implements(protoMessage)}
	from := make(map[string]reflect.StructField)
	var faults []error
	for _, f := range members(src) {
		if other, ok := from[memberName(f)]; ok {
			faults = append(faults, fmt.Errorf("%v: %s and %s are one member", src, other.Name, f.Name))
		}
		from[memberName(f)] = f
	}
	for _, d := range members(dst) {
		s, ok := from[memberName(d)]
		if !ok {
			faults = append(faults, fmt.Errorf("%v lacks %v's %s", src, dst, d.Name))
			continue
		}
		delete(from, memberName(d))
		move, err := mover(d.Type, s.Type)
		if err != nil {
			faults = append(faults, fmt.Errorf("%v.%s: %w", dst, d.Name, err))
			continue
		}
		p.steps = append(p.steps, step{dst: d.Index[0], src: s.Index[0], move: move})
	}
	for _, s := range members(src) {
		if _, left := from[memberName(s)]; left {
			faults = append(faults, fmt.Errorf("%v lacks %v's %s", dst, src, s.Name))
		}
	}
	return p, errors.Join(faults...)
}

// members are a struct's exported fields; a generated message's own state is not
// exported.
func members(t reflect.Type) []reflect.StructField {
	var fs []reflect.StructField
	for f := range t.Fields() {
		if f.IsExported() {
			fs = append(fs, f)
		}
	}
	return fs
}

// memberName is what AWSAccountId and AwsAccountId have in common.
func memberName(f reflect.StructField) string {
	return strings.ToLower(strings.ReplaceAll(f.Name, "_", ""))
}

var (
	protoMessage = reflect.TypeFor[proto.Message]()
	pbTime       = reflect.TypeFor[*timestamppb.Timestamp]()
	goTime       = reflect.TypeFor[*time.Time]()
)

// mover says how a value of type src becomes one of type dst. There is no way
// for types that could not show that a member is absent.
func mover(dst, src reflect.Type) (func(dst, src reflect.Value) error, error) {
	switch {
	case dst == goTime && src == pbTime:
		return moveToTime, nil
	case dst == pbTime && src == goTime:
		return moveToTimestamp, nil
	case dst == src && scalar(dst):
		return func(dst, src reflect.Value) error { dst.Set(src); return nil }, nil
	case isStructPointer(dst) && isStructPointer(src):
		return pointerMover(dst, src)
	case dst.Kind() == reflect.Slice && src.Kind() == reflect.Slice:
		return sliceMover(dst, src)
	}
	return nil, fmt.Errorf("no way from %v to %v", src, dst)
}

// scalar reports whether t is one of the types that both faces share.
func scalar(t reflect.Type) bool {
	switch t {
	case reflect.TypeFor[*string](), reflect.TypeFor[*int32](), reflect.TypeFor[*bool](),
		reflect.TypeFor[[]byte](), reflect.TypeFor[[]string](), reflect.TypeFor[map[string]string]():
		return true
	}
	return false
}

func isStructPointer(t reflect.Type) bool {
	return t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct
}

func pointerMover(dst, src reflect.Type) (func(dst, src reflect.Value) error, error) {
	p, err := structPlan(dst.Elem(), src.Elem())
	if err != nil {
		return nil, err
	}
	return func(dst, src reflect.Value) error {
		if src.IsNil() {
			return nil
		}
		dst.Set(reflect.New(p.dst))
		return p.run(dst.Elem(), src.Elem())
	}, nil
}

// sliceMover is for lists of structs, which the engine has by value and messages
// by pointer.
func sliceMover(dst, src reflect.Type) (func(dst, src reflect.Value) error, error) {
	de, se := dst.Elem(), src.Elem()
	dp, sp := isStructPointer(de), isStructPointer(se)
	if dp {
		de = de.Elem()
	}
	if sp {
		se = se.Elem()
	}
	p, err := structPlan(de, se)
	if err != nil {
		return nil, err
	}
	return func(dst, src reflect.Value) error {
		if src.IsNil() {
			return nil
		}
		n := src.Len()
		list := reflect.MakeSlice(dst.Type(), n, n)
		for i := range n {
			d, s := list.Index(i), src.Index(i)
			if dp {
				d.Set(reflect.New(de))
				d = d.Elem()
			}
			if sp {
				if s.IsNil() {
					continue
				}
				s = s.Elem()
			}
			if err := p.run(d, s); err != nil {
				return err
			}
		}
		dst.Set(list)
		return nil
	}, nil
}

var errTime = errors.New("a time of the request is out of range")

func moveToTime(dst, src reflect.Value) error {
	ts := src.Interface().(*timestamppb.Timestamp)
	if ts == nil {
		return nil
	}
	if ts.CheckValid() != nil {
		return errTime
	}
	t := ts.AsTime()
	dst.Set(reflect.ValueOf(&t))
	return nil
}

func moveToTimestamp(dst, src reflect.Value) error {
	if t := src.Interface().(*time.Time); t != nil {
		dst.Set(reflect.ValueOf(timestamppb.New(*t)))
	}
	return nil
}
