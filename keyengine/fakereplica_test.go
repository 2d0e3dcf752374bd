package keyengine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// fakeCluster is a replicated log in memory on a real state machine: an entry is
// committed and applied before its proposer hears of it. All its replicas see
// the one state, except those that a test holds back.
type fakeCluster struct {
	t     testing.TB
	clock *fakeClock
	audit *fakeAudit

	mu       sync.Mutex // one entry at a time
	fsm      *fsm.FSM
	index    uint64
	seq      map[string]uint64
	leader   *fakeReplica
	replicas []*fakeReplica
	engines  []*Engine
	hostile  bool   // a test makes records that are to be refused
	broken   string // the rule that the newest refused record broke
	// witness has the cluster's keys from Init on: an entry is signed as by an unsealed
	// leader, also when a test seals all engines.
	witness *vault.Vault
}

// sign signs as an unsealed leader.
func (c *fakeCluster) sign(domain string, digest [32]byte) (generation uint32, signature []byte, err error) {
	if c.witness == nil {
		return 0, nil, vault.ErrSealed
	}
	o, err := c.witness.Current()
	if err != nil {
		return 0, nil, err
	}
	return o.SignOrigin(domain, digest)
}

// watch opens the witness with the shares of a cluster that was just initialised.
func (c *fakeCluster) watch(shares []string) {
	c.t.Helper()
	v, err := vault.New(c.clock.Now, false)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = v.Close() })
	r := c.replicas[0]
	witness := ceremony.New(ceremony.Config{
		NodeID: r.id, Vault: v, Replica: r, Clock: c.clock, Log: slog.New(slog.DiscardHandler),
		Events: &record.Recorder{Node: r.id, Vault: v, Replica: r, Clock: c.clock, Log: slog.New(slog.DiscardHandler), Pending: record.NewPending()},
	})
	for _, share := range shares {
		if st, err := witness.SubmitShare(c.t.Context(), ceremony.Operator{Name: "witness"}, share); err != nil {
			c.t.Fatal(err)
		} else if !st.Sealed {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.witness = v
}

// newFakeCluster makes a cluster of registered, voting nodes; the first leads.
func newFakeCluster(t testing.TB, nodes ...string) *fakeCluster {
	t.Helper()
	c := &fakeCluster{
		t:     t,
		clock: &fakeClock{now: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)},
		audit: newFakeAudit(),
		seq:   make(map[string]uint64),
	}
	for _, id := range nodes {
		c.replicas = append(c.replicas, &fakeReplica{cluster: c, id: id})
	}
	c.leader = c.replicas[0]
	c.fsm = c.newMachine(c.audit)
	return c
}

// newMachine is a state machine that knows the voters, all registered, and nothing
// else.
func (c *fakeCluster) newMachine(audit *fakeAudit) *fsm.FSM {
	m := fsm.New(fsm.Config{
		Audit: audit,
		OnApply: func(s *fsm.State, ev fsm.Events) {
			for _, r := range ev.Refused {
				if c.broken = r.Rule; !c.hostile {
					c.t.Errorf("the state machine refuses a record of %s: %s", r.Node, r.Rule)
				}
			}
			for _, r := range c.replicas {
				if r.onApply != nil {
					r.onApply(s, ev)
				}
			}
		},
		OnFault: func(err error) { c.t.Errorf("the state machine stopped: %v", err) },
	})
	var servers []raft.Server
	for _, r := range c.replicas {
		servers = append(servers, raft.Server{ID: raft.ServerID(r.id), Address: raft.ServerAddress(r.id), Suffrage: raft.Voter})
	}
	c.index++
	m.Apply(&raft.Log{Index: c.index, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{Servers: servers})})
	for _, r := range c.replicas {
		c.apply(m, &fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: r.id, Incarnation: 1, SchemaMin: wire.SchemaMin, SchemaMax: wire.SchemaMax}}})
	}
	return m
}

// tamper has the nodes find another state: of the same cluster, with the credentials
// that are given and nothing else, as on a disk that somebody edited. It returns what
// undoes that.
func (c *fakeCluster) tamper(credentials ...*fsmpb.Credential) (undo func()) {
	c.t.Helper()
	founded, _ := c.state().Cluster()
	changes := []*fsmpb.Change{{Change: &fsmpb.Change_PutCluster{PutCluster: founded}}}
	for _, cred := range credentials {
		changes = append(changes, &fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: cred}})
	}
	was, other := c.fsm, c.newMachine(newFakeAudit())
	c.fsm = other
	c.change(changes...)
	return func() {
		c.fsm = was
		c.commit(&fsmpb.Entry{})
	}
}

// commit applies one entry, stamped with the cluster's clock, for which all
// voters vouch.
func (c *fakeCluster) commit(e *fsmpb.Entry) *fsm.Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.commitLocked(e)
}

func (c *fakeCluster) commitLocked(e *fsmpb.Entry) *fsm.Result { return c.apply(c.fsm, e) }

func (c *fakeCluster) apply(m *fsm.FSM, e *fsmpb.Entry) *fsm.Result {
	now := c.clock.Now().UnixNano()
	e.Clock = &fsmpb.Clock{Wall: now}
	for _, r := range c.replicas {
		e.Clock.Readings = append(e.Clock.Readings, &fsmpb.ClockReading{Node: r.id, Wall: now})
	}
	data, err := wire.EncodeEntry(e)
	if err != nil {
		c.t.Fatalf("encoding an entry: %v", err)
	}
	if signed, err := fsm.SignEntry(data, c.sign); err == nil {
		data = signed
	}
	c.index++
	res, ok := m.Apply(&raft.Log{Index: c.index, Term: 1, Data: data}).(*fsm.Result)
	if !ok {
		c.t.Fatal("the state machine is stopped")
	}
	return res
}

// propose commits a node's record alone in a batch.
func (c *fakeCluster) propose(node string, r *fsmpb.Record) fsm.Decision {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.proposeLocked(node, r)
}

func (c *fakeCluster) proposeLocked(node string, r *fsmpb.Record) fsm.Decision {
	c.seq[node]++
	seq := c.seq[node]
	b := &fsmpb.Batch{Node: node, Incarnation: 1, Seq: seq, SettledBelow: seq, Records: []*fsmpb.Record{r}}
	res := c.commitLocked(&fsmpb.Entry{Command: &fsmpb.Entry_Batches{Batches: &fsmpb.Batches{Batches: []*fsmpb.Batch{b}}}}).Batches[0]
	if res.Status == fsm.BatchUnsigned {
		return fsm.Decision{} // a sealed leader takes nothing
	}
	if res.Status != fsm.BatchApplied {
		c.t.Fatalf("batch of %s has status %d", node, res.Status)
	}
	return fsm.Decision{Verdict: res.Verdicts[0], Index: res.Index}
}

// change makes changes behind every engine's back.
func (c *fakeCluster) change(changes ...*fsmpb.Change) {
	c.t.Helper()
	if v, rule := c.verdict(changes...); v != fsm.Accepted {
		c.t.Fatalf("change was found %v: %s", v, rule)
	}
}

// verdict is what the log makes of changes, of whose objects the newest versions are
// read, and the rule that they break.
func (c *fakeCluster) verdict(changes ...*fsmpb.Change) (fsm.Verdict, string) {
	sum := sha256.Sum256([]byte(fmt.Sprint("behind", c.audit.Size())))
	r := &fsmpb.Record{RequestId: sum[:16], Salt: sum[16:], Commitment: sum[:], Body: []byte("behind"), Changes: changes}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, change := range changes {
		if kind, id, ok := fsm.Subject(change); ok {
			r.Reads = append(r.Reads, &fsmpb.Read{Kind: kind, Id: id, Version: c.fsm.Current().VersionOf(kind, id)})
		}
	}
	was := c.hostile
	c.hostile = true
	v := c.proposeLocked(c.replicas[0].id, r).Verdict
	c.hostile = was
	return v, c.broken
}

// advance moves the clocks of all nodes, with an entry at least every half day,
// as cluster time takes no longer step.
func (c *fakeCluster) advance(d time.Duration) {
	for d > 0 {
		step := min(d, 12*time.Hour)
		c.clock.advance(step)
		c.commit(&fsmpb.Entry{})
		d -= step
	}
}

func (c *fakeCluster) state() *fsm.State { return c.fsm.Current() }

func (c *fakeCluster) replica(id string) *fakeReplica {
	for _, r := range c.replicas {
		if r.id == id {
			return r
		}
	}
	c.t.Fatalf("no replica %q", id)
	return nil
}

// fakeReplica is one node's Replica. Its fields are hooks, to be set while it is
// idle.
type fakeReplica struct {
	cluster *fakeCluster
	id      string
	// onApply and serve are the engine's.
	onApply func(*fsm.State, fsm.Events)
	serve   func(context.Context, string, []byte) ([]byte, error)
	// before runs between evaluation and commit of each record.
	before func(*fsmpb.Record)
	// err is what Propose fails with, without committing anything.
	err error
	// lost makes Propose commit, and say that it does not know.
	lost bool
	// unknown makes Propose say so, and commit nothing.
	unknown bool
	// late makes decisions arrive too late.
	late bool
	// stale makes them become too old once they are there.
	stale atomic.Bool
	// decide, when set, replaces a verdict without committing.
	decide func() fsm.Verdict

	mu        sync.Mutex
	frozen    *fsm.State
	proposals int
	exclusive int
	barriers  int
	forwarded int
}

var _ Replica = (*fakeReplica)(nil)

// freeze holds the replica's state back until it has to wait for a newer one.
func (r *fakeReplica) freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = r.cluster.state()
}

func (r *fakeReplica) thaw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = nil
}

func (r *fakeReplica) State() *fsm.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.frozen != nil {
		return r.frozen
	}
	return r.cluster.state()
}

func (r *fakeReplica) count(n *int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*n++
}

func (r *fakeReplica) Propose(ctx context.Context, rec *fsmpb.Record) (fsm.Decision, error) {
	r.count(&r.proposals)
	if err := ctx.Err(); err != nil {
		return fsm.Decision{}, err
	}
	if r.err != nil {
		return fsm.Decision{}, r.err
	}
	if r.before != nil {
		r.before(rec)
	}
	if r.decide != nil {
		return fsm.Decision{Verdict: r.decide(), Index: r.cluster.state().Index()}, nil
	}
	if r.unknown {
		return fsm.Decision{}, fsm.ErrOutcomeUnknown
	}
	d := r.cluster.propose(r.id, rec)
	if d.Verdict == 0 {
		return d, fsm.ErrNoLeader
	}
	if r.lost {
		return fsm.Decision{}, fsm.ErrOutcomeUnknown
	}
	late := r.late
	d.Late = func() bool { return late || r.stale.Load() }
	return d, nil
}

func (r *fakeReplica) ProposeExclusive(ctx context.Context, build func(*fsm.State) (*fsmpb.Record, error)) (fsm.Decision, error) {
	r.count(&r.exclusive)
	if r.cluster.leader != r {
		return fsm.Decision{}, fsm.ErrNoLeader
	}
	r.cluster.mu.Lock()
	defer r.cluster.mu.Unlock()
	rec, err := build(r.cluster.fsm.Current())
	if err != nil {
		return fsm.Decision{}, err
	}
	d := r.cluster.proposeLocked(r.id, rec)
	if r.lost {
		return fsm.Decision{}, fsm.ErrOutcomeUnknown
	}
	return d, nil
}

func (r *fakeReplica) ExecuteOnLeader(ctx context.Context, payload []byte) ([]byte, error) {
	r.count(&r.forwarded)
	l := r.cluster.leader
	if l == nil || l.serve == nil {
		return nil, fsm.ErrNoLeader
	}
	// Nothing of a context but its end goes from node to node.
	there, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	return l.serve(there, r.id, bytes.Clone(payload))
}

func (r *fakeReplica) WaitApplied(ctx context.Context, index uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.frozen != nil && r.frozen.Index() < index {
		r.frozen = nil
	}
	return ctx.Err()
}

func (r *fakeReplica) Barrier(ctx context.Context) error {
	r.count(&r.barriers)
	if r.err != nil {
		return r.err
	}
	r.cluster.commit(&fsmpb.Entry{})
	r.thaw()
	return ctx.Err()
}

func (r *fakeReplica) IsLeader() bool { return r.cluster.leader == r }

// fakeClock is a clock that only tests move.
type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// fakeAudit keeps the audit log in memory.
type fakeAudit struct {
	mu          sync.Mutex
	entries     []auditlog.Entry
	changed     chan struct{}
	synced      int
	checkpoints [][]byte
}

func newFakeAudit() *fakeAudit { return &fakeAudit{changed: make(chan struct{})} }

var (
	_ AuditLog     = (*fakeAudit)(nil)
	_ fsm.AuditLog = (*fakeAudit)(nil)
)

func (a *fakeAudit) Append(entries []auditlog.Entry, _ []auditlog.Hash) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range entries {
		e.Body = bytes.Clone(e.Body)
		a.entries = append(a.entries, e)
	}
	close(a.changed)
	a.changed = make(chan struct{})
	return nil
}

func (a *fakeAudit) Restore(auditlog.Frontier, []auditlog.Hash) error { return nil }

func (a *fakeAudit) Sync() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.synced = len(a.entries)
	return nil
}

func (a *fakeAudit) Read(from uint64, limit, maxBytes int) ([]auditlog.Entry, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if from >= uint64(len(a.entries)) {
		return nil, nil
	}
	part := a.entries[from:]
	return append([]auditlog.Entry(nil), part[:min(limit, len(part))]...), nil
}

func (a *fakeAudit) Size() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return uint64(len(a.entries))
}

func (a *fakeAudit) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

func (a *fakeAudit) WriteCheckpoint(note []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.checkpoints = append(a.checkpoints, bytes.Clone(note))
	return nil
}

// newEngine starts a sealed engine on a node of the cluster.
func (c *fakeCluster) newEngine(id string) *Engine {
	c.t.Helper()
	r := c.replica(id)
	e, err := New(Config{
		NodeID: id, Replica: r, Audit: c.audit, Clock: c.clock,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), AllowUnlockedMemory: true,
	})
	if err != nil {
		c.t.Fatalf("starting an engine: %v", err)
	}
	r.onApply, r.serve = e.OnApply, e.ServeForwarded
	c.engines = append(c.engines, e)
	c.t.Cleanup(func() {
		r.onApply, r.serve = nil, nil
		if err := e.Close(); err != nil {
			c.t.Errorf("closing the engine: %v", err)
		}
	})
	return e
}
