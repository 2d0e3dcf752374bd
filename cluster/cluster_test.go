package cluster

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/integration/harness/ports"
)

// testNode is a node with what it runs on.
type testNode struct {
	*Node
	id     string
	dir    string
	audit  *auditlog.Log
	faults chan error
	down   bool

	authority *testAuthority
}

// testCluster is several nodes in this process, on real TLS over loopback and
// real files.
type testCluster struct {
	t     *testing.T
	ca    *pki.CA
	peers map[string]string
	// later are the addresses of nodes that join the cluster when it runs.
	later map[string]string
	// named are the members that the operator names to each of them.
	named map[string]map[string]string
	ids   []string
	nodes map[string]*testNode
	edit  func(id string, c *Config)
	wrap  func(id string, l *auditlog.Log) AuditLog
}

var quick = Timeouts{
	Heartbeat: 450 * time.Millisecond, Election: 450 * time.Millisecond, Lease: 225 * time.Millisecond,
	Commit: 5 * time.Millisecond, Hello: 500 * time.Millisecond, Snapshot: time.Hour,
}

// slowElections is for tests in which one node has to lead all the time: a busy machine
// may keep it waiting for longer than quick allows.
func slowElections(_ string, cfg *Config) {
	cfg.Timeouts.Heartbeat, cfg.Timeouts.Election, cfg.Timeouts.Lease = 2*time.Second, 2*time.Second, time.Second
}

func testLogger() *slog.Logger {
	if os.Getenv("CLUSTER_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

// freeAddr is an address that stays the node's over restarts.
func freeAddr(t testing.TB) string {
	t.Helper()
	addr, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// newCluster makes the files of n nodes and starts none.
func newCluster(t *testing.T, n int, edit func(id string, c *Config)) *testCluster {
	t.Helper()
	c := &testCluster{t: t, ca: clustertest.NewCA(t), peers: map[string]string{}, nodes: map[string]*testNode{}, edit: edit}
	root := t.TempDir()
	for i := range n {
		id := fmt.Sprintf("n%d", i+1)
		c.ids = append(c.ids, id)
		c.peers[id] = freeAddr(t)
		c.nodes[id] = &testNode{id: id, dir: filepath.Join(root, id), down: true, faults: make(chan error, 16)}
	}
	t.Cleanup(c.stop)
	return c
}

// join makes the files of a node that joins the cluster, and does not start it.
func (c *testCluster) join(id string) (addr string) {
	if c.later == nil {
		c.later, c.named = make(map[string]string), make(map[string]map[string]string)
	}
	addr = freeAddr(c.t)
	c.later[id], c.named[id] = addr, make(map[string]string)
	for _, s := range c.leader().members.Configuration().Servers {
		c.named[id][string(s.ID)] = string(s.Address)
	}
	c.ids = append(c.ids, id)
	c.nodes[id] = &testNode{id: id, dir: filepath.Join(c.t.TempDir(), id), down: true, faults: make(chan error, 16)}
	return addr
}

// startCluster makes n nodes and waits until one leads.
func startCluster(t *testing.T, n int, edit func(id string, c *Config)) *testCluster {
	t.Helper()
	c := newCluster(t, n, edit)
	c.startAll()
	c.leader()
	c.found()
	return c
}

func (c *testCluster) config(id string) Config {
	tn := c.nodes[id]
	cfg := Config{
		NodeID: id, DataDir: tn.dir, Identity: clustertest.Identity(c.t, c.ca, id), Listen: c.peers[id],
		Peers: c.peers, BootstrapExpect: len(c.peers), Timeouts: quick, Logger: testLogger(),
		OnFault: func(err error) { tn.faults <- err },
	}
	if addr := c.later[id]; addr != "" {
		cfg.Listen, cfg.BootstrapExpect, cfg.Peers = addr, 0, c.named[id]
	}
	if c.edit != nil {
		c.edit(id, &cfg)
	}
	return cfg
}

// open starts a node and returns what Open says.
func (c *testCluster) open(id string) error {
	tn := c.nodes[id]
	if !tn.down {
		c.t.Fatalf("%s runs already", id)
	}
	audit, err := auditlog.Open(filepath.Join(GroupDir(tn.dir), "audit"), auditlog.Options{Logger: testLogger()})
	if err != nil {
		c.t.Fatal(err)
	}
	cfg := c.config(id)
	cfg.Audit = audit
	if c.wrap != nil {
		cfg.Audit = c.wrap(id, audit)
	}
	n, err := Open(cfg)
	if err != nil {
		audit.Close()
		return err
	}
	tn.Node, tn.audit, tn.down = n, audit, false
	tn.authority = &testAuthority{}
	n.SetAuthority(tn.authority)
	return nil
}

// clustertest.OriginKey is the origin key of clusters that tests found.
// testAuthority is that of a node of clustertest.Cluster.
type testAuthority struct{ sealed atomic.Bool }

func (a *testAuthority) Sealed() bool { return a.sealed.Load() }

func (a *testAuthority) SignOrigin(domain string, digest [32]byte) (uint32, []byte, error) {
	return 1, ed25519.Sign(clustertest.OriginKey, origin.Message(clustertest.Cluster(), domain, digest)), nil
}

func (a *testAuthority) PeerMAC(message []byte) (uint32, []byte, error) {
	h := hmac.New(sha256.New, clustertest.OriginKey)
	h.Write(message)
	return 1, h.Sum(nil), nil
}

func (a *testAuthority) CheckPeerMAC(generation uint32, message, mac []byte) error {
	if _, want, _ := a.PeerMAC(message); generation != 1 || !hmac.Equal(want, mac) {
		return errors.New("wrong MAC")
	}
	return nil
}

// seal makes a node what a sealed one is to the cluster.
func (n *testNode) seal() {
	n.authority.sealed.Store(true)
	n.SetCanLead(func() bool { return false })
}

// term is the newest term that a node's Raft knows.
func (n *testNode) term() uint64 { return n.raft.Load().CurrentTerm() }

// found founds the cluster, once: before that no record is taken.
func (c *testCluster) found() {
	c.t.Helper()
	n := c.leader()
	foundBy(c.t, n)
	clustertest.Eventually(c.t, time.Minute, "an initialised cluster", func() bool {
		for _, n := range c.up() {
			if !n.auth.Initialised() {
				return false
			}
		}
		return true
	})
}

// finalize raises the feature level to the newest one, once all running nodes have
// registered.
func (c *testCluster) finalize() {
	c.t.Helper()
	for _, n := range c.up() {
		mustPropose(c.t, n, clustertest.Record())
	}
	r := clustertest.Record()
	r.Changes = []*fsmpb.Change{{Change: &fsmpb.Change_RaiseLevel{RaiseLevel: &fsmpb.RaiseLevel{Level: level.Newest}}}}
	mustPropose(c.t, c.leader(), r)
	clustertest.Eventually(c.t, time.Minute, "the newest feature level", func() bool {
		for _, n := range c.up() {
			if n.State().Level() != level.Newest {
				return false
			}
		}
		return true
	})
}

func foundBy(t testing.TB, n *testNode) {
	t.Helper()
	if n.auth.Initialised() {
		return
	}
	r := clustertest.Record()
	r.Reads = []*fsmpb.Read{{Kind: fsmpb.Kind_KIND_CLUSTER}}
	r.Changes = []*fsmpb.Change{{Change: &fsmpb.Change_PutCluster{PutCluster: clustertest.Cluster()}}}
	v, err := n.Propose(within(t, time.Minute), r)
	if err != nil || v.Verdict != fsm.Accepted && v.Verdict != fsm.Conflict {
		t.Fatalf("%s: founding: %+v, %v", n.id, v, err)
	}
	if err := n.WaitApplied(within(t, time.Minute), v.Index); err != nil {
		t.Fatal(err)
	}
}

func (c *testCluster) start(id string) *testNode {
	c.t.Helper()
	if err := c.open(id); err != nil {
		c.t.Fatalf("starting %s: %v", id, err)
	}
	return c.nodes[id]
}

func (c *testCluster) startAll() {
	c.t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, len(c.ids))
	for i, id := range c.ids {
		if c.nodes[id].down {
			wg.Add(1)
			go func() { defer wg.Done(); errs[i] = c.open(id) }()
		}
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		c.t.Fatal(err)
	}
}

// kill ends a node without a handover.
func (c *testCluster) kill(id string) {
	c.t.Helper()
	c.nodes[id].end(c.t, true)
}

func (n *testNode) end(t *testing.T, hard bool) {
	if n.down {
		return
	}
	n.down = true
	if hard { // out of the network first, so that it can hand over nothing
		n.port.Close()
		n.peers.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := n.Shutdown(ctx); err != nil && n.Fault() == nil {
		stacks := make([]byte, 1<<20)
		t.Errorf("stopping %s: %v\n%s", n.id, err, stacks[:runtime.Stack(stacks, true)])
	}
	if err := n.audit.Close(); err != nil && n.Fault() == nil {
		t.Errorf("closing the audit log of %s: %v", n.id, err)
	}
}

func (c *testCluster) stop() {
	for _, id := range c.ids {
		c.nodes[id].end(c.t, true)
	}
}

func (c *testCluster) up() []*testNode {
	var list []*testNode
	for _, id := range c.ids {
		if !c.nodes[id].down {
			list = append(list, c.nodes[id])
		}
	}
	return list
}

// leader waits for a node that leads and takes proposals.
func (c *testCluster) leader() *testNode {
	c.t.Helper()
	var found *testNode
	clustertest.Eventually(c.t, time.Minute, "a leader", func() bool {
		for _, n := range c.up() {
			if n.IsLeader() && n.proposer.Leader() == n.id {
				found = n
				return true
			}
		}
		return false
	})
	return found
}

func (c *testCluster) followers() []*testNode {
	c.t.Helper()
	l := c.leader()
	var list []*testNode
	for _, n := range c.up() {
		if n != l {
			list = append(list, n)
		}
	}
	return list
}

// converged waits until all running nodes have the same state.
func (c *testCluster) converged() {
	c.t.Helper()
	clustertest.Eventually(c.t, time.Minute, "the same state everywhere", func() bool {
		var first *fsm.State
		for _, n := range c.up() {
			s := n.State()
			if first == nil {
				first = s
			} else if s.Index() != first.Index() || s.Hash() != first.Hash() {
				return false
			}
		}
		return true
	})
}

// noFaults fails the test when a node took itself out.
func (c *testCluster) noFaults() {
	c.t.Helper()
	for _, id := range c.ids {
		select {
		case err := <-c.nodes[id].faults:
			c.t.Errorf("%s: %v", id, err)
		default:
		}
	}
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// mustPropose proposes a record that is to be accepted. On a busy machine an election may
// take longer than a proposal waits for one.
func mustPropose(t testing.TB, n *testNode, r *fsmpb.Record) fsm.Decision {
	t.Helper()
	foundBy(t, n)
	ctx := within(t, time.Minute)
	v, err := n.Propose(ctx, r)
	for errors.Is(err, ErrNoLeader) && ctx.Err() == nil { // nothing was submitted
		v, err = n.Propose(ctx, r)
	}
	if err != nil || v.Verdict != fsm.Accepted {
		t.Fatalf("%s: Propose = %+v, %v; want accepted", n.id, v, err)
	}
	return v
}

func TestSingleNode(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	n := c.nodes["n1"]
	for range 20 {
		v := mustPropose(t, n, clustertest.Record())
		if err := n.WaitApplied(within(t, 20*time.Second), v.Index); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.State().Time(); got == 0 {
		t.Error("cluster time is 0")
	}
	n.end(t, false)
	c.start("n1")
	c.leader()
	mustPropose(t, c.nodes["n1"], clustertest.Record())
	if f, _ := c.nodes["n1"].State().Audit(); f.Size() != 21+1 { // and the founding
		t.Errorf("%d audit records, want 21", f.Size())
	}
	c.noFaults()
}

func TestThreeNodesCommitFromEach(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	var wg sync.WaitGroup
	for _, n := range c.up() {
		for range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for range 25 {
					if v, err := n.Propose(context.Background(), clustertest.Record()); err != nil || v.Verdict != fsm.Accepted {
						t.Errorf("%s: Propose = %+v, %v", n.id, v, err)
						return
					}
				}
			}()
		}
	}
	wg.Wait()
	c.converged()
	if f, _ := c.leader().State().Audit(); f.Size() != 300+1 { // and the founding
		t.Errorf("%d audit records, want 300", f.Size())
	}
	c.noFaults()
}
