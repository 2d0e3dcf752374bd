package cluster

import (
	"fmt"

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
// rules of fsm's decoder where they come in, at the origin and on the leader.

func checkRecord(r *fsmpb.Record) error {
	if r == nil {
		return fmt.Errorf("%w: empty", ErrRecord)
	}
	if len(r.ProtoReflect().GetUnknown()) > 0 {
		return fmt.Errorf("%w: unknown field", ErrRecord)
	}
	for _, read := range r.Reads {
		if read == nil || len(read.ProtoReflect().GetUnknown()) > 0 {
			return fmt.Errorf("%w: unknown field in a read set", ErrRecord)
		}
	}
	for _, u := range r.Uses {
		if u == nil || len(u.ProtoReflect().GetUnknown()) > 0 {
			return fmt.Errorf("%w: unknown field in a use", ErrRecord)
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

// checkBatch holds a batch that came from another node against the limits.
func checkBatch(b *fsmpb.Batch) error {
	if len(b.ProtoReflect().GetUnknown()) > 0 {
		return fmt.Errorf("%w: unknown field", ErrRecord)
	}
	if b.Seq == 0 || len(b.Records) > maxBatchRecords {
		return fmt.Errorf("%w: batch %d of %d records", ErrRecord, b.Seq, len(b.Records))
	}
	if n := proto.Size(b); n > maxBatch {
		return fmt.Errorf("%w: batch of %d bytes", ErrRecord, n)
	}
	for _, r := range b.Records {
		if err := checkRecord(r); err != nil {
			return err
		}
	}
	return nil
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
		return fmt.Errorf("%w: unknown field in %s", ErrRecord, m.Descriptor().FullName())
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
