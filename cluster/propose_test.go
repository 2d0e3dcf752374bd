package cluster

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// leaves counts how often each request is in the audit log of a node.
func leaves(t *testing.T, n *testNode) map[[16]byte]int {
	t.Helper()
	if err := n.audit.Sync(); err != nil {
		t.Fatal(err)
	}
	got := make(map[[16]byte]int)
	for from := uint64(0); from < n.audit.Size(); {
		es, err := n.audit.Read(from, 1000, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			got[e.RequestID]++
		}
		from += uint64(len(es))
	}
	return got
}

// TestLeaderKillLosesNothing kills the leader under load: every proposal that
// was submitted gets its one verdict from the next leader, and each accepted
// record is in the log exactly once.
func TestLeaderKillLosesNothing(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	old := c.leader()
	var mu sync.Mutex
	accepted := make(map[[16]byte]bool)
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	for _, n := range c.followers() {
		for range 8 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for ctx.Err() == nil {
					r := clustertest.Record()
					v, err := n.Propose(context.Background(), r)
					if err != nil || v.Verdict != fsm.Accepted {
						t.Errorf("%s: Propose = %+v, %v", n.id, v, err)
						return
					}
					mu.Lock()
					accepted[[16]byte(r.RequestId)] = true
					mu.Unlock()
				}
			}()
		}
	}
	time.Sleep(200 * time.Millisecond)
	c.kill(old.id)
	next := c.leader()
	mu.Lock()
	before := len(accepted)
	mu.Unlock()
	clustertest.Eventually(t, time.Minute, "progress under the new leader", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(accepted) > before+50
	})
	stop()
	wg.Wait()
	c.converged()
	got := leaves(t, next)
	for id := range accepted {
		if got[id] != 1 {
			t.Errorf("accepted request %x is %d times in the log", id, got[id])
		}
	}
	if len(got) != len(accepted)+1 { // and the founding
		t.Errorf("%d requests in the log, %d accepted", len(got), len(accepted))
	}
	c.start(old.id)
	c.converged()
	c.noFaults()
}

// TestLostAnswers drops answers of the leader: the batches are sent again and
// must be answered with the verdicts that they had.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	var dropping atomic.Bool
	var dropped, repeated atomic.Int64
	c := startCluster(t, 3, func(_ string, cfg *Config) {
		cfg.Timeouts.Resubmit = 150 * time.Millisecond
		cfg.Timeouts.Release = 100 * time.Millisecond
		var n atomic.Int64
		cfg.Hooks.DropAnswer = func(_ string, r *clusterpb.SubmitResponse) bool {
			if r.RepeatedBatch {
				repeated.Add(1)
			}
			drop := dropping.Load() && r.Seq != 0 && !r.RepeatedBatch && n.Add(1)%4 == 0
			if drop {
				dropped.Add(1)
			}
			return drop
		}
	})
	c.finalize() // so that repeated answers say which records there are
	dropping.Store(true)
	var mu sync.Mutex
	var late int
	var wg sync.WaitGroup
	sent := make(map[[16]byte]uint64) // the index that each was told
	for _, n := range c.up() {
		for range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for range 10 {
					r := clustertest.Record()
					v, err := n.Propose(context.Background(), r)
					if err != nil || v.Verdict != fsm.Accepted {
						t.Errorf("%s: Propose = %+v, %v", n.id, v, err)
						return
					}
					if v.Record == nil {
						t.Errorf("%s: the answer for %x names no record", n.id, r.RequestId)
						return
					}
					mu.Lock()
					sent[[16]byte(r.RequestId)] = *v.Record
					if v.TooLate() {
						late++
					}
					mu.Unlock()
				}
			}()
		}
	}
	wg.Wait()
	if dropped.Load() == 0 || repeated.Load() == 0 {
		t.Fatalf("%d answers dropped, %d repeated: nothing was tested", dropped.Load(), repeated.Load())
	}
	// A repeated answer tells of a commit up to the first send, which is longer
	// ago than Release here.
	if late == 0 {
		t.Error("no verdict is late, though answers were lost for longer than Release")
	}
	c.converged()
	got, l := leaves(t, c.leader()), c.leader().audit
	for id, index := range sent {
		if got[id] != 1 {
			t.Errorf("request %x is %d times in the log", id, got[id])
		}
		if e, err := l.Read(index, 1, 1<<20); err != nil || len(e) == 0 || e[0].RequestID != id {
			t.Errorf("request %x was told of record %d, which is of another one (%v)", id, index, err)
		}
	}
	c.noFaults()
}

// TestOlderIncarnationIsFenced registers a newer incarnation of a running node.
func TestOlderIncarnationIsFenced(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, slowElections)
	n := c.followers()[0]
	mustPropose(t, n, clustertest.Record())
	done := make(chan *clusterpb.SubmitResponse, 1)
	reg := n.registration()
	reg.Incarnation++
	c.leader().committer.Submit(&commit.Submission{Register: reg, Answer: func(r *clusterpb.SubmitResponse) { done <- r }})
	if r := <-done; r.Status != clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED {
		t.Fatalf("registration: %v", r)
	}
	go n.Propose(context.Background(), clustertest.Record())
	select {
	case err := <-n.faults:
		if !errors.Is(err, ErrIncarnation) {
			t.Errorf("fault = %v, want %v", err, ErrIncarnation)
		}
	case <-time.After(time.Minute):
		t.Fatal("the older incarnation was not fenced")
	}
	if _, err := n.Propose(within(t, 20*time.Second), clustertest.Record()); !errors.Is(err, ErrFenced) {
		t.Errorf("Propose on a fenced node = %v, want %v", err, ErrFenced)
	}
}

func TestBarrier(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	id := fsm.KeyID{Region: "eu-central-1", ID: [16]byte{7}}
	for i := range 30 {
		writer, reader := c.up()[i%3], c.up()[(i+1)%3]
		v := mustPropose(t, writer, clustertest.PolicyChange(writer.barred(t), id, "x"))
		if got := reader.barred(t); got.Index() < v.Index {
			t.Fatalf("after a barrier the state has index %d, and %d was committed before", got.Index(), v.Index)
		} else if _, version := got.KeyPolicy(id); version != v.Index {
			t.Fatalf("version %d after the barrier, want %d", version, v.Index)
		}
	}
	// Barriers write nothing, on the leader and on followers.
	before := c.leader().raft.Load().LastIndex()
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() { c.up()[i%3].barred(t) })
	}
	wg.Wait()
	if took := c.leader().raft.Load().LastIndex() - before; took > 1 { // a tick of the clock
		t.Errorf("200 barriers took %d entries", took)
	}
	c.noFaults()
}

// TestBarrierWithoutAMajority: a leader that was cut off does not vouch for a state
// that others may have left behind, and one that took over vouches for all of it.
func TestBarrierWithoutAMajority(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, func(_ string, cfg *Config) { cfg.Timeouts.LeaderWait = 300 * time.Millisecond })
	id := fsm.KeyID{Region: "eu-central-1", ID: [16]byte{7}}
	old := c.leader()
	old.barred(t)
	v := mustPropose(t, old, clustertest.PolicyChange(old.State(), id, "x"))
	c.kill(old.id)
	for _, n := range c.up() {
		var err error
		clustertest.Eventually(t, time.Minute, "a barrier", func() bool { err = n.Barrier(within(t, 10*time.Second)); return err == nil })
		if _, version := n.State().KeyPolicy(id); version != v.Index {
			t.Errorf("%s: after a barrier the change of the last leader is not there", n.id)
		}
	}
	lone := c.leader()
	c.kill(c.followers()[0].id)
	start := time.Now()
	if err := lone.Barrier(within(t, 10*time.Second)); !errors.Is(err, ErrNoLeader) {
		t.Errorf("a barrier without a majority: %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v to say so", d)
	}
}

// barred is the state after a barrier.
func (n *testNode) barred(t *testing.T) *fsm.State {
	t.Helper()
	var err error
	clustertest.Eventually(t, time.Minute, "a barrier", func() bool { // a busy machine may have no leader for a moment
		err = n.Barrier(within(t, 10*time.Second))
		return !errors.Is(err, ErrNoLeader)
	})
	if err != nil {
		t.Error(err)
	}
	return n.State()
}

func TestNoLeader(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, func(_ string, cfg *Config) { cfg.Timeouts.LeaderWait = 300 * time.Millisecond })
	n := c.leader()
	for _, f := range c.followers() {
		c.kill(f.id)
	}
	clustertest.Eventually(t, time.Minute, "loss of leadership", func() bool { return !n.IsLeader() })
	start := time.Now()
	_, err := n.Propose(within(t, 10*time.Second), clustertest.Record())
	if !errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrOutcomeUnknown) {
		t.Errorf("Propose without a majority = %v", err)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("it took %v to say so", d)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := n.Propose(ctx, clustertest.Record()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Propose with a short context = %v", err)
	}
	if _, err := n.ExecuteOnLeader(within(t, time.Second), nil); !errors.Is(err, ErrNoLeader) {
		t.Errorf("ExecuteOnLeader = %v", err)
	}
}

func TestOverload(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, func(_ string, cfg *Config) {
		cfg.MaxQueuedRecords = 10
		cfg.Timeouts.LeaderWait = 500 * time.Millisecond
	})
	n := c.leader()
	for _, f := range c.followers() {
		c.kill(f.id)
	}
	clustertest.Eventually(t, time.Minute, "loss of leadership", func() bool { return !n.IsLeader() })
	var wg sync.WaitGroup
	var overloaded atomic.Int64
	for range 40 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := n.Propose(context.Background(), clustertest.Record()); errors.Is(err, ErrOverloaded) {
				overloaded.Add(1)
			}
		}()
	}
	wg.Wait()
	if got := overloaded.Load(); got < 25 {
		t.Errorf("%d of 40 proposals were refused with room for 10", got)
	}
	if records, bytes := n.proposer.Waiting(); records != 0 || bytes != 0 {
		t.Errorf("%d records of %d bytes still count as waiting", records, bytes)
	}
}

func TestRecordsThatCannotBeProposed(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	n := c.leader()
	unknown := clustertest.Record()
	unknown.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1}) // field 127
	deep := clustertest.PolicyChange(n.State(), fsm.KeyID{Region: "r", ID: [16]byte{}}, "x")
	deep.Changes[0].GetPutKeyPolicy().ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1})
	use := clustertest.Record()
	use.Uses = []*fsmpb.Use{{}}
	use.Uses[0].ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 1})
	large := clustertest.Record()
	large.Body = make([]byte, 512<<10)
	text := clustertest.PolicyChange(n.State(), fsm.KeyID{Region: "r"}, "\xff")
	for name, r := range map[string]*fsmpb.Record{
		"nil": nil, "unknown field": unknown, "unknown field inside": deep, "large": large, "not UTF-8": text,
		"empty change": {Changes: []*fsmpb.Change{nil}}, "empty use": {Uses: []*fsmpb.Use{nil}}, "unknown field of a use": use,
	} {
		if _, err := n.Propose(within(t, 20*time.Second), r); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: Propose = %v, want %v", name, err, ErrRecord)
		}
	}
	mustPropose(t, n, clustertest.Record())
	c.noFaults()
}
