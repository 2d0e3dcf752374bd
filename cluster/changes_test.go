package cluster

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/pki"
)

// again restarts a node and waits until it has the state.
func (c *testCluster) again(id string) *testNode {
	c.t.Helper()
	c.kill(id)
	n := c.start(id)
	clustertest.Eventually(c.t, time.Minute, "the state on "+id, n.auth.Initialised)
	return n
}

// onLeader makes a change of the members on the leader, which may be another one from one
// try to the next, until it is not refused for the moment.
func (c *testCluster) onLeader(what string, change func(l *testNode) error) {
	c.t.Helper()
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = change(c.leader()); err == nil {
			return
		}
		if !errors.Is(err, ErrNotReady) && !errors.Is(err, commit.ErrNotLeader) && !errors.Is(err, ErrNoTransfer) {
			break
		}
	}
	c.t.Fatalf("%s: %v", what, err)
}

// grow adds a node, starts it and gives it a vote.
func (c *testCluster) grow(id string) *testNode {
	c.t.Helper()
	addr := c.join(id)
	c.onLeader("adding "+id, func(l *testNode) error { return l.Changes().Add(within(c.t, time.Minute), id, addr) })
	n := c.start(id)
	c.onLeader("promoting "+id, func(l *testNode) error { return l.Changes().Promote(within(c.t, time.Minute), id) })
	return n
}

// shrink removes a node, from which the leadership is moved first.
func (c *testCluster) shrink(id string) {
	c.t.Helper()
	c.onLeader("removing "+id, func(l *testNode) error {
		if l.id == id {
			if err := l.Changes().TransferLeadership(within(c.t, time.Minute), ""); err != nil {
				return err
			}
			return ErrNotReady
		}
		return l.Changes().Remove(within(c.t, time.Minute), id)
	})
}

func (c *testCluster) voters() []string {
	v := c.leader().members.Voters()
	slices.Sort(v)
	return v
}

// TestEveryNodeIsReplaced: under load, a new node takes the place of each, the leader
// included, and what was removed stops and is refused.
func TestEveryNodeIsReplaced(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	c.finalize()
	for i, old := range []string{"n1", "n2", "n3"} {
		next := []string{"n4", "n5", "n6"}[i]
		n := c.grow(next)
		mustPropose(t, n, clustertest.Record())
		c.shrink(old)
		gone := c.nodes[old]
		select {
		case err := <-gone.faults:
			if !errors.Is(err, ErrRemoved) {
				t.Errorf("%s stopped: %v, want %v", old, err, ErrRemoved)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s was removed and does not stop", old)
		}
		gone.end(t, true)
		clustertest.Eventually(t, time.Minute, "a refusal of "+old+" by "+next, func() bool {
			return n.members.Admit(old, pki.ALPNRaft) != nil && n.members.Admit(old, pki.ALPNPeer) != nil
		})
		mustPropose(t, n, clustertest.Record())
	}
	if got := c.voters(); !slices.Equal(got, []string{"n4", "n5", "n6"}) {
		t.Errorf("voters %v", got)
	}
	c.converged()
	// A restart finds the new members, though the configured peers are gone.
	mustPropose(t, c.again("n5"), clustertest.Record())
	c.converged()
	for _, id := range []string{"n4", "n5", "n6"} {
		if err := c.nodes[id].Fault(); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// TestMovedNode: a node that starts at another address has its data and its vote, and is reached
// there. It must not be moved while the others need it, nor to the address of another one.
func TestMovedNode(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, slowElections)
	c.finalize()
	l := c.leader()
	var others []*testNode
	for _, n := range c.up() {
		if n != l {
			others = append(others, n)
		}
	}
	moves, stays := others[0].id, others[1].id
	move := func(node, addr string) error { return l.Changes().Move(within(t, time.Minute), node, addr) }
	addr := freeAddr(t)
	for name, err := range map[string]error{
		"the leader": move(l.id, addr), "a stranger": move("n9", addr), "another's address": move(moves, c.peers[stays]), "no address": move(moves, "host"),
	} {
		if !errors.Is(err, ErrRefused) {
			t.Errorf("moving %s: %v", name, err)
		}
	}
	c.kill(stays)
	if err := move(moves, addr); !errors.Is(err, ErrNotReady) {
		t.Errorf("moving one of two that are up: %v", err)
	}
	c.again(stays)
	c.kill(moves)
	c.onLeader("moving "+moves, func(*testNode) error { return move(moves, addr) })
	if err := move(moves, addr); err != nil {
		t.Errorf("the second time: %v", err)
	}
	c.later, c.named = map[string]string{moves: addr}, map[string]map[string]string{moves: {l.id: c.peers[l.id], stays: c.peers[stays]}}
	n := c.again(moves)
	if got := c.voters(); !slices.Equal(got, []string{"n1", "n2", "n3"}) {
		t.Errorf("voters %v", got)
	}
	for _, o := range c.up() {
		clustertest.Eventually(t, time.Minute, "the address on "+o.id, func() bool { return string(o.members.Address(moves)) == addr })
	}
	mustPropose(t, n, clustertest.Record())
	c.converged()
	// The others need it now.
	c.kill(stays)
	mustPropose(t, n, clustertest.Record())
}

// TestDeadNodes: without an operator who decides it, the leader removes a replica that does not
// answer, and neither one that does nor one of three voters.
func TestDeadNodes(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, slowElections)
	c.finalize()
	l := c.leader()
	addr := c.join("n4")
	if err := l.Changes().Add(within(t, time.Minute), "n4", addr); err != nil {
		t.Fatal(err)
	}
	var other string
	for _, n := range c.up() {
		if n != l {
			other = n.id
		}
	}
	removeDead := func(node string) error { return l.Changes().RemoveDead(within(t, time.Minute), node) }
	for _, node := range []string{l.id, other} {
		if err := removeDead(node); !errors.Is(err, ErrRefused) {
			t.Errorf("removing %s, which answers: %v", node, err)
		}
	}
	c.kill(other)
	if err := removeDead(other); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "there would be 2 voters") {
		t.Errorf("removing one of three voters: %v", err)
	}
	c.onLeader("removing n4", func(*testNode) error { return removeDead("n4") })
	if l.members.Has("n4") || !l.members.Has(other) {
		t.Errorf("the members are %v", l.members.All())
	}
	c.again(other)
	mustPropose(t, l, clustertest.Record())
}

// TestUnreadyNodesGetNoVote: neither one that does not run, nor a sealed one, nor one whose
// vote would be needed while too few of the others are ready.
func TestUnreadyNodesGetNoVote(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, slowElections)
	c.finalize()
	l := c.leader()
	promote := func() error { return l.Changes().Promote(within(t, time.Minute), "n4") }
	if err := promote(); !errors.Is(err, ErrRefused) {
		t.Errorf("promoting a stranger: %v", err)
	}
	addr := c.join("n4")
	if err := l.Changes().Add(within(t, time.Minute), "n4", addr); err != nil {
		t.Fatal(err)
	}
	if err := promote(); !errors.Is(err, ErrNotReady) {
		t.Errorf("promoting a node that does not run: %v", err)
	}
	n := c.start("n4")
	n.authority.sealed.Store(true)
	clustertest.Eventually(t, time.Minute, "the state on n4", n.auth.Initialised)
	if err := promote(); !errors.Is(err, ErrNotReady) {
		t.Errorf("promoting a sealed node: %v", err)
	}
	n.authority.sealed.Store(false)
	c.onLeader("promoting n4", func(l *testNode) error { return l.Changes().Promote(within(t, time.Minute), "n4") })
	// Of four voters three must be ready. With one down, another must not be removed.
	var down, up *testNode
	for _, f := range c.followers() {
		if f.id == "n4" {
			continue
		}
		if down == nil {
			down = f
		} else {
			up = f
		}
	}
	c.kill(down.id)
	l = c.leader()
	if l.id == up.id {
		up = c.followers()[0]
	}
	if err := l.Changes().Remove(within(t, time.Minute), l.id); !errors.Is(err, ErrRefused) {
		t.Errorf("removing the leader: %v", err)
	}
	c.kill("n4")
	if err := l.Changes().Remove(within(t, time.Minute), up.id); err == nil {
		t.Error("a voter was removed while too few of the others run")
	}
	if h := l.Changes().Health(within(t, time.Minute)); h.Tolerance() >= 0 {
		t.Errorf("tolerance %d with two of four voters down", h.Tolerance())
	}
}

// TestWhatIsNoChange: a second call changes nothing, and ids and addresses are used once.
func TestWhatIsNoChange(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	l := c.leader()
	add := func(id, addr string) error { return l.Changes().Add(within(t, time.Minute), id, addr) }
	if err := add("n2", "127.0.0.1:1"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "conclave cluster upgrade finalize") {
		t.Errorf("at the level of the release before: %v", err)
	}
	c.finalize()
	if err := errors.Join(add("n2", "127.0.0.1:1"), add("n2", "127.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"another address":     add("n2", "127.0.0.1:2"),
		"the same address":    add("n3", "127.0.0.1:1"),
		"no address":          add("n3", "nowhere"),
		"no id":               add("N 3", "127.0.0.1:3"),
		"the last voter goes": l.Changes().Remove(within(t, time.Minute), "n1"),
	} {
		if !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v, want %v", what, err, ErrRefused)
		}
	}
	if err := errors.Join(l.Changes().Remove(within(t, time.Minute), "n2"), l.Changes().Remove(within(t, time.Minute), "n2")); err != nil {
		t.Fatal(err)
	}
	if s := l.members.Configuration().Servers; len(s) != 1 {
		t.Errorf("members %v", s)
	}
	mustPropose(t, l, clustertest.Record())
}

// TestReplicasServe: a node without a vote proposes, reads and survives a restart, and is
// never counted.
func TestReplicasServe(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	c.finalize()
	addr := c.join("r1")
	c.onLeader("adding r1", func(l *testNode) error { return l.Changes().Add(within(t, time.Minute), "r1", addr) })
	n := c.start("r1")
	clustertest.Eventually(t, time.Minute, "the state on r1", n.auth.Initialised)
	mustPropose(t, n, clustertest.Record())
	if err := n.Barrier(within(t, time.Minute)); err != nil {
		t.Error(err)
	}
	if all, _ := c.leader().Changes().Health(within(t, time.Minute)).Voters(); all != 3 {
		t.Errorf("%d voters", all)
	}
	mustPropose(t, c.again("r1"), clustertest.Record())
	for _, s := range c.leader().members.Configuration().Servers {
		if s.ID == "r1" && s.Suffrage != raft.Nonvoter {
			t.Errorf("r1 is a %v", s.Suffrage)
		}
	}
	c.converged()
	c.noFaults()
}

// TestWipedNodeMayNotJoinAgain: neither under the id that it had, nor as if it were new.
func TestWipedNodeMayNotJoinAgain(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	c.finalize()
	n := c.grow("n4")
	mustPropose(t, n, clustertest.Record())
	c.kill("n4")
	n.dir = t.TempDir()
	if err := c.open("n4"); err == nil {
		clustertest.Eventually(t, time.Minute, "a refusal", func() bool { return n.Fault() != nil })
		if !errors.Is(n.Fault(), ErrWipedDisk) {
			t.Errorf("a wiped node: %v", n.Fault())
		}
		c.kill("n4")
	} else if !errors.Is(err, ErrWipedDisk) {
		t.Errorf("a wiped node: %v", err)
	}
	c.shrink("n4")
	if err := c.leader().Changes().Add(within(t, time.Minute), "n4", c.later["n4"]); !errors.Is(err, ErrRefused) {
		t.Errorf("its id again: %v", err)
	}
}

// TestNodeThatWasDownWhenItWasRemoved: everyone refuses it when it comes back, and so it
// learns that it was removed, though it cannot ask, and stops.
func TestNodeThatWasDownWhenItWasRemoved(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 4, nil)
	c.finalize()
	c.kill("n4")
	c.shrink("n4")
	mustPropose(t, c.leader(), clustertest.Record())
	err := c.open("n4") // which it may learn before it has started
	if err == nil {
		select {
		case err = <-c.nodes["n4"].faults:
		case <-time.After(time.Minute):
		}
	}
	if !errors.Is(err, ErrRemoved) {
		t.Errorf("it stopped: %v, want %v", err, ErrRemoved)
	}
	mustPropose(t, c.leader(), clustertest.Record())
}

// TestNodeThatWasCutOffWhenOthersJoined: the node does not know the new leader, and learns of
// it from the others once it is reached again.
func TestNodeThatWasCutOffWhenOthersJoined(t *testing.T) {
	t.Parallel()
	w := &network{cut: make(map[string]bool)}
	c := startCluster(t, 3, func(id string, cfg *Config) { cfg.Hooks.Dial = w.dialer(id) })
	c.finalize()
	cut := c.followers()[0]
	w.set(cut.id, true)
	c.grow("n4")
	c.onLeader("handing over to n4", func(l *testNode) error {
		if l.id == "n4" {
			return nil
		}
		return l.Changes().TransferLeadership(within(t, time.Minute), "n4")
	})
	if cut.members.Has("n4") {
		t.Fatalf("%s was cut off and knows n4", cut.id)
	}
	w.set(cut.id, false)
	clustertest.Eventually(t, time.Minute, "n4 on "+cut.id, func() bool {
		return cut.members.Has("n4") && cut.State().Index() == c.leader().State().Index()
	})
	mustPropose(t, cut, clustertest.Record())
	c.noFaults()
}

// TestRemovalThatWasNotCommitted: a leader was cut off when the removal of a node was in its own
// log alone, and the others go on with that node as their leader. The one that was cut off
// follows it when it is back, whether it has restarted in between or not.
func TestRemovalThatWasNotCommitted(t *testing.T) {
	t.Parallel()
	for name, restarts := range map[string]bool{"restarted": true, "still running": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := &network{cut: make(map[string]bool)}
			c := startCluster(t, 3, func(id string, cfg *Config) { cfg.Hooks.Dial = w.dialer(id) })
			c.finalize()
			c.converged()
			l, stays := c.leader(), c.followers()[0]
			if restarts { // it reaches nobody any more until then
				l.port.Close()
				l.peers.Close()
			} else {
				w.set(l.id, true)
			}
			before, _ := l.members.Latest()
			removal := l.raft.Load().RemoveServer(raft.ServerID(stays.id), before, time.Minute)
			clustertest.Eventually(t, time.Minute, "the removal in its log", func() bool {
				index, _ := l.members.Latest()
				return index > before
			})
			if restarts {
				c.kill(l.id)
			}
			if removal.Error() == nil {
				t.Fatal("a leader that was cut off has removed a node")
			}
			clustertest.Eventually(t, time.Minute, stays.id+" as leader", func() bool {
				for _, n := range c.up() {
					if n.id != l.id && n.id != stays.id && n.IsLeader() {
						_ = n.Changes().TransferLeadership(within(t, time.Minute), stays.id)
					}
				}
				return stays.IsLeader()
			})
			if restarts {
				l = c.start(l.id)
			} else {
				w.set(l.id, false)
			}
			clustertest.Eventually(t, time.Minute, "the leader's log on "+l.id, func() bool {
				index, _ := l.members.Latest()
				return index == before && l.auth.Initialised()
			})
			mustPropose(t, l, clustertest.Record())
			if !stays.IsLeader() {
				t.Errorf("%s does not lead any more", stays.id)
			}
			c.converged()
			c.noFaults()
		})
	}
}

// TestJoiningWithASnapshot: the new node gets a snapshot, as the log no longer begins where
// the node would need it, and what it learns from that survives a restart.
func TestJoiningWithASnapshot(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, func(_ string, cfg *Config) {
		cfg.SnapshotEntries, cfg.TrailingLogs, cfg.Timeouts.Snapshot = 16, 1, 50*time.Millisecond
	})
	c.finalize()
	for range 64 {
		mustPropose(t, c.leader(), clustertest.Record())
	}
	clustertest.Eventually(t, time.Minute, "a short log", func() bool {
		for _, n := range c.up() {
			if first, err := n.store.FirstIndex(); err != nil || first < 16 {
				return false
			}
		}
		return true
	})
	n := c.grow("n4")
	mustPropose(t, n, clustertest.Record())
	c.kill("n4")
	c.shrink(c.followers()[0].id)
	clustertest.Eventually(t, time.Minute, "the state on n4", c.start("n4").auth.Initialised)
	mustPropose(t, c.nodes["n4"], clustertest.Record())
	if got := c.voters(); !slices.Contains(got, "n4") || len(got) != 3 {
		t.Errorf("voters %v", got)
	}
	if err := c.nodes["n4"].Fault(); err != nil {
		t.Error(err)
	}
}

// TestJoiningARestoredCluster: the new node learns the lineage from the members, keeps it, and
// speaks with them alone.
func TestJoiningARestoredCluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	for _, id := range c.ids {
		d, err := openDataDir(c.nodes[id].dir, id, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		d.file.Lineage = "aa"
		if err := d.save(); err != nil {
			t.Fatal(err)
		}
	}
	c.startAll()
	c.found()
	c.finalize()
	n := c.grow("n4")
	mustPropose(t, n, clustertest.Record())
	if n = c.again("n4"); n.Node.dir.file.Lineage != "aa" {
		t.Errorf("after a restart n4 has the lineage %q", n.Node.dir.file.Lineage)
	}
	mustPropose(t, n, clustertest.Record())
	c.converged()
	c.noFaults()
}

// TestRestartBeforeAConfiguration: a node that was down when the members were changed gets the
// configuration first. It has applied nothing yet, and so cannot verify it.
func TestRestartBeforeAConfiguration(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 4, slowElections)
	c.finalize()
	c.converged()
	down := c.followers()[0].id
	c.kill(down)
	gone := c.followers()[0].id
	c.shrink(gone)
	c.start(down)
	c.kill(gone)
	c.converged()
	mustPropose(t, c.nodes[down], clustertest.Record())
	if err := c.nodes[down].Fault(); err != nil {
		t.Error(err)
	}
}

// TestLeadersEndDuringChanges: whenever the leader ends while it changes the members, the
// change is made or it is not, and repeating it makes it.
func TestLeadersEndDuringChanges(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 4, nil)
	c.finalize()
	addr := c.join("n5")
	for i, change := range []struct {
		what string
		do   func(Changes) error
		made func(raft.Configuration) bool
	}{
		{"adding n5", func(ch Changes) error { return ch.Add(within(t, time.Minute), "n5", addr) }, func(c raft.Configuration) bool { return len(c.Servers) == 5 }},
		{"promoting n5", func(ch Changes) error { return ch.Promote(within(t, time.Minute), "n5") }, func(c raft.Configuration) bool {
			return slices.ContainsFunc(c.Servers, func(s raft.Server) bool { return s.ID == "n5" && s.Suffrage == raft.Voter })
		}},
		{"removing n5", func(ch Changes) error { return ch.Remove(within(t, time.Minute), "n5") }, func(c raft.Configuration) bool { return len(c.Servers) == 4 }},
	} {
		if i == 1 {
			n := c.start("n5")
			clustertest.Eventually(t, time.Minute, "the state on n5", n.auth.Initialised)
			mustPropose(t, n, clustertest.Record())
		}
		l := c.leader()
		if l.id == "n5" {
			c.onLeader("handing over", func(l *testNode) error { return l.Changes().TransferLeadership(within(t, time.Minute), "") })
			l = c.leader()
		}
		answered := make(chan error, 1)
		go func() { answered <- change.do(l.Changes()) }()
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) // anywhere in the change
		c.kill(l.id)
		t.Logf("%s: %v", change.what, <-answered)
		clustertest.Eventually(t, time.Minute, "the state on "+l.id, c.start(l.id).auth.Initialised)
		c.onLeader(change.what, func(l *testNode) error {
			if l.id == "n5" && i == 2 {
				return errors.Join(l.Changes().TransferLeadership(within(t, time.Minute), ""), ErrNotReady)
			}
			return change.do(l.Changes())
		})
		clustertest.Eventually(t, time.Minute, change.what+" everywhere", func() bool {
			for _, n := range c.up() {
				if n.id != "n5" && !change.made(n.members.Configuration()) {
					return false
				}
			}
			return true
		})
	}
	c.kill("n5")
	c.converged()
	for _, n := range c.up() {
		mustPropose(t, n, clustertest.Record())
	}
}
