package fsm

import (
	"fmt"
	"io"
	"log/slog"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
)

// BenchmarkApplyEntry measures the usual work under load: it applies entries of
// many records that use a key and change nothing, and writes them to the audit
// log.
func BenchmarkApplyEntry(b *testing.B) {
	b.Run("own reads", func(b *testing.B) { benchmarkApplyEntry(b, false) })
	b.Run("shared reads", func(b *testing.B) { benchmarkApplyEntry(b, true) })
}

func benchmarkApplyEntry(b *testing.B, share bool) {
	audit, err := auditlog.Open(b.TempDir(), auditlog.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		b.Fatal(err)
	}
	defer audit.Close()
	m := blank(&testing.T{})
	m.fsm.cfg.Audit, m.fsm.restored = audit, false
	m.register(1, level.Newest)
	id := testKey(1)
	m.propose(record(theCluster()))
	m.configure("n1")
	wantVerdicts(m.t, m.raise(1, level.Newest, level.Newest), Accepted)
	m.propose(record(putKey(keyOf(id)), putPolicy(id, "{}"), credential("AKIA")))
	v := m.index
	const records, prepared = 32, 256
	body := make([]byte, 400)
	prepare := func() []*raft.Log {
		logs := make([]*raft.Log, 0, prepared)
		for range prepared {
			rs := make([]*fsmpb.Record, records)
			for i := range rs {
				r := record()
				r.Body = body
				reads(r, fsmpb.Kind_KIND_CLUSTER, nil, m.fsm.Current().VersionOf(fsmpb.Kind_KIND_CLUSTER, nil))
				reads(r, fsmpb.Kind_KIND_CREDENTIAL, CredentialID(account, "AKIA"), v)
				reads(r, fsmpb.Kind_KIND_KEY, id.Bytes(), v)
				reads(r, fsmpb.Kind_KIND_KEY_POLICY, id.Bytes(), v)
				rs[i] = used(used(r, 2, 1), 1, 1)
			}
			bt := m.batch(rs...)
			bt.SettledBelow = m.seq
			if share {
				bt.SharedReads = rs[0].Reads
				for _, r := range rs {
					r.Reads, r.SharedReads = nil, []uint32{0, 1, 2, 3}
				}
			}
			logs = append(logs, m.log(batchEntry(bt)))
		}
		return logs
	}
	applyPrepared(b, m, records, prepare)
}

// applyPrepared applies entries of one batch with that many records, which are all
// accepted. The time that prepare takes to make more of them is not measured.
func applyPrepared(b *testing.B, m *machine, records int, prepare func() []*raft.Log) {
	var logs []*raft.Log
	b.ReportAllocs()
	for b.Loop() {
		if len(logs) == 0 {
			b.StopTimer()
			logs = prepare()
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
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(records), "ns/record")
}

// BenchmarkApplyChanges applies entries of records that each create a key with
// everything that belongs to it.
func BenchmarkApplyChanges(b *testing.B) {
	const records, prepared = 32, 64
	m := newMachine(b)
	n := 0
	prepare := func() []*raft.Log {
		m.audit.entries, m.events = nil, nil
		logs := make([]*raft.Log, 0, prepared)
		for range prepared {
			rs := make([]*fsmpb.Record, records)
			for i := range rs {
				id := numbered(n)
				rs[i] = record(putKey(keyOf(id)), putPolicy(id, defaultPolicy), tagsOf(id), putAlias(id, fmt.Sprintf("alias/%08d", n)), putGrant(id, 1))
				n++
			}
			bt := m.unread(rs...)
			bt.SettledBelow = m.seq
			logs = append(logs, m.log(batchEntry(bt)))
		}
		return logs
	}
	applyPrepared(b, m, records, prepare)
}
