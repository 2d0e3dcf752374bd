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
// once, and the records have its index.
func EncodeBatch(b *fsmpb.Batch, records [][]byte, share bool) ([]byte, error) {
	size := deterministic.Size(b)
	for _, r := range records {
		size += sizeOfField(batchRecords, len(r))
	}
	out, err := deterministic.MarshalAppend(make([]byte, 0, size), b)
	if err != nil {
		return nil, err
	}
	var shared sharedReads
	for _, r := range records {
		head, tail := r, []byte(nil)
		if share {
			if head, tail, err = shared.cut(r); err != nil {
				return nil, err
			}
		}
		size := len(head) + len(tail)
		if len(shared.indexes) > 0 {
			size += sizeOfField(recordShared, len(shared.indexes))
		}
		out = protowire.AppendTag(out, batchRecords, protowire.BytesType)
		out = protowire.AppendVarint(out, uint64(size))
		out = append(append(out, head...), tail...)
		if len(shared.indexes) > 0 {
			out = appendField(out, recordShared, shared.indexes)
		}
	}
	for _, v := range shared.items {
		out = appendField(out, batchShared, v)
	}
	return out, nil
}

// sharedReads collects what the records of a batch have read.
type sharedReads struct {
	items   [][]byte          // encoded
	index   map[string]uint64 // of each item in items
	newest  []byte            // the reads of the newest record, encoded
	indexes []byte            // of these, encoded
}

// cut returns what is before and after the reads of an encoded record, and sets indexes to
// those of its reads. It leaves the reads where they are if there are too many to share.
func (s *sharedReads) cut(record []byte) (head, tail []byte, err error) {
	begin, end, count := len(record), len(record), 0
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
		if n == recordReads {
			count++
		}
		at += size
	}
	if count > maxShared {
		s.newest, s.indexes = nil, nil
		return record, nil, nil
	}
	// Most records have read the same as the one before.
	if reads := record[begin:end]; !bytes.Equal(reads, s.newest) {
		s.newest, s.indexes = reads, nil
		for len(reads) > 0 {
			_, _, tag := protowire.ConsumeTag(reads)
			v, size := protowire.ConsumeBytes(reads[tag:])
			if size < 0 { // the field has another type
				return nil, nil, protowire.ParseError(size)
			}
			reads = reads[tag+size:]
			at, ok := s.index[string(v)]
			if !ok {
				if s.index == nil {
					s.index = make(map[string]uint64)
				}
				at = uint64(len(s.items))
				s.index[string(v)] = at
				s.items = append(s.items, v)
			}
			s.indexes = protowire.AppendVarint(s.indexes, at)
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
