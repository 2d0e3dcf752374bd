package fsm

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// TestPartsMakeTheSameEntry compares an entry that is put together from encoded
// parts with the encoding of the whole.
func TestPartsMakeTheSameEntry(t *testing.T) {
	id := testKey(1)
	full := used(reads(record(putKey(keyOf(id)), putPolicy(id, "{}")), fsmpb.Kind_KIND_KEY, id.Bytes(), 7), 0, 1)
	full.NotBefore, full.NotAfter = 1, 1<<60
	large := record()
	large.Body = make([]byte, 100<<10)
	clock := &fsmpb.Clock{Wall: 5, Elapsed: 6, Readings: []*fsmpb.ClockReading{{Node: "n1", Wall: 7}}}
	check := &fsmpb.StateCheck{Index: 8, Hash: make([]byte, 32)}
	for name, e := range map[string]*fsmpb.Entry{
		"one":       batchEntry(&fsmpb.Batch{Node: "n1", Incarnation: 1, Seq: 2, SettledBelow: 3, Watermark: 4, Records: []*fsmpb.Record{full}}),
		"several":   batchEntry(&fsmpb.Batch{Node: "n1", Seq: 1, Records: []*fsmpb.Record{record(), full}}, &fsmpb.Batch{Node: "n2", Seq: 9, Records: []*fsmpb.Record{large}}),
		"no record": batchEntry(&fsmpb.Batch{Node: "n1", Seq: 1}, &fsmpb.Batch{}),
		"empty":     batchEntry(&fsmpb.Batch{Node: "n1", Seq: 1, Records: []*fsmpb.Record{{}}}),
		"too large": batchEntry(&fsmpb.Batch{Records: []*fsmpb.Record{{Body: make([]byte, wire.MaxEntry)}}}),
	} {
		for _, e.Clock = range []*fsmpb.Clock{nil, clock} {
			for _, e.StateCheck = range []*fsmpb.StateCheck{nil, check} {
				want, wantErr := wire.EncodeEntry(e)
				var batches [][]byte
				for _, b := range e.GetBatches().Batches {
					var records [][]byte
					for _, r := range b.Records {
						data, err := wire.EncodeRecord(r)
						if err != nil {
							t.Fatal(err)
						}
						records = append(records, data)
					}
					head := proto.CloneOf(b)
					head.Records = nil
					data, err := wire.EncodeBatch(head, records)
					if err != nil {
						t.Fatal(err)
					}
					batches = append(batches, data)
				}
				got, err := wire.EncodeBatches(&fsmpb.Entry{Clock: e.Clock, StateCheck: e.StateCheck}, batches)
				if (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
					t.Errorf("%s: error %v, want %v", name, err, wantErr)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%s: other bytes than the whole entry", name)
				}
			}
		}
	}
	if _, err := wire.EncodeRecord(record(putPolicy(id, "\xff"))); err == nil {
		t.Error("a record with text that is not UTF-8 was encoded")
	}
}
