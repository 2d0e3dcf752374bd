package level

import (
	"fmt"
	"sync/atomic"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Forms has the levels of the forms that are newer than level 1, by their full names.
type Forms struct {
	since map[protoreflect.FullName]uint32
	// within has the messages in which such a form can be. All others need not be searched.
	within map[protoreflect.FullName]bool
	// kinds has the levels of the kinds of objects, by number: apply looks up one for each
	// item of a read set.
	kinds []uint32
}

// forms are those of this release.
var forms atomic.Pointer[Forms]

func init() { forms.Store(FormsOf(fsmpb.File_fsm_fsmpb_fsm_proto, nil)) }

// FormsOf reads the levels of the forms in a file. Those in more are added to them.
func FormsOf(file protoreflect.FileDescriptor, more map[protoreflect.FullName]uint32) *Forms {
	f := &Forms{since: make(map[protoreflect.FullName]uint32), within: make(map[protoreflect.FullName]bool)}
	note := func(d protoreflect.Descriptor, extension protoreflect.ExtensionType) {
		since, _ := proto.GetExtension(d.Options(), extension).(uint32)
		if l := max(since, more[d.FullName()]); l > 1 {
			f.since[d.FullName()] = l
		}
	}
	enums := func(list protoreflect.EnumDescriptors) {
		for i := range list.Len() {
			for j := range list.Get(i).Values().Len() {
				note(list.Get(i).Values().Get(j), fsmpb.E_ValueSince)
			}
		}
	}
	enums(file.Enums())
	kinds := fsmpb.Kind(0).Descriptor().Values()
	for i := range kinds.Len() {
		k := kinds.Get(i)
		f.kinds = append(f.kinds, make([]uint32, max(0, int(k.Number())+1-len(f.kinds)))...)
		f.kinds[k.Number()] = f.since[k.FullName()]
	}
	messages := file.Messages()
	for i := range messages.Len() {
		enums(messages.Get(i).Enums())
		for j := range messages.Get(i).Fields().Len() {
			note(messages.Get(i).Fields().Get(j), fsmpb.E_Since)
		}
	}
	for i := range messages.Len() {
		f.search(messages.Get(i), make(map[protoreflect.FullName]bool))
	}
	return f
}

// search reports whether a newer form can be in a message, at any depth.
func (f *Forms) search(m protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) bool {
	if f.within[m.FullName()] || seen[m.FullName()] {
		return f.within[m.FullName()]
	}
	seen[m.FullName()] = true
	for i := range m.Fields().Len() {
		fd := m.Fields().Get(i)
		found := f.since[fd.FullName()] > 1 || fd.Message() != nil && f.search(fd.Message(), seen)
		if e := fd.Enum(); e != nil {
			for j := range e.Values().Len() {
				found = found || f.since[e.Values().Get(j).FullName()] > 1
			}
		}
		if found {
			f.within[m.FullName()] = true
			return true
		}
	}
	return false
}

// of returns the level of the newest form in a message.
func (f *Forms) of(m protoreflect.Message) (l uint32) {
	if !f.within[m.Descriptor().FullName()] {
		return 1
	}
	l = 1
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		l = max(l, f.since[fd.FullName()])
		one := func(v protoreflect.Value) {
			switch {
			case fd.Message() != nil:
				l = max(l, f.of(v.Message()))
			case fd.Enum() != nil:
				if value := fd.Enum().Values().ByNumber(v.Enum()); value != nil {
					l = max(l, f.since[value.FullName()])
				}
			}
		}
		switch {
		case fd.IsList():
			for i := range v.List().Len() {
				one(v.List().Get(i))
			}
		case fd.IsMap(): // there is none in what is replicated
		default:
			one(v)
		}
		return true
	})
	return l
}

// Of returns the level of the newest form in a message of fsmpb.
func Of(m proto.Message) uint32 {
	f := forms.Load()
	if len(f.since) == 0 {
		return 1
	}
	return f.of(m.ProtoReflect())
}

// OfKind returns the level from which on read sets may name objects of a kind.
func OfKind(kind fsmpb.Kind) uint32 {
	if kinds := forms.Load().kinds; uint(kind) < uint(len(kinds)) {
		return max(1, kinds[kind])
	}
	return 1
}

// TooNewError says that something cannot be written yet.
type TooNewError struct{ Needed, Level uint32 }

// Error implements error.
func (e *TooNewError) Error() string {
	return fmt.Sprintf("it needs feature level %d, and the cluster's is %d: run `conclave cluster upgrade finalize` once all nodes run a release that knows that level", e.Needed, e.Level)
}

// Allows returns a TooNewError if a cluster of the given level may not write something.
func Allows(level, needed uint32) error {
	if needed > level {
		return &TooNewError{Needed: needed, Level: level}
	}
	return nil
}

// Pretend gives forms of this release a newer level, by their full names, until the
// returned function is called. It is for tests, which otherwise would depend on which
// forms are new in this release.
func Pretend(newer map[protoreflect.FullName]uint32) (undo func()) {
	was := forms.Load()
	forms.Store(FormsOf(fsmpb.File_fsm_fsmpb_fsm_proto, newer))
	return func() { forms.Store(was) }
}
