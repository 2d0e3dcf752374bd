package fsm

import (
	"bytes"
	"errors"
	"math/rand/v2"
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
					data, err := wire.EncodeBatch(head, records, false)
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
	if _, err := wire.CheckRecord(mustMarshal(t, &fsmpb.Record{SharedReads: []uint32{0}})); !errors.Is(err, ErrUnreadable) {
		t.Errorf("a record that shares reads outside of a batch: %v", err)
	}
}

// TestReadsAreShared: a batch whose records share reads is the one that the generated code
// encodes, and decodes to the same records as one whose records do not.
func TestReadsAreShared(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		var whole []*fsmpb.Record
		for range rnd.IntN(8) {
			r := record(putKey(keyOf(testKey(1))))
			if rnd.IntN(2) == 0 {
				r = used(record(), 0, 1)
			}
			for range rnd.IntN(5) {
				r = reads(r, fsmpb.Kind(rnd.IntN(3)), []byte{byte(rnd.IntN(2))}, uint64(rnd.IntN(2)))
			}
			if n := len(whole); n > 0 && rnd.IntN(2) == 0 {
				r.Reads = whole[n-1].Reads
			}
			whole = append(whole, r)
		}
		var records [][]byte
		for _, r := range whole {
			data, err := wire.EncodeRecord(r)
			if err != nil {
				t.Fatal(err)
			}
			records = append(records, data)
		}
		head := &fsmpb.Batch{Node: "n1", Incarnation: 1, Seq: 2}
		var decoded [2][]wire.Batch
		var encoded [2][]byte
		for i, share := range []bool{false, true} {
			var err error
			if encoded[i], err = wire.EncodeBatch(head, records, share); err != nil {
				t.Fatal(err)
			}
			entry, err := wire.EncodeBatches(&fsmpb.Entry{}, [][]byte{encoded[i]})
			if err != nil {
				t.Fatal(err)
			}
			if !compareDecoders(t, entry) {
				t.Fatalf("%x is not readable", entry)
			}
			e, err := wire.Decode(entry)
			if err != nil {
				t.Fatal(err)
			}
			decoded[i] = e.Command.([]wire.Batch)
			decoded[i][0].SharedReads = nil
		}
		if got, want := messageOf(&wire.Entry{Command: decoded[1]}), messageOf(&wire.Entry{Command: decoded[0]}); !proto.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		b := new(fsmpb.Batch)
		if err := proto.Unmarshal(encoded[1], b); err != nil {
			t.Fatal(err)
		}
		if again := mustMarshal(t, b); !bytes.Equal(again, encoded[1]) {
			t.Fatalf("the generated code encodes %x, got %x", again, encoded[1])
		}
		seen := make(map[string]bool)
		for _, r := range b.SharedReads {
			if data := string(mustMarshal(t, r)); seen[data] {
				t.Fatalf("%v is there twice", r)
			} else {
				seen[data] = true
			}
		}
		for _, r := range b.Records {
			if len(r.Reads) > 0 {
				t.Fatalf("%v has reads of its own", r)
			}
		}
	}
	// Nodes refuse a record with that many reads, but must be able to read it.
	many := record()
	for n := range 257 {
		reads(many, fsmpb.Kind_KIND_KEY, []byte{byte(n)}, 1)
	}
	few := reads(record(), fsmpb.Kind_KIND_KEY, []byte{1}, 1)
	var encoded [][]byte
	for _, r := range []*fsmpb.Record{few, many, few, many} {
		encoded = append(encoded, mustMarshal(t, r))
	}
	b, err := wire.EncodeBatch(&fsmpb.Batch{Node: "n1"}, encoded, true)
	if err != nil {
		t.Fatal(err)
	}
	entry, err := wire.EncodeBatches(&fsmpb.Entry{}, [][]byte{b})
	if err != nil || !compareDecoders(t, entry) {
		t.Fatalf("a batch with a record of 257 reads is not readable (%v)", err)
	}
	e, err := wire.Decode(entry)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{1, 257, 1, 257} {
		if got := len(e.Command.([]wire.Batch)[0].Records[i].Reads); got != want {
			t.Errorf("record %d has %d reads, want %d", i, got, want)
		}
	}
	for _, r := range [][]byte{{6<<3 | 2, 9}, {6 << 3, 9}} {
		if _, err := wire.EncodeBatch(&fsmpb.Batch{Node: "n1"}, [][]byte{r}, true); err == nil {
			t.Errorf("%x, which is no record, was put into a batch", r)
		}
	}
}
