package wire

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// MaxEntry bounds one Raft entry's command, in bytes. Batches are merged to 128
// KiB; one record with the largest policy and audit body is below 256 KiB.
const MaxEntry = 1 << 20

// Group is the Raft group that this process serves, which holds all of a cluster's state.
// Everything that could be confused if there were several groups names it.
const Group uint32 = 0

// ErrGroup is returned for something that belongs to another Raft group.
var ErrGroup = errors.New("of another Raft group")

// CheckGroup returns ErrGroup unless group is the one that this process serves.
func CheckGroup(group uint32) error {
	if group != Group {
		return fmt.Errorf("%w: group %d, but this node serves only group %d", ErrGroup, group, Group)
	}
	return nil
}

// ErrUnreadable is returned for something that this binary cannot read in full.
var ErrUnreadable = errors.New("unreadable by this version")

// None of errUnknownField, errShared and ErrGroup ends the decoding of an entry, as a command
// of another kind may follow that replaces this one.
var (
	errUnknownField = errors.New("unknown field")
	errShared       = errors.New("a record names reads that its batch does not have, or too many")
)

var deterministic = proto.MarshalOptions{Deterministic: true}

// Marshal appends the encoding of m, which is always the same for the same
// message. It panics only for text that is not UTF-8, which decoding refuses.
func Marshal(b []byte, m proto.Message) []byte {
	b, err := deterministic.MarshalAppend(b, m)
	if err != nil {
		panic(fmt.Sprintf("encoding %T: %v", m, err))
	}
	return b
}

// Known refuses unknown fields anywhere in m, and unknown enum values.
func Known(m protoreflect.Message) error {
	if len(m.GetUnknown()) > 0 {
		return fmt.Errorf("%w in %s", errUnknownField, m.Descriptor().FullName())
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Kind() == protoreflect.EnumKind && !fd.IsList():
			if fd.Enum().Values().ByNumber(v.Enum()) == nil {
				err = fmt.Errorf("%w: value %d of %s", errUnknownField, v.Enum(), fd.FullName())
			}
		case fd.Kind() == protoreflect.MessageKind && fd.IsList():
			for i := range v.List().Len() {
				if err = Known(v.List().Get(i).Message()); err != nil {
					break
				}
			}
		case fd.Kind() == protoreflect.MessageKind:
			err = Known(v.Message())
		}
		return err == nil
	})
	return err
}
