package cluster

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Limits of one batch. maxRecord keeps an entry with a single record well below
// fsm.MaxEntry.
const (
	maxBatchRecords = 256
	maxRecord       = 512 << 10
	maxBatch        = maxRecord + mergeBytes
)

// Every node stops at an entry that it cannot read in full, so one batch with a
// field or value that this release does not know would stop the whole cluster.
// Such a batch must not enter the log: checkRecord holds records against the
// rules of fsm's decoder at the origin, and checkEncodedRecord does it on the
// leader, where they come encoded and stay so.

func checkRecord(r *fsmpb.Record) error {
	if r == nil {
		return fmt.Errorf("%w: empty", ErrRecord)
	}
	if len(r.ProtoReflect().GetUnknown()) > 0 {
		return fmt.Errorf("%w: %w", ErrRecord, errUnknownField)
	}
	for _, read := range r.Reads {
		if read == nil || len(read.ProtoReflect().GetUnknown()) > 0 {
			return fmt.Errorf("%w: %w in a read set", ErrRecord, errUnknownField)
		}
	}
	for _, u := range r.Uses {
		if u == nil || len(u.ProtoReflect().GetUnknown()) > 0 {
			return fmt.Errorf("%w: %w in a use", ErrRecord, errUnknownField)
		}
	}
	for _, c := range r.Changes {
		if c == nil {
			return fmt.Errorf("%w: empty change", ErrRecord)
		}
		if err := known(c.ProtoReflect()); err != nil {
			return err
		}
	}
	return nil
}

// batch is an fsmpb.Batch as its bytes, with what has to be known of it.
type batch struct {
	node    string
	seq     uint64
	records int
	encoded []byte
}

// size is about what the batch adds to an entry.
func (b *batch) size() int { return len(b.encoded) + 4 }

var (
	batchForm  = wireFormOf(&fsmpb.Batch{})
	recordForm = wireFormOf(&fsmpb.Record{})
	readForm   = wireFormOf(&fsmpb.Read{})
	useForm    = wireFormOf(&fsmpb.Use{})
)

// Fields of fsmpb.Batch and fsmpb.Record that are looked at.
const (
	batchNode     protowire.Number = 1
	batchSeq      protowire.Number = 3
	batchRecords  protowire.Number = 6
	recordReads   protowire.Number = 6
	recordChanges protowire.Number = 9
	recordUses    protowire.Number = 10
)

// checkBatch holds a batch that came from another node against the limits, and
// its records against the rules of checkRecord. It decodes no more than it must.
// With an error comes what was found before it.
func checkBatch(encoded []byte) (*batch, error) {
	b := &batch{encoded: encoded}
	err := batchForm.walk(encoded, func(field protowire.Number, number uint64, bytes []byte) error {
		switch field {
		case batchNode:
			b.node = string(bytes)
		case batchSeq:
			b.seq = number
		case batchRecords:
			b.records++
		}
		return nil
	})
	if err != nil {
		return b, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if b.seq == 0 || b.records > maxBatchRecords {
		return b, fmt.Errorf("%w: batch %d of %d records", ErrRecord, b.seq, b.records)
	}
	if n := len(encoded); n > maxBatch {
		return b, fmt.Errorf("%w: batch of %d bytes", ErrRecord, n)
	}
	return b, batchForm.walk(encoded, func(field protowire.Number, _ uint64, bytes []byte) error {
		if field != batchRecords {
			return nil
		}
		return checkEncodedRecord(bytes)
	})
}

// checkEncodedRecord is checkRecord for one that is encoded.
func checkEncodedRecord(record []byte) error {
	nothing := func(protowire.Number, uint64, []byte) error { return nil }
	err := recordForm.walk(record, func(field protowire.Number, _ uint64, bytes []byte) error {
		switch field {
		case recordReads:
			if err := readForm.walk(bytes, nothing); err != nil {
				return fmt.Errorf("%w in a read set", err)
			}
		case recordUses:
			if err := useForm.walk(bytes, nothing); err != nil {
				return fmt.Errorf("%w in a use", err)
			}
		case recordChanges:
			var c fsmpb.Change
			if err := proto.Unmarshal(bytes, &c); err != nil {
				return err
			}
			return known(c.ProtoReflect())
		}
		return nil
	})
	if err != nil && !errors.Is(err, ErrRecord) {
		err = fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return err
}

// checkRegistration holds another node's registration against the limits.
func checkRegistration(n *fsmpb.RegisterNode) error {
	for _, s := range []string{n.PeerAddress, n.AwsAddress, n.GrpcAddress, n.Release} {
		if len(s) > 512 {
			return fmt.Errorf("%w: registration too long", ErrRecord)
		}
	}
	return known(n.ProtoReflect())
}

// known refuses fields and enum values that this release does not know.
func known(m protoreflect.Message) error {
	if len(m.GetUnknown()) > 0 {
		return fmt.Errorf("%w: %w in %s", ErrRecord, errUnknownField, m.Descriptor().FullName())
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Kind() == protoreflect.EnumKind && !fd.IsList():
			if fd.Enum().Values().ByNumber(v.Enum()) == nil {
				err = fmt.Errorf("%w: value %d of %s", ErrRecord, v.Enum(), fd.FullName())
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
