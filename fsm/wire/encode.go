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
	batchShared    protowire.Number = 8  // Batch.shared_reads
	recordReads    protowire.Number = 6  // Record.reads
	recordShared   protowire.Number = 11 // Record.shared_reads
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

// EncodeBatch encodes a batch with records that EncodeRecord has encoded. b has none of its
// own. With share, which needs level.SharedReads, the batch has each item of their read sets
// once, and the records name its place.
func EncodeBatch(b *fsmpb.Batch, records [][]byte, share bool) ([]byte, error) {
	size := deterministic.Size(b)
	for _, r := range records {
		size += sizeOfField(batchRecords, len(r))
	}
	out, err := deterministic.MarshalAppend(make([]byte, 0, size), b)
	if err != nil {
		return nil, err
	}
	if !share {
		for _, r := range records {
			out = appendField(out, batchRecords, r)
		}
		return out, nil
	}
	shared := sharedReads{places: make(map[string]uint64)}
	for _, r := range records {
		head, tail, err := shared.cut(r)
		if err != nil {
			return nil, err
		}
		size := len(head) + len(tail)
		if len(shared.record) > 0 {
			size += sizeOfField(recordShared, len(shared.record))
		}
		out = protowire.AppendTag(out, batchRecords, protowire.BytesType)
		out = protowire.AppendVarint(out, uint64(size))
		out = append(append(out, head...), tail...)
		if len(shared.record) > 0 {
			out = appendField(out, recordShared, shared.record)
		}
	}
	for _, v := range shared.items {
		out = appendField(out, batchShared, v)
	}
	return out, nil
}

// sharedReads collects what the records of a batch have read.
type sharedReads struct {
	items  [][]byte          // encoded
	places map[string]uint64 // of items in items
	reads  []byte            // of the newest record, as it was encoded
	record []byte            // the places of those reads, as they are encoded
}

// cut returns what is before and after the reads of an encoded record, and sets record to
// the places of its reads.
func (s *sharedReads) cut(record []byte) (head, tail []byte, err error) {
	begin, end := len(record), len(record)
	for at := 0; at < len(record); {
		n, _, size := protowire.ConsumeField(record[at:])
		if size < 0 {
			return nil, nil, protowire.ParseError(size)
		}
		if n >= recordReads {
			begin = min(begin, at)
		}
		if n > recordReads {
			end = at
			break
		}
		at += size
	}
	// Most records have read the same as the one before.
	if reads := record[begin:end]; !bytes.Equal(reads, s.reads) {
		s.reads, s.record = reads, nil
		for len(reads) > 0 {
			_, _, tag := protowire.ConsumeTag(reads)
			v, size := protowire.ConsumeBytes(reads[tag:])
			reads = reads[tag+size:]
			place, ok := s.places[string(v)]
			if !ok {
				place = uint64(len(s.items))
				s.places[string(v)] = place
				s.items = append(s.items, v)
			}
			s.record = protowire.AppendVarint(s.record, place)
		}
	}
	return record[:begin], record[end:], nil
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
