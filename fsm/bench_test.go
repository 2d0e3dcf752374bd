package fsm

import (
	"io"
	"log/slog"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// BenchmarkApplyEntry is what a loaded cluster's machine does all day: it applies
// entries of many records that use a key and change nothing, and writes them to
// the audit log.
func BenchmarkApplyEntry(b *testing.B) {
	audit, err := auditlog.Open(b.TempDir(), auditlog.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		b.Fatal(err)
	}
	defer audit.Close()
	m := newMachine(&testing.T{})
	m.fsm.cfg.Audit, m.fsm.restored = audit, false
	id := testKey(1)
	m.propose(record(theCluster(), putKey(keyOf(id)), putPolicy(id, "p"), credential("AKIA")))
	v := m.index
	const records, prepared = 32, 256
	body := make([]byte, 400)
	logs := make([]*raft.Log, 0, prepared)
	prepare := func() {
		logs = logs[:0]
		for range prepared {
			rs := make([]*fsmpb.Record, records)
			for i := range rs {
				r := record()
				r.Body = body
				reads(r, fsmpb.Kind_KIND_CLUSTER, nil, v)
				reads(r, fsmpb.Kind_KIND_CREDENTIAL, []byte("AKIA"), v)
				reads(r, fsmpb.Kind_KIND_KEY, id.Bytes(), v)
				reads(r, fsmpb.Kind_KIND_KEY_POLICY, id.Bytes(), v)
				rs[i] = used(r, 2, 1)
			}
			bt := m.batch(rs...)
			bt.SettledBelow = m.seq
			logs = append(logs, m.log(batchEntry(bt)))
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if len(logs) == 0 {
			b.StopTimer()
			prepare()
			b.StartTimer()
		}
		switch r := m.fsm.Apply(logs[0]).(type) {
		case *Result:
			if r.Batches[0].Verdicts[records-1] != Accepted {
				b.Fatalf("the last verdict is %v", r.Batches[0].Verdicts[records-1])
			}
		default:
			b.Fatal(r)
		}
		logs = logs[1:]
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/records, "ns/record")
}
