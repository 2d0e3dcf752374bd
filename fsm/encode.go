package fsm

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Field numbers of what is put together from parts that are encoded already.
const (
	entryBatches   protowire.Number = 10 // Entry.batches
	batchesBatches protowire.Number = 1  // Batches.batches
	batchRecords   protowire.Number = 6  // Batch.records
)

// EncodeEntry encodes an entry for the Raft log.
func EncodeEntry(e *fsmpb.Entry) ([]byte, error) {
	e.Schema = SchemaMax
	return entryWithin(deterministic.Marshal(e))
}

// EncodeRecord encodes a record for EncodeBatch. It refuses text that is not
// UTF-8.
func EncodeRecord(r *fsmpb.Record) ([]byte, error) { return deterministic.Marshal(r) }

// EncodeBatch encodes a batch that has encoded records instead of its own.
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

// EncodeBatches is EncodeEntry for an entry that has encoded batches for its
// command. Each must be one that decodes, with nothing unknown in it: a node
// stops at an entry that it cannot read in full.
func EncodeBatches(e *fsmpb.Entry, batches [][]byte) ([]byte, error) {
	e.Schema = SchemaMax
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
	return entryWithin(out, nil)
}

// entryWithin holds an encoded entry against the limit.
func entryWithin(b []byte, err error) ([]byte, error) {
	if err == nil && len(b) > MaxEntry {
		err = fmt.Errorf("entry of %d bytes is over %d", len(b), MaxEntry)
	}
	return b, err
}

func sizeOfField(n protowire.Number, size int) int {
	return protowire.SizeTag(n) + protowire.SizeBytes(size)
}

func appendField(b []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}
