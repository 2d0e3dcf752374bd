package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster/gossip"
	"github.com/conclavekms/conclave/cluster/gossip/gossiptest"
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/leadership"
	"github.com/conclavekms/conclave/fsm"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// memberlist: one goroutine of a connection whose peer is gone ends with
		// its read timeout.
		goleak.IgnoreAnyFunction("github.com/hashicorp/memberlist.(*Memberlist).handleConn"),
		// A write that a test made hang.
		goleak.IgnoreAnyFunction("github.com/conclavekms/conclave/cluster.TestFailingDiskOfTheLeader.func1.1"),
	)
}

func TestShutdownHandsOver(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, func(_ string, cfg *Config) {
		// Longer than the test waits: only a handover is quick enough.
		cfg.Timeouts.Heartbeat, cfg.Timeouts.Election, cfg.Timeouts.Lease = 3*time.Second, 3*time.Second, time.Second
	})
	old := c.leader()
	knowEachOther(t, c) // a node votes for none that might be a thief
	start := time.Now()
	old.end(t, false)
	next := c.leader()
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("a new leader took %v", d)
	}
	if next == old {
		t.Error("the stopped node leads")
	}
	mustPropose(t, c.followers()[0], clustertest.Record())
	c.noFaults()
}

func TestUnfitLeaderStepsAside(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	old := c.leader()
	var fit atomic.Bool
	for _, n := range c.up() {
		if n == old {
			n.SetCanLead(fit.Load)
		}
	}
	clustertest.Eventually(t, time.Minute, "another leader", func() bool { return c.leader() != old })
	// Where nobody is fit, the leader stays: a sealed cluster must keep a leader.
	for _, n := range c.up() {
		n.SetCanLead(func() bool { return false })
	}
	transfers := func() (sum float64) {
		for _, n := range c.up() {
			for _, result := range []string{"ok", "failed"} {
				var m dto.Metric
				if err := n.metrics.transfers.WithLabelValues(result).Write(&m); err != nil {
					t.Fatal(err)
				}
				sum += m.Counter.GetValue()
			}
		}
		return sum
	}
	before := transfers()
	time.Sleep(2 * leadership.Tick)
	if transfers() != before {
		t.Error("a leader stepped aside though nobody is fit")
	}
	c.noFaults()
}

func TestOnLeader(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.startAll()
	var mu sync.Mutex
	leading := make(map[string]int)
	for _, n := range c.up() {
		n.OnLeader(func(ctx context.Context) {
			mu.Lock()
			leading[n.id]++
			mu.Unlock()
			<-ctx.Done()
			mu.Lock()
			leading[n.id]--
			mu.Unlock()
		})
	}
	only := func(id string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			for _, n := range c.ids {
				if n == id != (leading[n] == 1) {
					return false
				}
			}
			return true
		}
	}
	for range 3 {
		l := c.leader()
		clustertest.Eventually(t, time.Minute, "the function to run on the leader alone", only(l.id))
		// On a busy machine a transfer can take longer than Raft waits for it.
		clustertest.Eventually(t, time.Minute, "another leader", func() bool {
			return c.leader() != l || l.Changes().TransferLeadership(within(t, 5*time.Second), "") == nil && c.leader() != l
		})
	}
	c.noFaults()
}

// TestFlappingLeadership moves the leadership around under load.
func TestFlappingLeadership(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var count atomic.Int64
	for _, n := range c.up() {
		for range 3 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for ctx.Err() == nil {
					if v, err := n.Propose(context.Background(), clustertest.Record()); err != nil || v.Verdict != fsm.Accepted {
						t.Errorf("%s: %+v, %v", n.id, v, err)
						return
					}
					count.Add(1)
				}
			}()
		}
	}
	moved := 0
	for range 10 {
		l := c.leader()
		if l.Changes().TransferLeadership(within(t, 2*time.Second), "") == nil {
			moved++
		}
	}
	before := count.Load()
	clustertest.Eventually(t, time.Minute, "progress", func() bool { return count.Load() > before+20 })
	stop()
	wg.Wait()
	if moved < 5 {
		t.Errorf("%d of 10 transfers worked", moved)
	}
	c.converged()
	got := leaves(t, c.leader())
	if int64(len(got)) != count.Load()+1 { // and the founding
		t.Errorf("%d records in the log, %d accepted", len(got), count.Load())
	}
	c.noFaults()
}

func TestExecuteOnLeader(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	for _, n := range c.up() {
		n.SetExecutor(func(_ context.Context, from string, p []byte) ([]byte, error) {
			switch string(p) {
			case "unknown":
				return nil, ErrOutcomeUnknown
			case "refuse":
				return nil, errors.New("no such thing")
			}
			return []byte(n.id + " ran " + string(p) + " for " + from), nil
		})
	}
	l := c.leader()
	for _, n := range c.up() {
		out, err := n.ExecuteOnLeader(within(t, 20*time.Second), []byte("x"))
		if want := l.id + " ran x for " + n.id; err != nil || string(out) != want {
			t.Errorf("%s: %q, %v; want %q", n.id, out, err, want)
		}
		if _, err := n.ExecuteOnLeader(within(t, 20*time.Second), []byte("unknown")); !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("%s: unknown outcome became %v", n.id, err)
		}
		if _, err := n.ExecuteOnLeader(within(t, 20*time.Second), []byte("refuse")); err == nil || errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("%s: refusal became %v", n.id, err)
		}
	}
	if _, err := l.ExecuteOnLeader(within(t, time.Second), make([]byte, MaxPayload+1)); err == nil {
		t.Error("a payload that is too large went")
	}
	members := l.Members()
	if len(members) != 3 {
		t.Fatalf("%d members", len(members))
	}
	clustertest.Eventually(t, time.Minute, "registrations of all", func() bool {
		for _, m := range l.Members() {
			if m.Registered == nil {
				return false
			}
		}
		return true
	})
}

// resendAfterSnapshot sends a follower the first entry after the snapshot that it received once
// more, as a leader does that did not get the answer.
func resendAfterSnapshot(t *testing.T, l, f *testNode) {
	t.Helper()
	meta, _ := newestSnapshot(t, f)
	if err := f.store.GetLog(meta.Index, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("void: the follower's log has the entry with which its snapshot ends: %v", err)
	}
	next := new(raft.Log)
	if err := l.store.GetLog(meta.Index+1, next); err != nil {
		t.Fatal(err)
	}
	var answer raft.AppendEntriesResponse
	err := l.trans.AppendEntries(raft.ServerID(f.id), raft.ServerAddress(f.advertise), &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte(l.id), Addr: []byte(l.advertise)},
		Term:      l.term(), PrevLogEntry: meta.Index, PrevLogTerm: meta.Term, Entries: []*raft.Log{next},
	}, &answer)
	if err != nil || !answer.Success {
		t.Errorf("the follower refuses an entry that continues its snapshot: %+v, %v", answer, err)
	}
}

// TestSnapshotAndBackfill has a node miss so much that the log no longer has it:
// it gets a snapshot, which lacks the audit records, and fetches those.
func TestSnapshotAndBackfill(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, func(_ string, cfg *Config) { cfg.TrailingLogs = 5 })
	f := c.followers()[0]
	c.found()
	mustPropose(t, f, clustertest.Record())
	c.converged()
	c.kill(f.id)
	want := 2
	for range 300 {
		mustPropose(t, c.leader(), clustertest.Record())
		want++
	}
	for _, n := range c.up() {
		if err := n.raft.Load().Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 { // behind the snapshot
		mustPropose(t, c.leader(), clustertest.Record())
		want++
	}
	c.start(f.id)
	c.converged()
	clustertest.Eventually(t, time.Minute, "a complete audit log", func() bool {
		_, _, missing := f.audit.Missing()
		return !missing && f.audit.Size() == uint64(want)
	})
	got := leaves(t, f)
	if len(got) != want {
		t.Errorf("%d records, want %d", len(got), want)
	}
	ref := leaves(t, c.leader())
	for id := range ref {
		if got[id] != 1 {
			t.Errorf("record %x is %d times in the filled log", id, got[id])
		}
	}
	resendAfterSnapshot(t, c.leader(), f)
	// And from its own snapshot and log after a restart.
	if err := f.raft.Load().Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	c.kill(f.id)
	c.start(f.id)
	mustPropose(t, f, clustertest.Record())
	c.converged()
	c.noFaults()
}

func TestSnapshotBySize(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, func(_ string, cfg *Config) { cfg.SnapshotBytes = 20 << 10; cfg.TrailingLogs = 5 })
	c.found()
	n := c.leader()
	for range 100 {
		mustPropose(t, n, clustertest.Record())
	}
	clustertest.Eventually(t, time.Minute, "a snapshot", func() bool {
		list, err := n.snapshots.List()
		return err == nil && len(list) > 0
	})
	if fi, err := os.Stat(filepath.Join(n.dir, "groups", "0", "raft", "snapshots")); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("snapshot directory: %v, %v", fi.Mode(), err)
	}
	c.noFaults()
}

// lies are what a node can send instead of entries that it was asked for.
var lies = []struct {
	name string
	tell func(l *auditlog.Log, from uint64, es []auditlog.Entry) ([]auditlog.Entry, error)
}{
	{"corrupted", func(_ *auditlog.Log, _ uint64, es []auditlog.Entry) ([]auditlog.Entry, error) {
		es[len(es)-1].Body[0] ^= 1
		return es, nil
	}},
	{"forged", func(_ *auditlog.Log, _ uint64, es []auditlog.Entry) ([]auditlog.Entry, error) {
		for i := range es {
			es[i].Body = append([]byte("forged"), es[i].Body...)
		}
		return es, nil
	}},
	{"truncated", func(_ *auditlog.Log, _ uint64, es []auditlog.Entry) ([]auditlog.Entry, error) { return es[:0], nil }},
	{"without one", func(_ *auditlog.Log, _ uint64, es []auditlog.Entry) ([]auditlog.Entry, error) {
		return append(es[:1:1], es[2:]...), nil
	}},
	{"reordered", func(_ *auditlog.Log, _ uint64, es []auditlog.Entry) ([]auditlog.Entry, error) {
		es[0], es[1] = es[1], es[0]
		return es, nil
	}},
	{"reordered and renumbered", func(_ *auditlog.Log, _ uint64, es []auditlog.Entry) ([]auditlog.Entry, error) {
		es[0], es[1] = es[1], es[0]
		es[0].Index, es[1].Index = es[1].Index, es[0].Index
		return es, nil
	}},
	{"stale", func(l *auditlog.Log, from uint64, es []auditlog.Entry) ([]auditlog.Entry, error) {
		return l.Read(from^1, len(es), 1<<20)
	}},
	{"stale and renumbered", func(l *auditlog.Log, from uint64, es []auditlog.Entry) ([]auditlog.Entry, error) {
		old, err := l.Read(from^1, len(es), 1<<20)
		for i := range old {
			old[i].Index = from + uint64(i)
		}
		return old, err
	}},
}

// liar is the log of a node that tells each of the lies to the node that it is read for. When it
// has told all, it is honest.
type liar struct {
	*auditlog.Log
	told *atomic.Int64
}

func (l liar) Read(from uint64, max, maxBytes int) ([]auditlog.Entry, error) {
	es, err := l.Log.Read(from, max, maxBytes)
	if n := l.told.Load(); err == nil && len(es) > 2 && n < int64(len(lies)) {
		l.told.Add(1)
		return lies[n].tell(l.Log, from, es)
	}
	return es, err
}

// shy is the log of a node that has nothing to send until the liar has told everything.
type shy struct {
	*auditlog.Log
	told *atomic.Int64
}

func (l shy) Read(from uint64, max, maxBytes int) ([]auditlog.Entry, error) {
	if l.told.Load() < int64(len(lies)) {
		return nil, auditlog.ErrMissing
	}
	return l.Log.Read(from, max, maxBytes)
}

// TestBackfillSurvivesALyingPeer: a node whose audit log is empty fetches it over the peer port
// from a node that sends whatever is wrong. It takes none of that, and has the
// others' log in the end.
func TestBackfillSurvivesALyingPeer(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, func(_ string, cfg *Config) { cfg.TrailingLogs = 5 })
	var told atomic.Int64
	c.wrap = func(id string, l *auditlog.Log) AuditLog {
		switch id {
		case "n1":
			return liar{l, &told}
		case "n2":
			return shy{l, &told}
		}
		return l
	}
	c.startAll()
	victim := c.nodes["n3"]
	c.found()
	mustPropose(t, victim, clustertest.Record())
	c.kill("n3")
	for range 50 {
		mustPropose(t, c.leader(), clustertest.Record())
	}
	for _, n := range c.up() {
		if err := n.raft.Load().Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(GroupDir(victim.dir), "audit")); err != nil {
		t.Fatal(err)
	}
	c.start("n3")
	clustertest.Eventually(t, time.Minute, "a complete audit log", func() bool {
		_, _, missing := victim.audit.Missing()
		return !missing && victim.audit.Size() == 52
	})
	if n := told.Load(); n != int64(len(lies)) {
		t.Errorf("only %d of %d lies were told", n, len(lies))
	}
	mine, err := victim.audit.Read(0, 100, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := c.nodes["n2"].audit.Read(0, 100, 1<<20)
	if err != nil || len(mine) != len(theirs) {
		t.Fatalf("%d entries, %d on another node: %v", len(mine), len(theirs), err)
	}
	for i := range mine {
		if mine[i].LeafHash() != theirs[i].LeafHash() {
			t.Errorf("entry %d is not the other node's", i)
		}
	}
	c.noFaults()
}

// fakeClock is a wall clock that tests move.
type fakeClock struct{ offset atomic.Int64 }

func (f *fakeClock) Now() time.Time { return time.Now().Add(time.Duration(f.offset.Load())) }

func TestClocks(t *testing.T) {
	t.Parallel()
	clocks := map[string]*fakeClock{"n1": {}, "n2": {}, "n3": {}}
	c := startCluster(t, 3, func(id string, cfg *Config) { cfg.Clock = clocks[id] })
	clusterTime := func() time.Time {
		t.Helper()
		l := c.leader()
		v := mustPropose(t, l, clustertest.Record())
		if err := l.WaitApplied(within(t, 5*time.Second), v.Index); err != nil {
			t.Fatal(err)
		}
		return time.Unix(0, l.State().Time())
	}
	near := func(got, want time.Time) bool { return got.Sub(want).Abs() < 4*time.Second }
	clustertest.Eventually(t, time.Minute, "the right time", func() bool { return near(clusterTime(), time.Now()) })

	// The leader's clock alone jumps a month: cluster time does not follow, and
	// another node takes over.
	l := c.leader()
	clocks[l.id].offset.Store(int64(30 * 24 * time.Hour))
	for range 100 {
		if got := clusterTime(); !near(got, time.Now()) {
			t.Fatalf("cluster time followed one clock to %v", got)
		}
	}
	clustertest.Eventually(t, time.Minute, "a leader with the right time", func() bool { return c.leader() != l })
	if got := clusterTime(); !near(got, time.Now()) {
		t.Errorf("cluster time is %v", got)
	}
	clocks[l.id].offset.Store(0)

	// All clocks are set two hours ahead: a majority agrees.
	for _, f := range clocks {
		f.offset.Store(int64(2 * time.Hour))
	}
	clustertest.Eventually(t, time.Minute, "the new time", func() bool { return near(clusterTime(), time.Now().Add(2*time.Hour)) })

	// And back: time never runs backwards.
	before := clusterTime()
	for _, f := range clocks {
		f.offset.Store(0)
	}
	for range 10 {
		if got := clusterTime(); got.Before(before) {
			t.Fatalf("cluster time ran back from %v to %v", before, got)
		}
	}
	c.noFaults()
}

func TestIdleClusterKeepsTime(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, func(_ string, cfg *Config) { cfg.Timeouts.ClockTick = 100 * time.Millisecond })
	n := c.leader()
	mustPropose(t, n, clustertest.Record())
	before := n.State().Time()
	clustertest.Eventually(t, time.Minute, "a later time", func() bool { return n.State().Time() > before+int64(300*time.Millisecond) })
}

// TestGossipDecidesNothing runs gossip, with a liar who has the key.
func TestGossipDecidesNothing(t *testing.T) {
	t.Parallel()
	key, err := gossip.DeriveKey([]byte("0123456789abcdef0123456789abcdef\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gossip.DeriveKey([]byte(" short ")); err == nil {
		t.Error("a short key file was taken")
	}
	addrs := map[string]string{"n1": freeAddr(t), "n2": freeAddr(t), "n3": freeAddr(t)}
	c := startCluster(t, 3, func(id string, cfg *Config) {
		cfg.Gossip = gossip.Config{Enable: true, Listen: addrs[id], Key: key, Seeds: []string{addrs["n1"], addrs["n2"]}}
	})
	clustertest.Eventually(t, time.Minute, "gossip to find everybody", func() bool {
		for _, n := range c.up() {
			for _, m := range n.Members() {
				if !m.Alive {
					return false
				}
			}
		}
		return true
	})
	members := func() string { return fmt.Sprint(c.leader().members.Configuration().Servers) }
	before := members()
	lie := func(name, peer string) {
		l, err := gossiptest.Liar(name, freeAddr(t), peer, key)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Shutdown()
		l.Join([]string{addrs["n1"], addrs["n2"], addrs["n3"]})
		time.Sleep(200 * time.Millisecond)
	}
	lie("stranger", "127.0.0.1:1")
	lie(c.followers()[0].id, "127.0.0.1:1") // a member's name with a false address
	if got := members(); got != before {
		t.Errorf("the Raft configuration is %s, was %s", got, before)
	}
	c.finalize()
	gone := c.followers()[0]
	c.shrink(gone.id)
	before = members()
	lie(gone.id, addrs[gone.id])
	if got := members(); got != before || c.leader().members.Has(gone.id) {
		t.Errorf("with gossip of %s, which was removed, the Raft configuration is %s, was %s", gone.id, got, before)
	}
	gone.end(t, true)
	for len(gone.faults) > 0 {
		<-gone.faults // it was removed
	}
	if a := c.leader().gossip.Address("stranger"); a != "" {
		t.Errorf("a stranger is in the address book: %s", a)
	}
	for _, n := range c.up() {
		mustPropose(t, n, clustertest.Record())
	}
	c.converged()
	c.noFaults()
}

// TestShutdownFinishesWhatWasSubmitted stops the leader under load on itself:
// no outcome may be lost for want of a moment.
func TestShutdownFinishesWhatWasSubmitted(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, slowElections)
	l := c.leader()
	var wg sync.WaitGroup
	var accepted, unknown atomic.Int64
	for range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				v, err := l.Propose(context.Background(), clustertest.Record())
				switch {
				case err == nil && v.Verdict == fsm.Accepted:
					accepted.Add(1)
				case errors.Is(err, ErrShutdown):
					return
				default:
					unknown.Add(1)
					return
				}
			}
		}()
	}
	clustertest.Eventually(t, time.Minute, "load", func() bool { return accepted.Load() > 50 })
	l.end(t, false)
	wg.Wait()
	if unknown.Load() > 0 {
		t.Errorf("%d proposals without an outcome", unknown.Load())
	}
	c.converged()
	got := leaves(t, c.leader())
	if int64(len(got)) != accepted.Load()+1 { // and the founding
		t.Errorf("%d records in the log, %d accepted", len(got), accepted.Load())
	}
	c.noFaults()
}

func TestMetricsAndMembers(t *testing.T) {
	t.Parallel()
	registry := map[string]*prometheus.Registry{
		"n1": prometheus.NewRegistry(), "n2": prometheus.NewRegistry(), "n3": prometheus.NewRegistry(),
	}
	c := startCluster(t, 3, func(id string, cfg *Config) {
		cfg.Registerer = registry[id]
		cfg.AWSAddress, cfg.Release = id+":443", "test"
	})
	l := c.leader()
	for _, n := range c.up() {
		mustPropose(t, n, clustertest.Record())
	}
	found := make(map[string]bool)
	families, err := registry[l.id].Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		found[f.GetName()] = true
		if f.GetName() == "conclave_raft_is_leader" && f.Metric[0].Gauge.GetValue() != 1 {
			t.Error("the leader's metric does not say so")
		}
	}
	for _, name := range []string{"conclave_raft_commit_seconds", "conclave_raft_entry_records", "conclave_raft_disk_seconds", "conclave_audit_missing_entries"} {
		if !found[name] {
			t.Errorf("no metric %s", name)
		}
	}
	clustertest.Eventually(t, time.Minute, "members in full", func() bool {
		for _, m := range l.Members() {
			if !m.Alive || !m.Voter || m.AWSAddress != m.ID+":443" || m.Registered.GetRelease() != "test" || m.Leader != (m.ID == l.id) || m.Self != (m.ID == l.id) {
				return false
			}
		}
		return len(l.Members()) == 3
	})
	f := c.followers()[0]
	c.kill(f.id)
	c.start(f.id) // registers its metrics anew
}
