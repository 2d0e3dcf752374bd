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
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/cluster/internal/raftlog/raftlogtest"
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
			clustertest.Eventually(t, 10*time.Second, "crash", func() bool {
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

// TestSurvey holds the hand-read fields against the schema.
func TestSurvey(t *testing.T) {
	encode := func(e *fsmpb.Entry) []byte {
		b, err := wire.EncodeEntry(e)
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
		{Node: "b", Incarnation: 1, Seq: 2, Watermark: 30, Records: []*fsmpb.Record{clustertest.Record(), clustertest.Record()}},
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
	from, err := st.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	s := &survey{from: from, to: last + 1, done: make(chan struct{}), nodes: make(map[string]sighting)}
	s.run(t.Context(), st)
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if s.cluster == nil {
		t.Error("the founding was not found")
	}
	for _, node := range c.ids {
		if seen := s.nodes[node]; seen.incarnation == 0 || seen.incarnation == 1<<62 || seen.watermark > last {
			t.Errorf("%s: %+v", node, seen)
		}
	}
}

// An objection of a node that may be a thief is overruled by an unsealed node that
// knows what the cluster does, and by nobody else.
func TestObjections(t *testing.T) {
	no := errors.New("no")
	proven, other := helloResult{node: "n2", proven: true}, helloResult{node: "n3"}
	for name, tt := range map[string]struct {
		hear        func(o *objections)
		final, open bool
	}{
		"nobody":                        {func(o *objections) {}, false, false},
		"a sealed node has none":        {func(o *objections) { o.hear(other, nil) }, false, false},
		"a sealed node":                 {func(o *objections) { o.hear(other, no) }, false, true},
		"two of them differ":            {func(o *objections) { o.hear(other, no); o.hear(other, nil) }, false, true},
		"an unsealed node denies it":    {func(o *objections) { o.hear(other, no); o.hear(proven, nil) }, false, false},
		"an unsealed node denied it":    {func(o *objections) { o.hear(proven, nil); o.hear(other, no) }, false, false},
		"an unsealed node":              {func(o *objections) { o.hear(proven, no) }, true, false},
		"of two unsealed ones, one has": {func(o *objections) { o.hear(proven, nil); o.hear(proven, no) }, true, false},
	} {
		var o objections
		tt.hear(&o)
		if (o.final() != nil) != tt.final || (o.open() != nil) != tt.open {
			t.Errorf("%s: %v, %v", name, o.final(), o.open())
		}
	}
}

// An answer to Hello is proven for one asker, one nonce and what it says.
func TestHelloIsProven(t *testing.T) {
	c := startCluster(t, 3, nil)
	l, f := c.leader(), c.followers()[0]
	ask := func() bool {
		t.Helper()
		var proven bool
		clustertest.Eventually(t, 20*time.Second, "an answer", func() bool {
			r, ok, err := f.ask(t.Context(), l.id)
			proven = ok
			return err == nil && r.Registered
		})
		return proven
	}
	if f.survey.cluster == nil { // the founding came after the start
		f.survey.cluster = clustertest.Founded()
	}
	if !ask() {
		t.Error("an unsealed leader's answer is not proven")
	}
	r := &clusterpb.HelloResponse{Node: l.id, Registered: true, Watermark: 5, Incarnation: 2}
	want := helloDigest(f.id, []byte("nonce"), r)
	for name, got := range map[string][32]byte{
		"asker":       helloDigest("n9", []byte("nonce"), r),
		"nonce":       helloDigest(f.id, []byte("other"), r),
		"node":        helloDigest(f.id, []byte("nonce"), &clusterpb.HelloResponse{Node: "n9", Registered: true, Watermark: 5, Incarnation: 2}),
		"registered":  helloDigest(f.id, []byte("nonce"), &clusterpb.HelloResponse{Node: l.id, Watermark: 5, Incarnation: 2}),
		"watermark":   helloDigest(f.id, []byte("nonce"), &clusterpb.HelloResponse{Node: l.id, Registered: true, Watermark: 6, Incarnation: 2}),
		"incarnation": helloDigest(f.id, []byte("nonce"), &clusterpb.HelloResponse{Node: l.id, Registered: true, Watermark: 5, Incarnation: 3}),
	} {
		if got == want {
			t.Errorf("%s is not signed", name)
		}
	}
	l.seal()
	if ask() {
		t.Error("a sealed node's answer is proven")
	}
}
