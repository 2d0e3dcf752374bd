package fsm

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// MaxEntry bounds one Raft entry's command, in bytes. Batches are merged to 64
// KiB; one record with the largest policy and audit body is below 256 KiB.
const MaxEntry = 1 << 20

var deterministic = proto.MarshalOptions{Deterministic: true}

// marshal appends m's one encoding. It fails only for text that is not UTF-8,
// which decoding refuses.
func marshal(b []byte, m proto.Message) []byte {
	b, err := deterministic.MarshalAppend(b, m)
	if err != nil {
		panic(fmt.Sprintf("encoding %T: %v", m, err))
	}
	return b
}

func decodeEntry(data []byte, e *fsmpb.Entry) error {
	if len(data) > MaxEntry {
		return fmt.Errorf("%w: %d bytes", ErrUnreadable, len(data))
	}
	if err := proto.Unmarshal(data, e); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if e.Schema < SchemaMin || e.Schema > SchemaMax {
		return fmt.Errorf("%w: schema %d, this binary knows %d to %d", ErrUnreadable, e.Schema, SchemaMin, SchemaMax)
	}
	if err := knownEntry(e); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return nil
}

var errUnknownField = errors.New("unknown field")

// knownEntry refuses fields that this binary does not know, which protobuf would
// pass over in silence. The parts that every request has are walked by hand, as
// reflection costs more than the rest of apply.
func knownEntry(e *fsmpb.Entry) error {
	if c, ok := e.Command.(*fsmpb.Entry_Batches); ok {
		if hasUnknown(e, e.Clock, e.StateCheck, c.Batches) {
			return errUnknownField
		}
		for _, r := range e.Clock.GetReadings() {
			if hasUnknown(r) {
				return errUnknownField
			}
		}
		for _, b := range c.Batches.Batches {
			if hasUnknown(b) {
				return errUnknownField
			}
			for _, r := range b.Records {
				if hasUnknown(r) {
					return errUnknownField
				}
				for _, read := range r.Reads {
					if hasUnknown(read) {
						return errUnknownField
					}
				}
				for _, u := range r.Uses {
					if hasUnknown(u) {
						return errUnknownField
					}
				}
				for _, c := range r.Changes {
					if err := known(c.ProtoReflect()); err != nil {
						return err
					}
				}
			}
		}
		return nil
	}
	return known(e.ProtoReflect())
}

func hasUnknown(ms ...proto.Message) bool {
	for _, m := range ms {
		if r := m.ProtoReflect(); r.IsValid() && len(r.GetUnknown()) > 0 {
			return true
		}
	}
	return false
}

// known refuses unknown fields anywhere in m, and unknown enum values.
func known(m protoreflect.Message) error {
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
				if err = known(v.List().Get(i).Message()); err != nil {
					break
				}
			}
		case fd.Kind() == protoreflect.MessageKind:
			err = known(v.Message())
		}
		return err == nil
	})
	return err
}
