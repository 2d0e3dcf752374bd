package cluster

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/fsm"
)

// TestReplayOfStoppedNodes has the states on the disks of stopped nodes be those that the
// nodes had, with and without a snapshot.
func TestReplayOfStoppedNodes(t *testing.T) {
	t.Parallel()
	for name, entries := range map[string]uint64{"log": 0, "snapshot": 8} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startCluster(t, 3, func(_ string, cfg *Config) {
				if cfg.SnapshotEntries = entries; entries > 0 {
					cfg.TrailingLogs, cfg.Timeouts.Snapshot = 4, 20*time.Millisecond
				}
			})
			n := c.nodes["n1"]
			if _, err := OpenStopped(n.dir); !errors.Is(err, ErrRunning) {
				t.Fatalf("OpenStopped while the node runs: %v", err)
			}
			for range 30 {
				mustPropose(t, n, clustertest.Record())
			}
			if entries > 0 {
				clustertest.Eventually(t, 20*time.Second, "a snapshot", func() bool {
					list, err := n.snapshots.List()
					return err == nil && len(list) > 0
				})
				mustPropose(t, n, clustertest.Record())
			}
			c.converged()
			c.stop()
			same := 0
			for _, id := range c.ids {
				s, err := OpenStopped(c.nodes[id].dir)
				if err != nil {
					t.Fatal(err)
				}
				m, err := s.Replay(t.Context(), fsm.Config{})
				if err != nil {
					t.Fatalf("%s: %v", id, err)
				}
				e := s.Extent()
				// The log may have entries that the node has not applied.
				switch was := c.nodes[id].State(); {
				case m.Current().Index() < was.Index():
					t.Errorf("%s: the state is at %d, and the node's was at %d", id, m.Current().Index(), was.Index())
				case m.Current().Index() > was.Index():
				case m.Current().Hash() != was.Hash():
					t.Errorf("%s: another state at %d than the node had", id, was.Index())
				default:
					same++
				}
				if e.Node != id || len(e.Members) != 3 || !e.Members[0].Voter || e.LastIndex < 30 || e.LastTerm == 0 || e.Term < e.LastTerm || (e.SnapshotIndex > 0) != (entries > 0) {
					t.Errorf("%s: extent %+v", id, e)
				}
				if m.Current().Index() < e.SnapshotIndex || m.Current().Index() > e.LastIndex {
					t.Errorf("%s: the state is at %d, the log goes to %d", id, m.Current().Index(), e.LastIndex)
				}
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				if _, err := s.Replay(ctx, fsm.Config{}); !errors.Is(err, context.Canceled) && e.LastIndex > e.SnapshotIndex {
					t.Errorf("Replay that was cancelled: %v", err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
			if same == 0 {
				t.Error("no node's state could be compared")
			}
			// The node starts from it as before.
			c.startAll()
			c.leader()
			mustPropose(t, c.nodes["n1"], clustertest.Record())
			c.noFaults()
		})
	}
}

// TestStoppedIsNotMade has OpenStopped make nothing where there is no node.
func TestStoppedIsNotMade(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, prepare := range []func() error{
		func() error { return nil },
		func() error {
			return os.WriteFile(filepath.Join(dir, identityFile), []byte(`{"format":1,"node":"n1"}`), 0o600)
		},
	} {
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
		if s, err := OpenStopped(dir); !errors.Is(err, ErrDataDir) {
			t.Errorf("OpenStopped = %v, %v", s, err)
		}
		if _, err := os.Stat(filepath.Join(dir, groupsDir)); err == nil {
			t.Error("something was made")
		}
	}
}

// TestStoppedZeroedPages zeroes each page of a Raft log, as a disk does that has lost writes. What
// cannot be read is reported as damaged, and nothing panics.
func TestStoppedZeroedPages(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	n := c.nodes["n1"]
	for range 60 {
		mustPropose(t, n, clustertest.Record())
	}
	c.stop()
	read := func(dir string) (e Extent, err error) {
		s, err := OpenStopped(dir)
		if err != nil {
			return e, err
		}
		_, err = s.Replay(t.Context(), fsm.Config{})
		return s.Extent(), errors.Join(err, s.Close())
	}
	whole, err := read(n.dir) // which moves the journal into the log
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(GroupDir(n.dir), "raft", "raft.db")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	size := os.Getpagesize()
	damaged := 0
	for at := 0; at < len(content); at += size {
		spoiled := slices.Clone(content)
		clear(spoiled[at:min(at+size, len(spoiled))])
		if bytes.Equal(spoiled, content) {
			continue
		}
		if err := os.WriteFile(file, spoiled, 0o600); err != nil {
			t.Fatal(err)
		}
		switch e, err := read(n.dir); {
		case err == nil && !reflect.DeepEqual(e, whole):
			t.Errorf("without page %d, the log reaches %+v, and no error is reported", at/size, e)
		case err == nil: // a free page, or one of two copies
		case !errors.Is(err, raftlog.ErrCorrupt):
			t.Errorf("without page %d, the error is %v", at/size, err)
		default:
			damaged++
		}
	}
	if damaged < 3 {
		t.Errorf("%d pages of %d matter", damaged, len(content)/size)
	}
}
