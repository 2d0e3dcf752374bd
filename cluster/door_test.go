package cluster

import (
	"bytes"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// What a leader sends that would stop all nodes, or turn them out, gets into no log
// but its own, and the others serve on without it.
func TestDoor(t *testing.T) {
	good, err := wire.EncodeEntry(&fsmpb.Entry{})
	if err != nil {
		t.Fatal(err)
	}
	alone := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "127.0.0.1:1", Suffrage: raft.Voter}}})
	c := startCluster(t, 3, nil)
	n := c.followers()[0]
	now := raft.EncodeConfiguration(n.configuration())
	for name, tt := range map[string]struct {
		log *raft.Log
		ok  bool
	}{
		"a good entry":           {&raft.Log{Type: raft.LogCommand, Data: good}, true},
		"a barrier":              {&raft.Log{Type: raft.LogBarrier}, true},
		"no operation":           {&raft.Log{Type: raft.LogNoop}, true},
		"configuration in force": {&raft.Log{Type: raft.LogConfiguration, Data: now}, true},
		"of a later term":        {&raft.Log{Type: raft.LogBarrier, Term: 6}, false},
		"a gap":                  {&raft.Log{Type: raft.LogBarrier}, false},
		"garbage":                {&raft.Log{Type: raft.LogCommand, Data: []byte("garbage")}, false},
		"empty":                  {&raft.Log{Type: raft.LogCommand}, false},
		"oversized":              {&raft.Log{Type: raft.LogCommand, Data: make([]byte, wire.MaxEntry+1)}, false},
		"honest nodes out":       {&raft.Log{Type: raft.LogConfiguration, Data: alone}, false},
		"unreadable nodes":       {&raft.Log{Type: raft.LogConfiguration, Data: []byte("\xff\xff")}, false},
		"an old type":            {&raft.Log{Type: raft.LogAddPeerDeprecated, Data: alone}, false},
		"an unknown type":        {&raft.Log{Type: 99, Data: good}, false},
	} {
		tt.log.Index = 8
		if name == "a gap" {
			tt.log.Index = 9
		}
		err := n.checkEntries(&raft.AppendEntriesRequest{Term: 5, PrevLogEntry: 6, Entries: []*raft.Log{{Index: 7, Type: raft.LogNoop}, tt.log}})
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}

	thief := c.leader()
	before := n.raft.Load().LastIndex()
	thief.raft.Load().Apply([]byte("an entry that nobody can read"), time.Second)
	clustertest.Eventually(t, 30*time.Second, "a refusal of the thief's entry", func() bool {
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
		err := l.trans.InstallSnapshot(raft.ServerID(f.id), l.addressOf(f.id), &raft.InstallSnapshotRequest{
			RPCHeader: rpcHeader(l.Node), SnapshotVersion: 1, Term: l.term(), Leader: []byte(l.advertise),
			LastLogIndex: index, LastLogTerm: l.term(), Size: int64(len(body)),
			Configuration: raft.EncodeConfiguration(l.configuration()), ConfigurationIndex: 1,
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
