package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

func histogram(t testing.TB, h prometheus.Histogram) *dto.Histogram {
	t.Helper()
	var m dto.Metric
	if err := h.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.Histogram
}

// TestEntriesFillUp holds the bar of the design: with 64 clients in closed loops
// on three nodes, an entry carries 16 records or more.
func TestEntriesFillUp(t *testing.T) {
	c := startCluster(t, 3, nil)
	l := c.leader()
	before := histogram(t, l.metrics.entryRecords)
	var done atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex
	var latencies []time.Duration
	ctx := within(t, 2*time.Second)
	start := time.Now()
	for i := range 64 {
		n := c.up()[i%3]
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				began := time.Now()
				v, err := n.Propose(context.Background(), record())
				if err != nil || v.Verdict != fsm.Accepted {
					t.Errorf("Propose = %+v, %v", v, err)
					return
				}
				d := time.Since(began)
				mu.Lock()
				latencies = append(latencies, d)
				mu.Unlock()
				done.Add(1)
			}
		}()
	}
	wg.Wait()
	took := time.Since(start)
	after := histogram(t, l.metrics.entryRecords)
	entries := after.GetSampleCount() - before.GetSampleCount()
	records := after.GetSampleSum() - before.GetSampleSum()
	slices.Sort(latencies)
	t.Logf("%d records in %v: %.0f/s, %.1f records an entry, p50 %v, p99 %v", done.Load(), took,
		float64(done.Load())/took.Seconds(), records/float64(entries), latencies[len(latencies)/2], latencies[len(latencies)*99/100])
	if records/float64(entries) < 16 {
		t.Errorf("%.1f records an entry, want 16", records/float64(entries))
	}
	c.noFaults()
}

// policyChange is a record that changes a key policy and depends on its version.
func policyChange(s *fsm.State, id fsm.KeyID, document string) *fsmpb.Record {
	r := record()
	_, version := s.KeyPolicy(id)
	r.Reads = []*fsmpb.Read{{Kind: fsmpb.Kind_KIND_KEY_POLICY, Id: id.Bytes(), Version: version}}
	r.Changes = []*fsmpb.Change{{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{
		Key: id.ID[:], Region: id.Region, Document: document,
	}}}}
	return r
}

func TestExclusiveNeverConflicts(t *testing.T) {
	c := startCluster(t, 3, nil)
	l := c.leader()
	id := fsm.KeyID{Region: "eu-central-1", ID: [16]byte{1}}
	ctx := within(t, 1500*time.Millisecond)
	var wg sync.WaitGroup
	var conflicts, wins, exclusive atomic.Int64
	for i, n := range c.up() { // ordinary writers that fight for the same object
		for j := range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for ctx.Err() == nil {
					v, err := n.Propose(context.Background(), policyChange(n.State(), id, fmt.Sprint(i, j)))
					if err != nil {
						t.Error(err)
						return
					}
					if v.Verdict == fsm.Conflict {
						conflicts.Add(1)
					} else {
						wins.Add(1)
					}
				}
			}()
		}
	}
	for range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				v, err := l.ProposeExclusive(context.Background(), func(s *fsm.State) (*fsmpb.Record, error) {
					return policyChange(s, id, "exclusive"), nil
				})
				if err != nil || v.Verdict != fsm.Accepted {
					t.Errorf("ProposeExclusive = %+v, %v", v, err)
					return
				}
				exclusive.Add(1)
			}
		}()
	}
	wg.Wait()
	t.Logf("%d conflicts and %d wins of others, %d exclusive", conflicts.Load(), wins.Load(), exclusive.Load())
	if conflicts.Load() == 0 || exclusive.Load() < 10 {
		t.Error("the test did not put ProposeExclusive under pressure")
	}
	if _, err := c.followers()[0].ProposeExclusive(within(t, time.Second), nil); err == nil {
		t.Error("ProposeExclusive worked on a follower")
	}
	c.converged()
	c.noFaults()
}

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
func testBatch(t testing.TB, b *fsmpb.Batch) *batch {
	t.Helper()
	encoded, err := proto.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return &batch{node: b.Node, seq: b.Seq, records: len(b.Records), encoded: encoded}
}

func testMerger(t *testing.T, r fakeRaft) *merger {
	m := newMerger(&merger{
		raft: r, evidence: func() (*fsmpb.Clock, *fsmpb.StateCheck) { return &fsmpb.Clock{}, nil },
		registered: func(_ string, incarnation uint64) bool { return incarnation == 7 },
		log:        testLogger(), maxBytes: 1 << 20, metrics: newMetrics(),
	})
	t.Cleanup(func() { m.close(within(t, time.Second)) })
	m.setOpen(true)
	return m
}

// TestMergerNeverGuesses maps what Raft may say to what nodes are told.
func TestMergerNeverGuesses(t *testing.T) {
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
		"disk":                {fakeFuture{err: ErrStorage}, nil, clusterpb.SubmitStatus_SUBMIT_STATUS_UNKNOWN},
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
			m := testMerger(t, func([]byte) raft.ApplyFuture { return tc.future })
			got := make(chan *clusterpb.SubmitResponse, 1)
			s := &submission{register: tc.register, answer: func(r *clusterpb.SubmitResponse) { got <- r }}
			if tc.register == nil {
				s.batch = testBatch(t, &fsmpb.Batch{Seq: 3, Records: []*fsmpb.Record{{}}})
			}
			m.submit(s)
			if r := <-got; r.Status != tc.want {
				t.Errorf("status %v, want %v", r.Status, tc.want)
			}
		})
	}
}

// TestMergerLimits holds entries back to see how batches are put together.
func TestMergerLimits(t *testing.T) {
	entries := make(chan *fsmpb.Entry, 100)
	release := make(chan struct{})
	m := testMerger(t, func(cmd []byte) raft.ApplyFuture {
		var e fsmpb.Entry
		if err := proto.Unmarshal(cmd, &e); err != nil {
			t.Error(err)
		}
		entries <- &e
		return waitingFuture{release}
	})
	var answered atomic.Int64
	batch := func(size int) *submission {
		b := testBatch(t, &fsmpb.Batch{Seq: 1, Records: []*fsmpb.Record{{Body: make([]byte, size)}}})
		return &submission{batch: b, size: b.size(), answer: func(*clusterpb.SubmitResponse) { answered.Add(1) }}
	}
	// The first goes at once, the second once it is worth an entry, and the third
	// waits for a place.
	m.submit(batch(100))
	eventually(t, 5*time.Second, "an entry", func() bool { return len(entries) == 1 })
	m.submit(batch(100))
	m.submit(batch(secondBytes))
	eventually(t, 5*time.Second, "a second entry", func() bool { return len(entries) == 2 })
	m.submit(batch(100))
	for range 20 {
		m.submit(batch(10 << 10))
	}
	m.submit(batch(300 << 10)) // too large to share
	for range 200 {
		m.submit(batch(10 << 10))
	}
	if got := answered.Load(); got < 50 {
		t.Errorf("%d of 200 batches beyond the limit were refused", got)
	}
	if n := len(entries); n != entriesInFlight {
		t.Errorf("%d entries in flight, want %d", n, entriesInFlight)
	}
	close(release)
	eventually(t, 5*time.Second, "all answers", func() bool { return answered.Load() == 225 })
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

// TestStuckTransferIsNoticed is hashicorp/raft issue 696 as it shows: a leader
// that refuses everything.
func TestStuckTransferIsNoticed(t *testing.T) {
	m := testMerger(t, func([]byte) raft.ApplyFuture { return fakeFuture{err: raft.ErrLeadershipTransferInProgress} })
	send := func(m *merger) {
		done := make(chan struct{})
		m.submit(&submission{batch: testBatch(t, &fsmpb.Batch{Seq: 1}), answer: func(*clusterpb.SubmitResponse) { close(done) }})
		<-done
	}
	send(m)
	since := m.refusingSince()
	if send(m); since.IsZero() || m.refusingSince() != since {
		t.Errorf("refusing since %v, then %v", since, m.refusingSince())
	}

	c := startCluster(t, 1, nil)
	n := c.leader()
	n.merger.mu.Lock()
	n.merger.refusing = time.Now().Add(-6 * quick.Election)
	n.merger.mu.Unlock()
	select {
	case err := <-n.faults:
		if !errors.Is(err, ErrTransferStuck) {
			t.Errorf("fault = %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("not noticed")
	}
}

func TestRepeatedSnapshotIsNoticed(t *testing.T) {
	c := startCluster(t, 1, nil)
	n := c.leader()
	for range 10 {
		n.restored(41)
	}
	select {
	case err := <-n.faults:
		if !errors.Is(err, ErrSnapshotLoop) {
			t.Errorf("fault = %v", err)
		}
	case <-time.After(time.Second):
		t.Error("not noticed")
	}
}
