package cluster

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
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
	mustPropose(t, c.leader(), record())
	c.converged()
	c.noFaults()
}

func TestDifferentSetsFormNoCluster(t *testing.T) {
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
			eventually(t, 10*time.Second, "crash", func() bool {
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
			for _, id := range c.ids { // faults of the hooks, not of the nodes
				for len(c.nodes[id].faults) > 0 {
					<-c.nodes[id].faults
				}
			}
			armed = false
			c.startAll()
			mustPropose(t, c.leader(), record())
			c.converged()
			c.noFaults()
		})
	}
}

func TestWipedDiskIsRefused(t *testing.T) {
	c := startCluster(t, 3, nil)
	for _, n := range c.up() {
		mustPropose(t, n, record())
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
	c := startCluster(t, 3, nil)
	for _, n := range c.up() {
		mustPropose(t, n, record())
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
	c := startCluster(t, 3, nil)
	f := c.followers()[0]
	mustPropose(t, f, record())
	c.kill(f.id)
	old := filepath.Join(t.TempDir(), "old")
	copyDir(t, f.dir, old)
	c.start(f.id)
	for range 20 {
		v := mustPropose(t, f, record())
		if err := f.WaitApplied(within(t, 5*time.Second), v.Index); err != nil {
			t.Fatal(err)
		}
	}
	mustPropose(t, f, record()) // tells the last index applied before
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
	mustPropose(t, f, record())
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

// TestSurvey holds the hand-read fields against the schema.
func TestSurvey(t *testing.T) {
	encode := func(e *fsmpb.Entry) []byte {
		b, err := fsm.EncodeEntry(e)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	nodes := make(map[string]sighting)
	surveyEntry(encode(&fsmpb.Entry{Clock: &fsmpb.Clock{Wall: 5}, Command: &fsmpb.Entry_RegisterNode{
		RegisterNode: &fsmpb.RegisterNode{Node: "a", Incarnation: 3, Watermark: 17, Release: "x"},
	}}), nodes)
	surveyEntry(encode(&fsmpb.Entry{Command: &fsmpb.Entry_Batches{Batches: &fsmpb.Batches{Batches: []*fsmpb.Batch{
		{Node: "b", Incarnation: 1, Seq: 2, Watermark: 30, Records: []*fsmpb.Record{record(), record()}},
		{Node: "a", Incarnation: 3, Seq: 1, Watermark: 12},
	}}}}), nodes)
	if len(nodes) != 2 || nodes["a"] != (sighting{3, 17}) || nodes["b"] != (sighting{1, 30}) {
		t.Errorf("survey = %v", nodes)
	}
}

func FuzzSurveyEntry(f *testing.F) {
	f.Add([]byte{0x5a, 3, 0x0a, 1, 'a'})
	f.Fuzz(func(t *testing.T, b []byte) { surveyEntry(b, map[string]sighting{}) })
}

// TestCorruptLogStopsTheStart damages what a node is about to read.
func TestCorruptLogStopsTheStart(t *testing.T) {
	c := startCluster(t, 3, nil)
	f := c.followers()[0]
	for range 5 {
		mustPropose(t, f, record())
	}
	c.converged()
	last := f.raft.Load().LastIndex()
	c.kill(f.id)
	path := filepath.Join(f.dir, "raft", "raft.db")
	for _, index := range []uint64{last, last - 2} {
		key := []byte{0, 0, 0, 0, 0, 0, byte(index >> 8), byte(index)}
		good := rewrite(t, path, "logs", key, func(b []byte) []byte { b[len(b)/2] ^= 4; return b })
		if err := c.open(f.id); !errors.Is(err, ErrCorrupt) {
			t.Errorf("Open with entry %d of %d damaged = %v, want %v", index, last, err, ErrCorrupt)
			f.end(t, true)
		}
		for len(f.faults) > 0 {
			<-f.faults
		}
		rewrite(t, path, "logs", key, func([]byte) []byte { return good })
	}
	c.start(f.id)
	c.converged()
}
