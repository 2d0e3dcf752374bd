package cluster

import (
	"bytes"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/standing"
)

// What a leader sends that would stop all nodes, or turn them out, gets into no log
// but its own, and the others serve on without it.
func TestDoor(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	n := c.followers()[0]
	thief := c.leader()
	before := n.raft.Load().LastIndex()
	thief.raft.Load().Apply([]byte("an entry that nobody can read"), time.Second)
	clustertest.Eventually(t, time.Minute, "a refusal of the thief's entry", func() bool {
		return n.cutOffs.Has(standing.Sender{Node: thief.id}, time.Now())
	})
	// It is refused whatever it asks, so another one leads.
	mustPropose(t, n, clustertest.Record())
	if n.raft.Load().LastIndex() <= before {
		t.Error("nothing was stored since")
	}
	for _, n := range c.up() {
		if n.Fault() != nil {
			t.Errorf("%s stopped: %v", n.id, n.Fault())
		}
	}
}

// TestSnapshotThatIsThere: a leader that lost the answer to a snapshot sends it again. It
// is told that the node has it, and goes on, over the same connection.
func TestSnapshotThatIsThere(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	l, f := c.leader(), c.followers()[0]
	for range 3 {
		mustPropose(t, l, clustertest.Record())
	}
	c.converged()
	before := f.State()
	body := bytes.Repeat([]byte("not read as requests"), 1000)
	send := func(index uint64) (*raft.InstallSnapshotResponse, error) {
		resp := new(raft.InstallSnapshotResponse)
		err := l.trans.InstallSnapshot(raft.ServerID(f.id), l.members.Address(f.id), &raft.InstallSnapshotRequest{
			RPCHeader: l.trans.Header(), SnapshotVersion: 1, Term: l.term(), Leader: []byte(l.advertise),
			LastLogIndex: index, LastLogTerm: l.term(), Size: int64(len(body)),
			Configuration: raft.EncodeConfiguration(l.members.Configuration()), ConfigurationIndex: 1,
		}, resp, bytes.NewReader(body))
		return resp, err
	}
	for range 3 {
		for _, index := range []uint64{1, before.Index()} {
			if resp, err := send(index); err != nil || !resp.Success || resp.Term != l.term() {
				t.Errorf("a snapshot up to index %d, and the node has %d: %+v, %v", index, before.Index(), resp, err)
			}
		}
	}
	if resp, err := send(before.Index() + 1000); err == nil && resp.Success {
		t.Error("a snapshot of noise was installed")
	}
	mustPropose(t, f, clustertest.Record())
	c.converged()
	if after := f.State(); after.Index() <= before.Index() {
		t.Errorf("the state went from index %d to %d", before.Index(), after.Index())
	}
}
