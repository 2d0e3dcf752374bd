package leadership

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/lifecycle"
	"github.com/conclavekms/conclave/cluster/internal/raftend"
)

// fakeRounds confirms what it is told to.
type fakeRounds struct{ confirm atomic.Pointer[raft.ServerID] }

func (*fakeRounds) Mark() uint64 { return 1 }
func (f *fakeRounds) Confirmed(node raft.ServerID, _, _ uint64) bool {
	id := f.confirm.Load()
	return id != nil && *id == node
}

// TestReadIndexNeedsAMajority: that Raft believes to lead is not enough; a majority has to
// have answered a request that was sent after the call.
func TestReadIndexNeedsAMajority(t *testing.T) {
	var servers []raft.Server
	var nodes []*raft.Raft
	var transports []*raft.InmemTransport
	for i := range 3 {
		addr, trans := raft.NewInmemTransport("")
		servers = append(servers, raft.Server{ID: raft.ServerID(fmt.Sprint("n", i+1)), Address: addr})
		transports = append(transports, trans)
	}
	for i, s := range servers {
		for _, other := range transports {
			transports[i].Connect(other.LocalAddr(), other)
		}
		conf := raft.DefaultConfig()
		conf.LocalID, conf.Logger = s.ID, hclog.NewNullLogger()
		if i > 0 { // so that n1 leads
			conf.HeartbeatTimeout, conf.ElectionTimeout = time.Minute, time.Minute
		}
		store, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
		if err := raft.BootstrapCluster(conf, store, store, snapshots, transports[i], raft.Configuration{Servers: servers}); err != nil {
			t.Fatal(err)
		}
		r, err := raft.NewRaft(conf, &raft.MockFSM{}, store, store, snapshots, transports[i])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Shutdown().Error() })
		nodes = append(nodes, r)
	}
	for deadline := time.Now().Add(time.Minute); nodes[0].State() != raft.Leader; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no leader")
		}
	}
	rounds := new(fakeRounds)
	terms := New(Config{
		ID: "n1", Raft: func() *raft.Raft { return nodes[0] }, RaftEnd: make(raftend.End), Rounds: func() Rounds { return rounds },
		Applied: func() uint64 { return 42 }, Life: lifecycle.New(func(error) {}),
	})
	terms.readTerm.Store(nodes[0].CurrentTerm())

	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if index, err := terms.ReadIndex(ctx); !errors.Is(err, commit.ErrNotLeader) {
		t.Errorf("without a confirmation: %d, %v; want %v", index, err, commit.ErrNotLeader)
	}
	second := raft.ServerID("n2")
	time.AfterFunc(100*time.Millisecond, func() { rounds.confirm.Store(&second) })
	ctx, cancel = context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if index, err := terms.ReadIndex(ctx); err != nil || index != 42 {
		t.Errorf("with one of two confirmations: %d, %v; want 42", index, err)
	}
	if rounds.confirm.Load() == nil {
		t.Error("ReadIndex did not wait for the confirmation")
	}
}
