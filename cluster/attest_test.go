package cluster

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/raftlogger"
	"github.com/conclavekms/conclave/fsm"
)

// A sealed node makes snapshots too, attested by a node that is not, and starts from
// them; where all are sealed there are none.
func TestSealedNodeHasItsSnapshotAttested(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, func(_ string, cfg *Config) {
		cfg.TrailingLogs = 5
		cfg.Timeouts.Snapshot = 20 * time.Millisecond // which also bounds how often others may ask
		cfg.SnapshotEntries = 1 << 40
	})
	c.found()
	sealed := c.followers()[0]
	sealed.seal()
	for range 50 {
		mustPropose(t, c.leader(), clustertest.Record())
	}
	c.converged()
	clustertest.Eventually(t, time.Minute, "an attested snapshot of the sealed node", func() bool {
		mustPropose(t, c.leader(), clustertest.Record())
		return sealed.raft.Load().Snapshot().Error() == nil
	})
	meta, r := newestSnapshot(t, sealed)
	if err := fsm.CheckSnapshot(r, c.leader().State(), meta.Index); err != nil {
		t.Errorf("the sealed node's snapshot: %v", err)
	}
	c.kill(sealed.id)
	c.start(sealed.id)
	c.converged()
	c.noFaults()

	for _, n := range c.up() {
		n.seal()
	}
	n := c.up()[0]
	before, _ := newestSnapshot(t, n)
	if err := n.raft.Load().Snapshot().Error(); err == nil {
		t.Error("a cluster of sealed nodes made a snapshot")
	}
	if after, _ := newestSnapshot(t, n); before != nil && before.ID != after.ID {
		t.Error("a snapshot is there that nobody attests")
	}
}

func newestSnapshot(t testing.TB, n *testNode) (*raft.SnapshotMeta, io.Reader) {
	t.Helper()
	list, err := n.snapshots.List()
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 {
		return nil, nil
	}
	meta, r, err := n.snapshots.Open(list[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return meta, bytes.NewReader(b)
}

// What a leader sends is taken only if it is attested, whole, and of the index that
// Raft was told; nothing is left behind of what is refused.
func TestReceivedSnapshotsAreChecked(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	c.found()
	n := c.leader()
	mustPropose(t, n, clustertest.Record())
	if err := n.raft.Load().Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	meta, r := newestSnapshot(t, n)
	good, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	files, err := raft.NewFileSnapshotStoreWithLogger(t.TempDir(), 3, raftlogger.New(testLogger(), "snapshot"))
	if err != nil {
		t.Fatal(err)
	}
	store := &snapshotStore{SnapshotStore: files, state: n.State, note: func(*raft.SnapshotMeta) {}}
	receive := func(index uint64, b []byte, cancel bool) error {
		t.Helper()
		_, trans := raft.NewInmemTransport("")
		sink, err := store.Create(1, index, meta.Term, meta.Configuration, meta.ConfigurationIndex, trans)
		if err != nil {
			t.Fatal(err)
		}
		for len(b) > 0 {
			k := min(len(b), 100)
			if _, err := sink.Write(b[:k]); err != nil {
				return errors.Join(err, sink.Cancel())
			}
			b = b[k:]
		}
		if cancel {
			return errors.Join(errors.New("cancelled"), sink.Cancel())
		}
		return sink.Close()
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 4
	for name, err := range map[string]error{
		"a flipped bit":    receive(meta.Index, flipped, false),
		"half of it":       receive(meta.Index, good[:len(good)/2], false),
		"nothing":          receive(meta.Index, nil, false),
		"a cancelled one":  receive(meta.Index, good, true),
		"a later index":    receive(meta.Index+1, good, false),
		"an earlier index": receive(meta.Index-1, good, false),
		"garbage":          receive(meta.Index, bytes.Repeat([]byte("x"), 5000), false),
	} {
		if err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if list, err := store.List(); err != nil || len(list) != 0 {
		t.Fatalf("of what was refused there is %v left, %v", list, err)
	}
	if err := receive(meta.Index, good, false); err != nil {
		t.Fatalf("a good snapshot: %v", err)
	}
	list, err := store.List()
	if err != nil || len(list) != 1 {
		t.Fatalf("snapshots %v, %v", list, err)
	}
	if _, r, err := store.Open(list[0].ID); err != nil {
		t.Error(err)
	} else {
		r.Close()
	}
}
