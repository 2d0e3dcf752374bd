package wire

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// MaxEntry bounds one Raft entry's command, in bytes. Batches are merged to 64
// KiB; one record with the largest policy and audit body is below 256 KiB.
const MaxEntry = 1 << 20

// Schema bounds that this binary reads in entries and snapshots. It writes the newest.
const (
	SchemaMin = 1
	SchemaMax = 1
)

// Group is the Raft group that this process serves: the one that all of a cluster's state
// is in. Everything that would be confused if there were several names it.
const Group uint32 = 0

// ErrGroup is something of another Raft group.
var ErrGroup = errors.New("of another Raft group")

// CheckGroup refuses what is not of this process's group, with ErrGroup.
func CheckGroup(group uint32) error {
	if group != Group {
		return fmt.Errorf("%w: of group %d, and this node serves group %d alone", ErrGroup, group, Group)
	}
	return nil
}

// ErrUnreadable is something that this binary cannot read in full.
var ErrUnreadable = errors.New("unreadable by this version")

// errUnknownField, and ErrGroup, do not end the decoding of an entry, as a command of another
// kind may follow that takes the place of this one.
var errUnknownField = errors.New("unknown field")

var deterministic = proto.MarshalOptions{Deterministic: true}

// Marshal appends m's one encoding. It fails only for text that is not UTF-8,
// which decoding refuses.
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
