package peers

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// TestSubmissionsAreReadAsProtobufDoes holds readSubmission against messages as
// other releases may send them.
func TestSubmissionsAreReadAsProtobufDoes(t *testing.T) {
	encode := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := &fsmpb.Batch{Node: "n1", Seq: 7, Records: []*fsmpb.Record{clustertest.UsualRecord()}}
	batch := encode(&clusterpb.SubmitRequest{Message: &clusterpb.SubmitRequest_Batch{Batch: b}})
	register := encode(&clusterpb.SubmitRequest{Message: &clusterpb.SubmitRequest_Register{Register: &fsmpb.RegisterNode{Node: "n1", Incarnation: 3}}})
	unknown := []byte{0xfa, 0x07, 1, 0} // field 127
	for name, tc := range map[string]struct {
		message []byte
		refused string
	}{
		"batch":                   {batch, ""},
		"batch after a new field": {slices.Concat(unknown, batch), ""},
		"batch of another":        {encode(&clusterpb.SubmitRequest{Message: &clusterpb.SubmitRequest_Batch{Batch: &fsmpb.Batch{Node: "n2", Seq: 1}}}), "not your batch"},
		"register":                {register, ""},
		"register of another":     {encode(&clusterpb.SubmitRequest{Message: &clusterpb.SubmitRequest_Register{Register: &fsmpb.RegisterNode{}}}), "not your registration"},
		"nothing":                 {nil, "empty message"},
		"a new field alone":       {unknown, "empty message"},
		"two batches":             {slices.Concat(batch, batch), "more than one"},
		"two kinds":               {slices.Concat(batch, register), "more than one"},
		"cut":                     {batch[:len(batch)-1], "malformed"},
		"empty batch":             {[]byte{1<<3 | 2, 0}, "has no number"},
		"batch of group 1":        {encode(&clusterpb.SubmitRequest{Message: &clusterpb.SubmitRequest_Batch{Batch: &fsmpb.Batch{Node: "n1", Seq: 7, Group: 1}}}), "of another Raft group: group 1, but this node serves only group 0"},
		"to group 1":              {encode(&clusterpb.SubmitRequest{Group: 1, Message: &clusterpb.SubmitRequest_Batch{Batch: b}}), "of another Raft group: group 1, but this node serves only group 0"},
		"register to group 1":     {slices.Concat(register, encode(&clusterpb.SubmitRequest{Group: 1})), "of another Raft group: group 1, but this node serves only group 0"},
		"empty registration":      {[]byte{2<<3 | 2, 0}, "not your registration"},
	} {
		s, err := readSubmission(&wireMessage{[][]byte{tc.message}}, "n1")
		if tc.refused != "" {
			if err == nil || !strings.Contains(err.Error(), tc.refused) {
				t.Errorf("%s: %v, want %q", name, err, tc.refused)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := s.Batch; got != nil && (got.Seq != 7 || got.Records != 1 || string(got.Encoded) != string(encode(b))) {
			t.Errorf("%s: batch %d of %d records", name, got.Seq, got.Records)
		}
		if got := s.Register; got != nil && got.Incarnation != 3 {
			t.Errorf("%s: %v", name, got)
		}
		if s.Batch == nil && s.Register == nil {
			t.Errorf("%s: nothing", name)
		}
	}
}

// BenchmarkSubmission is what a node and the leader do with the records of a
// batch before Raft has them: encode, send, check and put into an entry.
func BenchmarkSubmission(b *testing.B) {
	records := make([]*fsmpb.Record, 16)
	for i := range records {
		records[i] = clustertest.UsualRecord()
	}
	codec := newCodec()
	b.ReportAllocs()
	for b.Loop() {
		var out [][]byte
		for _, r := range records {
			record, err := wire.EncodeRecord(r)
			if err == nil {
				_, err = wire.CheckRecord(record)
			}
			if err != nil {
				b.Fatal(err)
			}
			out = append(out, record)
		}
		encoded, err := wire.EncodeBatch(&fsmpb.Batch{Node: "n1", Incarnation: 1, Seq: 5, SettledBelow: 1, Watermark: 1000}, out, false)
		if err != nil {
			b.Fatal(err)
		}
		data, err := codec.Marshal(submitMessage(submitBatch, encoded, 3, []byte("mac")))
		if err != nil {
			b.Fatal(err)
		}
		var m wireMessage
		if err := codec.Unmarshal(data, &m); err != nil {
			b.Fatal(err)
		}
		s, err := readSubmission(&m, "n1")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := wire.EncodeBatches(&fsmpb.Entry{Clock: &fsmpb.Clock{Wall: 1}}, [][]byte{s.Batch.Encoded}); err != nil {
			b.Fatal(err)
		}
	}
}
