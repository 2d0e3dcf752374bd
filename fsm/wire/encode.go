package wire

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
)

// Field numbers of messages that are put together from encoded parts.
const (
	entryBatches   protowire.Number = 10 // Entry.batches
	entryOrigin    protowire.Number = 20 // Entry.origin
	batchesBatches protowire.Number = 1  // Batches.batches
	batchRecords   protowire.Number = 6  // Batch.records
)

// EncodeEntry encodes an entry for the Raft log. Its schema is that of the cluster's level,
// or the oldest if it has none.
func EncodeEntry(e *fsmpb.Entry) ([]byte, error) {
	e.Schema = max(e.Schema, level.Oldest)
	return Within(deterministic.Marshal(e))
}

// EncodeRecord encodes a record for EncodeBatch. It refuses text that is not
// UTF-8.
func EncodeRecord(r *fsmpb.Record) ([]byte, error) { return deterministic.Marshal(r) }

// EncodeRegistration encodes a node's registration.
func EncodeRegistration(r *fsmpb.RegisterNode) ([]byte, error) { return deterministic.Marshal(r) }

// EncodeBatch encodes a batch with records that are encoded already. b has none
// of its own.
func EncodeBatch(b *fsmpb.Batch, records [][]byte) ([]byte, error) {
	size := deterministic.Size(b)
	for _, r := range records {
		size += sizeOfField(batchRecords, len(r))
	}
	out, err := deterministic.MarshalAppend(make([]byte, 0, size), b)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		out = appendField(out, batchRecords, r)
	}
	return out, nil
}

// EncodeBatches is EncodeEntry for an entry whose command is a list of encoded
// batches. Each batch must be one that decodes, without anything unknown in it:
// a node stops at an entry that it cannot read in full.
func EncodeBatches(e *fsmpb.Entry, batches [][]byte) ([]byte, error) {
	e.Schema = max(e.Schema, level.Oldest)
	inner := 0
	for _, b := range batches {
		inner += sizeOfField(batchesBatches, len(b))
	}
	out, err := deterministic.MarshalAppend(make([]byte, 0, deterministic.Size(e)+sizeOfField(entryBatches, inner)), e)
	if err != nil {
		return nil, err
	}
	out = protowire.AppendTag(out, entryBatches, protowire.BytesType)
	out = protowire.AppendVarint(out, uint64(inner))
	for _, b := range batches {
		out = appendField(out, batchesBatches, b)
	}
	return Within(out, nil)
}

// AppendOrigin appends the last field of an entry.
func AppendOrigin(b []byte, o *fsmpb.Origin) []byte {
	return appendField(b, entryOrigin, Marshal(nil, o))
}

// Within returns an error if an encoded entry is larger than MaxEntry.
func Within(b []byte, err error) ([]byte, error) {
	if err == nil && len(b) > MaxEntry {
		err = fmt.Errorf("entry of %d bytes exceeds %d", len(b), MaxEntry)
	}
	return b, err
}

func sizeOfField(n protowire.Number, size int) int {
	return protowire.SizeTag(n) + protowire.SizeBytes(size)
}

func appendField(b []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

// CutOrigin cuts the origin off the end of an encoded entry, without decoding what
// is before it. It returns nil if there is none.
func CutOrigin(b []byte) (signed []byte, o *fsmpb.Origin) {
	for rest := b; len(rest) > 0; {
		num, typ, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return nil, nil
		}
		m := protowire.ConsumeFieldValue(num, typ, rest[n:])
		if m < 0 {
			return nil, nil
		}
		if n+m == len(rest) && num == entryOrigin && typ == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(rest[n:])
			o = new(fsmpb.Origin)
			if proto.Unmarshal(v, o) != nil {
				return nil, nil
			}
			signed = b[:len(b)-len(rest)]
			if !bytes.Equal(AppendOrigin(nil, o), rest) {
				return nil, nil
			}
			return signed, o
		}
		rest = rest[n+m:]
	}
	return nil, nil
}
