package cluster

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/bootstrap"
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/cluster/internal/raftlog/raftlogtest"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func wipe(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

func TestFirstNodesWaitForEachOther(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	c.start("n1")
	c.start("n2")
	time.Sleep(300 * time.Millisecond)
	for _, n := range c.up() {
		if s := n.Status(); s.State != "Waiting" {
			t.Errorf("%s is %s before the third node came", n.id, s.State)
		}
	}
	c.start("n3")
	mustPropose(t, c.leader(), clustertest.Record())
	c.converged()
	c.noFaults()
}

func TestDifferentSetsFormNoCluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	other := freeAddr(t)
	c.edit = func(id string, cfg *Config) {
		if id == "n3" {
			cfg.Peers = map[string]string{"n1": c.peers["n1"], "n2": c.peers["n2"], "n3": other}
		}
	}
	c.startAll()
	time.Sleep(700 * time.Millisecond)
	for _, n := range c.up() {
		if s := n.Status(); s.State != "Waiting" {
			t.Errorf("%s is %s", n.id, s.State)
		}
	}
}

// TestFoundingCutShort stops one node before it wrote its first state, or after
// a part of it; the others may have formed the cluster already.
func TestFoundingCutShort(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"before", "term", "one formed"} {
		t.Run(step, func(t *testing.T) {
			crash := errors.New("crash")
			armed := true
			c := newCluster(t, 3, func(id string, cfg *Config) {
				if !armed || id == "n1" && step == "one formed" || id != "n3" && step != "one formed" {
					return
				}
				switch step {
				case "term":
					cfg.Hooks.Store.Before = func(op string) error {
						if op == "store" {
							return crash
						}
						return nil
					}
				default:
					cfg.Hooks.BeforeBootstrap = func() error { return crash }
				}
			})
			done := make(chan error, 3)
			for _, id := range c.ids {
				go func() { done <- c.open(id) }()
			}
			failed := 0
			for range c.ids {
				if err := <-done; errors.Is(err, crash) || errors.Is(err, ErrStorage) {
					failed++
				} else if err != nil {
					t.Fatal(err)
				}
			}
			clustertest.Eventually(t, time.Minute, "crash", func() bool {
				for _, n := range c.up() {
					if n.Fault() != nil {
						return true
					}
				}
				return failed > 0
			})
			formed := 0
			for _, n := range c.up() {
				if n.Status().State == "Waiting" || n.Fault() != nil {
					c.kill(n.id) // its turn to crash may still come
				} else {
					formed++
				}
			}
			if step == "one formed" && formed > 1 {
				t.Fatalf("%d nodes formed the cluster", formed)
			}
			armed = false
			c.startAll()
			mustPropose(t, c.leader(), clustertest.Record())
			c.converged()
			for _, id := range c.ids {
				for len(c.nodes[id].faults) > 0 {
					// What the hooks did, and that a store was closed by the kill, may be
					// told late.
					if err := <-c.nodes[id].faults; !errors.Is(err, crash) && !errors.Is(err, ErrStorage) {
						t.Errorf("%s: %v", id, err)
					}
				}
				if err := c.nodes[id].Fault(); err != nil {
					t.Errorf("%s, started again: %v", id, err)
				}
			}
		})
	}
}

func TestWipedDiskIsRefused(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	for _, n := range c.up() {
		mustPropose(t, n, clustertest.Record())
	}
	f := c.followers()[0]
	c.kill(f.id)
	identity, err := os.ReadFile(filepath.Join(f.dir, identityFile))
	if err != nil {
		t.Fatal(err)
	}
	wipe(t, f.dir)
	if err := c.open(f.id); !errors.Is(err, ErrWipedDisk) {
		t.Fatalf("Open on an empty disk = %v, want %v", err, ErrWipedDisk)
	}
	// Only the Raft state is gone: the identity file tells, without the others.
	wipe(t, f.dir)
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.dir, identityFile), identity, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.up() {
		c.kill(n.id)
	}
	if err := c.open(f.id); !errors.Is(err, ErrWipedDisk) {
		t.Fatalf("Open without Raft state = %v, want %v", err, ErrWipedDisk)
	}
}

// TestWipedDiskIsRefusedAfterRestartOfAll wipes a node while the others restart,
// so that what they know of it is in their logs only, not in their states.
func TestWipedDiskIsRefusedAfterRestartOfAll(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	for _, n := range c.up() {
		mustPropose(t, n, clustertest.Record())
	}
	c.converged()
	for _, n := range c.up() {
		c.kill(n.id)
	}
	wipe(t, c.nodes["n1"].dir)
	done := make(chan error, 1)
	go func() { done <- c.open("n1") }() // first, so that nobody leads yet
	c.start("n2")
	if err := <-done; err == nil {
		select {
		case err := <-c.nodes["n1"].faults:
			if !errors.Is(err, ErrWipedDisk) {
				t.Errorf("fault = %v, want %v", err, ErrWipedDisk)
			}
		case <-time.After(5 * time.Second):
			t.Error("the wiped node was not stopped")
		}
	} else if !errors.Is(err, ErrWipedDisk) {
		t.Errorf("Open = %v, want %v", err, ErrWipedDisk)
	}
}

func TestRolledBackDiskIsRefused(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	f := c.followers()[0]
	mustPropose(t, f, clustertest.Record())
	c.kill(f.id)
	old := filepath.Join(t.TempDir(), "old")
	copyDir(t, f.dir, old)
	c.start(f.id)
	for range 20 {
		v := mustPropose(t, f, clustertest.Record())
		if err := f.WaitApplied(within(t, 5*time.Second), v.Index); err != nil {
			t.Fatal(err)
		}
	}
	mustPropose(t, f, clustertest.Record()) // tells the last index applied before
	c.converged()
	c.kill(f.id)
	now := filepath.Join(t.TempDir(), "now")
	copyDir(t, f.dir, now)

	copyDir(t, old, f.dir)
	if err := c.open(f.id); !errors.Is(err, ErrRolledBack) {
		t.Fatalf("Open with an old disk = %v, want %v", err, ErrRolledBack)
	}
	// Nobody can be asked: what the log brings tells.
	deaf := true
	c.edit = func(id string, cfg *Config) {
		if id == f.id && deaf {
			cfg.Hooks.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, ErrUnreachable }
		}
	}
	copyDir(t, old, f.dir)
	var others []string
	for _, n := range c.up() {
		others = append(others, n.id)
		c.kill(n.id)
	}
	if err := c.open(f.id); err != nil {
		t.Fatalf("Open alone = %v", err)
	}
	for _, id := range others {
		c.start(id)
	}
	select {
	case err := <-f.faults:
		if !errors.Is(err, ErrRolledBack) {
			t.Errorf("fault = %v, want %v", err, ErrRolledBack)
		}
	case <-time.After(5 * time.Second):
		t.Error("the rolled back node was not stopped")
	}
	c.kill(f.id)
	deaf = false
	copyDir(t, now, f.dir)
	c.start(f.id) // the newest disk is welcome
	c.leader()
	mustPropose(t, f, clustertest.Record())
	c.converged()
	for len(f.faults) > 0 {
		t.Error(<-f.faults)
	}
}

func TestDataDirOfAnotherNode(t *testing.T) {
	dir := t.TempDir()
	var last uint64
	// A clock that stands still, and one that went back.
	for _, now := range []time.Time{time.Unix(100, 0), time.Unix(200, 0), time.Unix(200, 0), time.Unix(50, 0), time.Unix(-1, 0)} {
		d, err := openDataDir(dir, "n1", now)
		if err != nil {
			t.Fatal(err)
		}
		if d.file.Incarnation <= last || int64(d.file.Incarnation) < now.UnixNano() {
			t.Errorf("at %v, after incarnation %d: %d", now, last, d.file.Incarnation)
		}
		last = d.file.Incarnation
	}
	if _, err := openDataDir(dir, "n2", time.Now()); !errors.Is(err, ErrDataDir) {
		t.Errorf("another node's directory: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, identityFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openDataDir(dir, "n1", time.Now()); !errors.Is(err, ErrDataDir) {
		t.Errorf("damaged identity file: %v", err)
	}
}

// TestCorruptLogStopsTheStart damages what a node is about to read.
func TestCorruptLogStopsTheStart(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	f := c.followers()[0]
	for range 5 {
		mustPropose(t, f, clustertest.Record())
	}
	c.converged()
	last := f.raft.Load().LastIndex()
	c.kill(f.id)
	path := filepath.Join(f.dir, "groups", "0", "raft", "raft.db")
	for _, index := range []uint64{last, last - 2} {
		key := []byte{0, 0, 0, 0, 0, 0, byte(index >> 8), byte(index)}
		good := raftlogtest.Rewrite(t, path, "logs", key, func(b []byte) []byte { b[len(b)/2] ^= 4; return b })
		if err := c.open(f.id); !errors.Is(err, ErrCorrupt) {
			t.Errorf("Open with entry %d of %d damaged = %v, want %v", index, last, err, ErrCorrupt)
			f.end(t, true)
		}
		for len(f.faults) > 0 {
			<-f.faults
		}
		raftlogtest.Rewrite(t, path, "logs", key, func([]byte) []byte { return good })
	}
	c.start(f.id)
	c.converged()
}

// What the log says of nodes counts only where an unsealed leader signed it.
func TestSurveyOfForgedEntries(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	n := c.followers()[0]
	mustPropose(t, n, clustertest.Record())
	c.converged()
	forged, err := wire.EncodeEntry(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{
		Node: n.id, Incarnation: 1 << 62, Watermark: 1 << 60,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	last, err := n.store.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	id := n.id
	c.kill(id)
	st, err := raftlog.Open(filepath.Join(n.dir, "groups", "0", "raft"), time.Minute, raftlog.Hooks{}, newMetrics().disk, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	if err := st.StoreLog(&raft.Log{Index: last + 1, Term: 1, Type: raft.LogCommand, Data: forged}); err != nil {
		t.Fatal(err)
	}
	disk, err := bootstrap.Inspect(st, raft.NewInmemSnapshotStore())
	if err != nil {
		t.Fatal(err)
	}
	disk.Survey(t.Context())
	// What others would be told, of this log alone.
	empty := fsm.New(fsm.Config{})
	starting := bootstrap.New(bootstrap.Config{
		Node: id, Disk: disk, State: empty.Current, Watermark: empty.Watermark, Unsealed: func() bool { return false },
		Configuration: func() (uint64, raft.Configuration) { return 0, raft.Configuration{} },
	})
	for _, node := range c.ids {
		seen, err := starting.Answer(t.Context(), &clusterpb.HelloRequest{Node: node})
		if err != nil {
			t.Fatal(err)
		}
		if !seen.Registered || seen.Incarnation == 0 || seen.Incarnation == 1<<62 || seen.Watermark > last {
			t.Errorf("%s: %v", node, seen)
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
}

// An answer to Hello that comes over the network is proven while the node is unsealed.
func TestHelloIsProven(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	l, f := c.leader(), c.followers()[0]
	ask := func() bool {
		t.Helper()
		var proven bool
		clustertest.Eventually(t, time.Minute, "an answer", func() bool {
			client, err := f.peers.Client(l.id)
			if err != nil {
				t.Fatal(err)
			}
			nonce := peerproof.NewNonce()
			r, err := client.Hello(t.Context(), &clusterpb.HelloRequest{Group: wire.Group, Node: f.id, Nonce: nonce})
			proven = err == nil && bootstrap.Proven(clustertest.Cluster(), f.id, nonce, r)
			return err == nil && r.Registered
		})
		return proven
	}
	if !ask() {
		t.Error("an unsealed leader's answer is not proven")
	}
	l.seal()
	if ask() {
		t.Error("a sealed node's answer is proven")
	}
}
