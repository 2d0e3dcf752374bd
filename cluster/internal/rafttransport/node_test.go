package rafttransport

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/membership"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// testNode is a Node, n1, of which tests say what it knows.
type testNode struct {
	cluster atomic.Pointer[fsmpb.Cluster]
	sealed  atomic.Bool
	raft    *raft.Raft
	servers []raft.Server

	applied, snapshotIndex, snapshotTerm uint64
}

// newTestNode is an unsealed node of an initialised cluster whose voters are n1 to n3.
func newTestNode() *testNode {
	n := &testNode{servers: []raft.Server{
		{ID: "n1", Address: "192.0.2.1:1", Suffrage: raft.Voter},
		{ID: "n2", Address: "192.0.2.2:1", Suffrage: raft.Voter},
		{ID: "n3", Address: "192.0.2.3:1", Suffrage: raft.Voter},
	}}
	n.cluster.Store(clustertest.Cluster())
	return n
}

// transport is the node's. What it knows of others is fresh for as long as a test takes.
func (n *testNode) transport(t *testing.T) *Transport {
	tr := New(Config{
		ID: "n1", Advertise: "192.0.2.1:1", Timeout: time.Second,
		Standings: standing.New(time.Hour), CutOffs: &standing.CutOffs{}, History: &membership.History{},
		Unproven: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "unproven"}, []string{"node"}),
		Log:      slog.New(slog.NewTextHandler(io.Discard, nil)),
	}, n)
	t.Cleanup(func() { tr.Close() })
	return tr
}

// start starts a Raft that has no other nodes. It leads if it is to found a cluster.
func (n *testNode) start(t *testing.T, found bool) {
	t.Helper()
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = "n1", hclog.NewNullLogger()
	store, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	addr, trans := raft.NewInmemTransport("")
	if found {
		alone := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: addr}}}
		if err := raft.BootstrapCluster(conf, store, store, snapshots, trans, alone); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if n.raft, err = raft.NewRaft(conf, &raft.MockFSM{}, store, store, snapshots, trans); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.raft.Shutdown().Error() })
	clustertest.Eventually(t, 20*time.Second, "a leader, if it is to be one", func() bool { return (n.raft.State() == raft.Leader) == found })
}

func (n *testNode) Connect(context.Context, string) (*peerport.Conn, error) {
	return nil, peerport.ErrUnreachable
}

func (n *testNode) NodeAt(addr string) (string, bool) {
	for _, s := range n.servers {
		if string(s.Address) == addr {
			return string(s.ID), true
		}
	}
	return "", false
}

func (n *testNode) Raft() *raft.Raft                  { return n.raft }
func (n *testNode) Configuration() raft.Configuration { return raft.Configuration{Servers: n.servers} }
func (n *testNode) IsMember(string) bool              { return true }
func (n *testNode) Leader() string                    { return "n1" }
func (n *testNode) Cluster() *fsmpb.Cluster           { return n.cluster.Load() }
func (n *testNode) Applied() uint64                   { return n.applied }
func (n *testNode) SnapshotEnd() (index, term uint64) { return n.snapshotIndex, n.snapshotTerm }
func (n *testNode) CheckEntry(encoded []byte) error   { return fsm.New(fsm.Config{}).CheckEntry(encoded) }
func (n *testNode) Unsealed() bool                    { return !n.sealed.Load() }
func (n *testNode) Sign(domain string, digest [32]byte) (uint32, []byte, error) {
	return clustertest.SignOrigin(domain, digest)
}

func (n *testNode) Self() standing.Self {
	return standing.Self{Node: "n1", Fit: n.Unsealed(), Voters: []string{"n1", "n2", "n3"}}
}
func (n *testNode) AskForProof(string)             {}
func (n *testNode) AskAgain(string)                {}
func (n *testNode) CutOff(standing.Sender, string) {}
func (n *testNode) Fence(error)                    {}
