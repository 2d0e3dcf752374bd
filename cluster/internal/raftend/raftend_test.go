package raftend

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// start starts a Raft that has no other nodes, and waits until it leads.
func start(t *testing.T) *raft.Raft {
	t.Helper()
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger, conf.BatchApplyCh = "n1", hclog.NewNullLogger(), true
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	store, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	addr, trans := raft.NewInmemTransport("")
	alone := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: addr}}}
	if err := raft.BootstrapCluster(conf, store, store, snapshots, trans, alone); err != nil {
		t.Fatal(err)
	}
	r, err := raft.NewRaft(conf, &raft.MockFSM{}, store, store, snapshots, trans)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); r.State() != raft.Leader; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no leader")
		}
	}
	return r
}

// TestFuturesEndWithRaft: every future that Raft gave out ends, whatever Raft was doing
// when it was shut down. Without Bind one of a few hundred does not.
func TestFuturesEndWithRaft(t *testing.T) {
	lost := 0
	for range 20 {
		r, end := start(t), make(End)
		var futures []raft.Future
		took := make(chan []raft.Future)
		begun := make(chan struct{})
		go func() {
			var list []raft.Future
			for i := range 2000 {
				f := r.Apply([]byte("x"), 0)
				end.Bind(f)
				list = append(list, f)
				if i == 100 {
					close(begun)
				}
			}
			took <- list
		}()
		<-begun
		shutdown := r.Shutdown()
		futures = <-took
		if err := shutdown.Error(); err != nil {
			t.Fatal(err)
		}
		close(end)
		for i, f := range futures {
			done := make(chan error, 1)
			go func() { done <- f.Error() }()
			select {
			case err := <-done:
				if errors.Is(err, raft.ErrRaftShutdown) {
					lost++
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("future %d never ends", i)
			}
		}
	}
	if lost == 0 {
		t.Error("Raft was never shut down in time: the test shows nothing")
	}
}

// TestBind: each kind of future that this program waits for can be bound, by the version
// of Raft that it is built with.
func TestBind(t *testing.T) {
	r := start(t)
	defer func() { r.Shutdown().Error() }()
	for name, f := range map[string]raft.Future{
		"Apply": r.Apply([]byte("x"), 0), "Barrier": r.Barrier(0), "VerifyLeader": r.VerifyLeader(), "Snapshot": r.Snapshot(),
		"LeadershipTransfer": r.LeadershipTransferToServer("n2", "n2"),
	} {
		end := make(End)
		end.Bind(f)
		close(end)
		done := make(chan struct{})
		go func() {
			_ = f.Error()
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Errorf("a future of %s does not end", name)
		}
	}
}
