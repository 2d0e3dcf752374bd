// Package enginetest provides what the tests of package keyengine and of the packages below
// it share: a replicated log in memory, a clock that only tests move, and nodes without an
// engine.
//
// A Cluster applies entries to a real state machine (package fsm), so that versions, read
// sets and rules are checked as in production. An entry is committed and applied before its
// proposer hears of it, and all replicas see the same state, except those for which a test
// called Replica.FallBehind. Any record that the state machine rejects as invalid fails the
// test, unless Cluster.ExpectInvalid is set.
//
// Tests of whole requests are in package keyengine and use its testCluster, which adds an
// engine to each replica. Tests of packages below keyengine use NewNode:
//
//	c := enginetest.NewCluster(t, 2)
//	n := c.NewNode("n1")
//	res := n.Initialise(enginetest.InitParams(3, 2))
//	n.Unseal(res.Shares...)
package enginetest

import (
	"crypto/sha256"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/fsm/wire"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// The account and the Region of the clusters of tests.
const (
	Account = "111122223333"
	Region  = "eu-west-1"

	AccountNumber fsm.Account = 111122223333
)

// A Cluster is a replicated log in memory with a replica for each of its nodes.
type Cluster struct {
	// Clock is the clock of all nodes.
	Clock *Clock
	// Audit is the audit log of all nodes.
	Audit *AuditLog
	// Leader is the leader's replica; nil if there is no leader.
	Leader *Replica
	// ExpectInvalid says that the test proposes records that break a rule of the state
	// machine.
	ExpectInvalid bool
	// BrokenRule is the rule that the newest invalid record broke.
	BrokenRule string

	t        testing.TB
	mu       sync.Mutex // held while an entry is committed
	fsm      *fsm.FSM
	index    uint64
	seq      map[string]uint64
	replicas []*Replica
	// signer signs entries as an unsealed leader does, also when a test has sealed all
	// nodes. It is nil until SignEntries is called.
	signer *vault.Vault
}

// NewCluster returns a cluster of registered, voting nodes with the ids n1, n2 and so on, of
// which n1 leads. It is not initialised.
func NewCluster(t testing.TB, nodes int) *Cluster {
	t.Helper()
	c := &Cluster{
		t:     t,
		Clock: NewClock(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)),
		Audit: newAuditLog(),
		seq:   make(map[string]uint64),
	}
	for i := range nodes {
		c.replicas = append(c.replicas, &Replica{cluster: c, id: fmt.Sprintf("n%d", i+1)})
	}
	c.Leader = c.replicas[0]
	c.fsm = c.newStateMachine(c.Audit)
	return c
}

// newStateMachine returns a state machine that knows only the voters, all registered.
func (c *Cluster) newStateMachine(audit *AuditLog) *fsm.FSM {
	m := fsm.New(fsm.Config{
		Audit: audit,
		OnApply: func(s *fsm.State, ev fsm.Events) {
			for _, r := range ev.Refused {
				if c.BrokenRule = r.Rule; !c.ExpectInvalid {
					c.t.Errorf("the state machine refuses a record of %s: %s", r.Node, r.Rule)
				}
			}
			for _, r := range c.replicas {
				if r.OnApply != nil {
					r.OnApply(s, ev)
				}
			}
		},
		OnFault: func(err error) { c.t.Errorf("the state machine stopped: %v", err) },
		Attest: func(*fsm.State) func([32]byte) (*fsmpb.Attestation, error) {
			return func(digest [32]byte) (*fsmpb.Attestation, error) { return origin.Attest(digest, c.sign) }
		},
	})
	var ids []string
	for _, r := range c.replicas {
		ids = append(ids, r.id)
	}
	c.setVoters(m, ids)
	for _, id := range ids {
		c.apply(m, &fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: id, Incarnation: 1, SchemaMin: level.Oldest, SchemaMax: level.Newest}}})
	}
	return m
}

// SetVoters commits a Raft configuration in which the given nodes vote.
func (c *Cluster) SetVoters(ids ...string) { c.setVoters(c.fsm, ids) }

func (c *Cluster) setVoters(m *fsm.FSM, ids []string) {
	var conf raft.Configuration
	for _, id := range ids {
		conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id), Suffrage: raft.Voter})
	}
	c.index++
	m.Apply(&raft.Log{Index: c.index, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(conf)})
}

// SignEntries has entries signed with the keys of the cluster, which its shares unseal. To
// be called once the cluster has been initialised.
func (c *Cluster) SignEntries(shares []string) {
	c.t.Helper()
	n := c.newNode(c.replicas[0].id)
	n.enter(shares)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.signer = n.Vault
}

func (c *Cluster) sign(domain string, digest [32]byte) (generation uint32, signature []byte, err error) {
	if c.signer == nil {
		return 0, nil, vault.ErrSealed
	}
	o, err := c.signer.Current()
	if err != nil {
		return 0, nil, err
	}
	return o.SignOrigin(domain, digest)
}

// State returns the newest state.
func (c *Cluster) State() *fsm.State { return c.fsm.Current() }

// Snapshot returns the newest state and a function that writes its snapshot, as a cluster's
// node does. SignEntries must have been called.
func (c *Cluster) Snapshot() (*fsm.State, func(io.Writer) error, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.fsm.Snapshot()
	if err != nil {
		return nil, nil, err
	}
	return c.fsm.Current(), func(to io.Writer) error { return s.Persist(sink{to}) }, nil
}

// sink is the destination of one snapshot.
type sink struct{ io.Writer }

func (sink) ID() string    { return "" }
func (sink) Cancel() error { return nil }
func (sink) Close() error  { return nil }

// Replica returns the replica of a node.
func (c *Cluster) Replica(id string) *Replica {
	c.t.Helper()
	for _, r := range c.replicas {
		if r.id == id {
			return r
		}
	}
	c.t.Fatalf("no replica %q", id)
	return nil
}

// Commit applies one entry. All voters confirm its time, which is that of the clock.
func (c *Cluster) Commit(e *fsmpb.Entry) *fsm.Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.apply(c.fsm, e)
}

func (c *Cluster) apply(m *fsm.FSM, e *fsmpb.Entry) *fsm.Result {
	now := c.Clock.Now().UnixNano()
	e.Clock = &fsmpb.Clock{Wall: now}
	for _, r := range c.replicas {
		e.Clock.Readings = append(e.Clock.Readings, &fsmpb.ClockReading{Node: r.id, Wall: now})
	}
	e.Schema = max(e.Schema, m.Current().Level())
	data, err := wire.EncodeEntry(e)
	if err != nil {
		c.t.Fatalf("encoding an entry: %v", err)
	}
	if signed, err := origin.SignEntry(data, c.sign); err == nil {
		data = signed
	}
	c.index++
	res, ok := m.Apply(&raft.Log{Index: c.index, Term: 1, Data: data}).(*fsm.Result)
	if !ok {
		c.t.Fatal("the state machine is stopped")
	}
	return res
}

// propose commits a node's record, alone in a batch. The caller holds c.mu.
func (c *Cluster) propose(node string, r *fsmpb.Record) fsm.Decision {
	c.seq[node]++
	seq := c.seq[node]
	b := &fsmpb.Batch{Node: node, Incarnation: 1, Seq: seq, SettledBelow: seq, Records: []*fsmpb.Record{r}}
	e := &fsmpb.Entry{Command: &fsmpb.Entry_Batches{Batches: &fsmpb.Batches{Batches: []*fsmpb.Batch{b}}}}
	for _, change := range r.Changes {
		e.Schema = max(e.Schema, change.GetRaiseLevel().GetLevel())
	}
	res := c.apply(c.fsm, e).Batches[0]
	if res.Status == fsm.BatchUnsigned {
		return fsm.Decision{} // a sealed leader takes nothing
	}
	if res.Status != fsm.BatchApplied {
		c.t.Fatalf("batch of %s has status %d", node, res.Status)
	}
	d := fsm.Decision{Verdict: res.Verdicts[0], Index: res.Index}
	if d.Verdict == fsm.Accepted {
		d.Record = res.First
	}
	return d
}

// Change commits changes without an engine. The record of them cannot be opened; Records
// leaves it out.
func (c *Cluster) Change(changes ...*fsmpb.Change) {
	c.t.Helper()
	if v, rule := c.Verdict(changes...); v != fsm.Accepted {
		c.t.Fatalf("the change got verdict %v: %s", v, rule)
	}
}

// directBody is the body of the records of Verdict and Change.
const directBody = "change by a test"

// Verdict commits changes as Change does, and returns the verdict and the rule that they
// break. The newest versions of the changed objects are read.
func (c *Cluster) Verdict(changes ...*fsmpb.Change) (fsm.Verdict, string) {
	sum := sha256.Sum256([]byte(fmt.Sprint(directBody, c.Audit.Size())))
	r := &fsmpb.Record{RequestId: sum[:16], Salt: sum[16:], Commitment: sum[:], Body: []byte(directBody), Changes: changes}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, change := range changes {
		if kind, id, ok := fsm.Subject(change); ok {
			r.Reads = append(r.Reads, &fsmpb.Read{Kind: kind, Id: id, Version: c.fsm.Current().VersionOf(kind, id)})
		}
	}
	was := c.ExpectInvalid
	c.ExpectInvalid = true
	v := c.propose(c.replicas[0].id, r).Verdict
	c.ExpectInvalid = was
	return v, c.BrokenRule
}

// Advance moves the clock and commits entries, so that cluster time follows. Cluster time
// takes no large steps, so there is an entry for at least every half day.
func (c *Cluster) Advance(d time.Duration) {
	for d > 0 {
		step := min(d, 12*time.Hour)
		c.Clock.Advance(step)
		c.Commit(&fsmpb.Entry{})
		d -= step
	}
}

// ReplaceState gives the nodes another state, as if somebody had edited their disks: that of
// the same cluster with the given credentials and nothing else. It returns a function that
// restores the state.
func (c *Cluster) ReplaceState(credentials ...*fsmpb.Credential) (restore func()) {
	c.t.Helper()
	cluster, _ := c.State().Cluster()
	changes := []*fsmpb.Change{{Change: &fsmpb.Change_PutCluster{PutCluster: cluster}}}
	for _, cred := range credentials {
		changes = append(changes, &fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: cred}})
	}
	was := c.fsm
	c.fsm = c.newStateMachine(newAuditLog())
	c.Change(changes...)
	return func() {
		c.fsm = was
		c.Commit(&fsmpb.Entry{})
	}
}

// Credential returns a copy of a credential.
func (c *Cluster) Credential(id string) *fsmpb.Credential {
	c.t.Helper()
	cred, _ := c.State().Credential(AccountNumber, id)
	if cred == nil {
		c.t.Fatalf("no credential %q", id)
	}
	return proto.CloneOf(cred)
}

// EditCredential changes a credential without an engine.
func (c *Cluster) EditCredential(id string, edit func(*fsmpb.Credential)) {
	c.t.Helper()
	cred := c.Credential(id)
	edit(cred)
	c.Change(&fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: cred}})
}

// IsChange reports whether an entry of the audit log is that of Change or Verdict.
func IsChange(e auditlog.Entry) bool { return string(e.Body) == directBody }
