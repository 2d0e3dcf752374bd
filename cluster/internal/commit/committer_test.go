package commit

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/wire"
)

// fakeFuture is what fakeRaft answers.
type fakeFuture struct {
	err error
	res any
}

func (f fakeFuture) Error() error  { return f.err }
func (f fakeFuture) Response() any { return f.res }
func (f fakeFuture) Index() uint64 { return 1 }

type fakeRaft func(cmd []byte) raft.ApplyFuture

func (f fakeRaft) Apply(cmd []byte, _ time.Duration) raft.ApplyFuture { return f(cmd) }

// testBatch encodes a batch.
func testBatch(t testing.TB, b *fsmpb.Batch) *Batch {
	t.Helper()
	encoded, err := proto.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return &Batch{Node: b.Node, Seq: b.Seq, Records: len(b.Records), Encoded: encoded}
}

func testCommitter(t *testing.T, r fakeRaft) *Committer {
	m := NewCommitter(CommitterConfig{
		Level: func() uint32 { return 2 }, Known: level.Range{Oldest: 1, Newest: 3},
		Raft: r, Evidence: func() (*fsmpb.Clock, *fsmpb.StateCheck) { return &fsmpb.Clock{}, nil },
		Registered:  func(_ string, incarnation uint64) bool { return incarnation == 7 },
		StoredSince: func(uint64) (time.Time, bool) { return time.Time{}, false },
		Sign:        func(b []byte) ([]byte, error) { return b, nil }, Initialised: func() bool { return true },
		Log: slog.New(slog.DiscardHandler), MaxBytes: 1 << 20,
		EntryRecords: prometheus.NewHistogram(prometheus.HistogramOpts{}), Commit: prometheus.NewHistogram(prometheus.HistogramOpts{}),
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		m.Close(ctx)
	})
	m.SetOpen(true)
	return m
}

// TestCommitterNeverGuesses maps what Raft may say to what nodes are told.
func TestCommitterNeverGuesses(t *testing.T) {
	applied := fakeFuture{res: &fsm.Result{Index: 9, Batches: []fsm.BatchResult{{Status: fsm.BatchApplied, Index: 9, Verdicts: []fsm.Verdict{fsm.Conflict}}}}}
	for name, tc := range map[string]struct {
		future   fakeFuture
		register *fsmpb.RegisterNode
		want     clusterpb.SubmitStatus
	}{
		"applied":             {applied, nil, clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED},
		"leadership lost":     {fakeFuture{err: raft.ErrLeadershipLost}, nil, clusterpb.SubmitStatus_SUBMIT_STATUS_UNKNOWN},
		"shutdown":            {fakeFuture{err: raft.ErrRaftShutdown}, nil, clusterpb.SubmitStatus_SUBMIT_STATUS_UNKNOWN},
		"enqueue timeout":     {fakeFuture{err: raft.ErrEnqueueTimeout}, nil, clusterpb.SubmitStatus_SUBMIT_STATUS_UNKNOWN},
		"disk":                {fakeFuture{err: errors.New("storage failed")}, nil, clusterpb.SubmitStatus_SUBMIT_STATUS_UNKNOWN},
		"machine stopped":     {fakeFuture{res: fsm.ErrStopped}, nil, clusterpb.SubmitStatus_SUBMIT_STATUS_UNKNOWN},
		"odd answer":          {fakeFuture{}, nil, clusterpb.SubmitStatus_SUBMIT_STATUS_UNKNOWN},
		"not leader":          {fakeFuture{err: raft.ErrNotLeader}, nil, clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER},
		"transfer":            {fakeFuture{err: raft.ErrLeadershipTransferInProgress}, nil, clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER},
		"restore":             {fakeFuture{err: raft.ErrAbortedByRestore}, nil, clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER},
		"fenced":              {fakeFuture{res: &fsm.Result{Batches: []fsm.BatchResult{{Status: fsm.BatchFenced}}}}, nil, clusterpb.SubmitStatus_SUBMIT_STATUS_FENCED},
		"registered":          {fakeFuture{res: &fsm.Result{Registered: true}}, &fsmpb.RegisterNode{Incarnation: 7}, clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED},
		"registered before":   {fakeFuture{res: &fsm.Result{}}, &fsmpb.RegisterNode{Incarnation: 7}, clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED},
		"registered by newer": {fakeFuture{res: &fsm.Result{}}, &fsmpb.RegisterNode{Incarnation: 6}, clusterpb.SubmitStatus_SUBMIT_STATUS_FENCED},
	} {
		t.Run(name, func(t *testing.T) {
			m := testCommitter(t, func([]byte) raft.ApplyFuture { return tc.future })
			got := make(chan *clusterpb.SubmitResponse, 1)
			s := &Submission{Register: tc.register, Answer: func(r *clusterpb.SubmitResponse) { got <- r }}
			if tc.register == nil {
				s.Batch = testBatch(t, &fsmpb.Batch{Seq: 3, Records: []*fsmpb.Record{{}}})
			}
			m.Submit(s)
			if r := <-got; r.Status != tc.want {
				t.Errorf("status %v, want %v", r.Status, tc.want)
			}
		})
	}
}

// TestCommitterLevels: entries have the schema of the cluster's level, or of the one that
// they raise to, and nothing that a node could not read is taken.
func TestCommitterLevels(t *testing.T) {
	for name, c := range map[string]struct {
		levels wire.Levels
		want   uint32 // the schema of the entry; 0 if there is none
	}{
		"old forms":                {wire.Levels{Needed: 1}, 2},
		"new forms":                {wire.Levels{Needed: 2}, 2},
		"forms of a later level":   {wire.Levels{Needed: 3}, 0},
		"raises the level":         {wire.Levels{Needed: 1, Raised: 3}, 3},
		"repeats an earlier raise": {wire.Levels{Needed: 1, Raised: 2}, 2},
		"raises it beyond reading": {wire.Levels{Needed: 1, Raised: 4}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			schema := uint32(0)
			m := testCommitter(t, func(cmd []byte) raft.ApplyFuture {
				var e fsmpb.Entry
				if err := proto.Unmarshal(cmd, &e); err != nil {
					t.Error(err)
				}
				schema = e.Schema
				return fakeFuture{res: &fsm.Result{Batches: []fsm.BatchResult{{Status: fsm.BatchApplied}}}}
			})
			got := make(chan *clusterpb.SubmitResponse, 1)
			b := testBatch(t, &fsmpb.Batch{Seq: 3, Records: []*fsmpb.Record{{}}})
			b.Levels = c.levels
			m.Submit(&Submission{Batch: b, Answer: func(r *clusterpb.SubmitResponse) { got <- r }})
			status := (<-got).Status
			if schema != c.want || (status == clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED) != (c.want != 0) {
				t.Errorf("%v, in an entry of schema %d, want %d", status, schema, c.want)
			}
		})
	}
}

// TestCommitterLimits holds entries back to see how batches are put together.
func TestCommitterLimits(t *testing.T) {
	entries := make(chan *fsmpb.Entry, 100)
	release := make(chan struct{})
	m := testCommitter(t, func(cmd []byte) raft.ApplyFuture {
		var e fsmpb.Entry
		if err := proto.Unmarshal(cmd, &e); err != nil {
			t.Error(err)
		}
		entries <- &e
		return waitingFuture{release}
	})
	var answered atomic.Int64
	batch := func(size int) *Submission {
		b := testBatch(t, &fsmpb.Batch{Seq: 1, Records: []*fsmpb.Record{{Body: make([]byte, size)}}})
		return &Submission{Batch: b, Size: b.Size(), Answer: func(*clusterpb.SubmitResponse) { answered.Add(1) }}
	}
	// The first goes at once, the second once it is worth an entry, and the third
	// waits for a place.
	m.Submit(batch(100))
	clustertest.Eventually(t, 5*time.Second, "an entry", func() bool { return len(entries) == 1 })
	m.Submit(batch(100))
	m.Submit(batch(secondBytes))
	clustertest.Eventually(t, 5*time.Second, "a second entry", func() bool { return len(entries) == 2 })
	m.Submit(batch(100))
	for range 20 {
		m.Submit(batch(10 << 10))
	}
	m.Submit(batch(300 << 10)) // too large to share
	for range 200 {
		m.Submit(batch(10 << 10))
	}
	if got := answered.Load(); got < 50 {
		t.Errorf("%d of 200 batches beyond the limit were refused", got)
	}
	if n := len(entries); n != entriesInFlight {
		t.Errorf("%d entries in flight, want %d", n, entriesInFlight)
	}
	close(release)
	clustertest.Eventually(t, 5*time.Second, "all answers", func() bool { return answered.Load() == 225 })
	close(entries)
	var sizes []int
	for e := range entries {
		n := len(e.GetBatches().GetBatches())
		sizes = append(sizes, n)
		if size := proto.Size(e); size > mergeBytes+1024 && n > 1 {
			t.Errorf("an entry of %d batches has %d bytes", n, size)
		}
	}
	if len(sizes) < 5 || sizes[0] != 1 || sizes[1] != 2 || sizes[2] < 5 {
		t.Errorf("batches of each entry: %v", sizes)
	}
}

type waitingFuture struct{ done chan struct{} }

func (f waitingFuture) Error() error { <-f.done; return raft.ErrLeadershipLost }
func (waitingFuture) Response() any  { return nil }
func (waitingFuture) Index() uint64  { return 0 }

// TestStuckTransferIsNoticed is hashicorp/raft issue 696 as it shows here.
func TestStuckTransferIsNoticed(t *testing.T) {
	m := testCommitter(t, func([]byte) raft.ApplyFuture { return fakeFuture{err: raft.ErrLeadershipTransferInProgress} })
	send := func(m *Committer) {
		done := make(chan struct{})
		m.Submit(&Submission{Batch: testBatch(t, &fsmpb.Batch{Seq: 1}), Answer: func(*clusterpb.SubmitResponse) { close(done) }})
		<-done
	}
	send(m)
	since := m.RefusingSince()
	if send(m); since.IsZero() || m.RefusingSince() != since {
		t.Errorf("refusing since %v, then %v", since, m.RefusingSince())
	}
}
