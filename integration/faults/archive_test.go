package faults

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// record appends records to the log until it has so many, without requests, which take longer.
func record(t *testing.T, n *harness.Node, size uint64) {
	t.Helper()
	c := n.InProcess().Cluster()
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	for range 512 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if f, _ := c.State().Audit(); f.Size() >= size {
					return
				}
				r := &fsmpb.Record{RequestId: make([]byte, 16), Salt: make([]byte, 16), Commitment: make([]byte, 32), Body: make([]byte, 64)}
				_, _ = rand.Read(r.RequestId)
				if _, err := c.Propose(ctx, r); err != nil {
					failed.Store(&err) // while there is no leader
					time.Sleep(10 * time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		var newest error
		if err := failed.Load(); err != nil {
			newest = *err
		}
		t.Fatalf("records could not be appended in time; the newest failure: %v", newest)
	}
}

// TestArchivedLog archives the log of a cluster, whose nodes then remove the first segment. They
// restart, are read, and one of them gets the whole log again when it has lost its own.
func TestArchivedLog(t *testing.T) {
	if !harness.AtLength() {
		t.Skip("140,000 records take minutes: make faults runs it; the parts are tested in auditlog/archive and keyengine/auditarchive")
	}
	dir := t.TempDir()
	c := harness.NewCluster(t, 3, harness.Options{Configure: func(_ *harness.Node, cfg *node.Config) {
		cfg.AuditArchive, cfg.AuditRetention = dir, time.Second
		cfg.Test.SnapshotEntries, cfg.Test.TrailingLogs = 2000, 100
		cfg.Timeouts.Snapshot = time.Second
	}})
	c.Finalize()
	record(t, c.Leader(), 2*auditlog.SegmentSize+100)
	removed := func(nodes ...*harness.Node) {
		t.Helper()
		// What follows the log reads it slowly, as requests come first.
		for deadline := time.Now().Add(8 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
			waits := slices.IndexFunc(nodes, func(nd *harness.Node) bool {
				r := nd.InProcess().AuditLog().Removed()
				return r.Segments != 1 || r.Place != dir
			})
			if waits < 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s has not removed a segment", nodes[waits].ID)
			}
		}
	}
	removed(c.Nodes...)
	c.NoFaults()
	reads := func(nd *harness.Node) {
		t.Helper()
		stream, err := nd.Audit().Read(t.Context(), &kmspb.ReadAuditRequest{From: 3})
		if err == nil {
			var r *kmspb.ReadAuditResponse
			if r, err = stream.Recv(); err == nil && r.GetIndex() != 3 {
				err = fmt.Errorf("record %d", r.GetIndex())
			}
		}
		if err != nil {
			t.Errorf("%s: reading a record that is in the archive: %v", nd.ID, err)
		}
		if _, err := nd.InProcess().AuditLog().ProveInclusion(3, auditlog.SegmentSize+50); err != nil {
			t.Errorf("%s: proving it: %v", nd.ID, err)
		}
	}
	for _, nd := range c.Nodes {
		reads(nd)
	}

	// One node restarts, and one loses its log.
	restarts := c.Nodes[(c.Leader().Index+1)%3]
	loses := c.Nodes[(c.Leader().Index+2)%3]
	for _, nd := range []*harness.Node{restarts, loses} {
		nd.Stop()
		if nd == loses {
			if err := os.RemoveAll(node.AuditDir(nd.Data)); err != nil {
				t.Fatal(err)
			}
		}
		nd.Start()
		nd.Unseal()
		c.WaitReady(nd)
		reads(nd)
	}
	complete(t, c)
	removed(c.Nodes...)
	reads(loses)
	c.NoFaults()
	for _, nd := range c.Nodes {
		nd.Stop()
	}
	sameAudit(t, c, false)
	key := filepath.Join(t.TempDir(), "audit.pub")
	if err := os.WriteFile(key, []byte(c.VerifierKey), 0o600); err != nil {
		t.Fatal(err)
	}
	binary, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{loses.Data}, {}} {
		args = append([]string{"audit", "verify", "--key", key, "--archive", dir}, args...)
		if out, err := exec.CommandContext(t.Context(), binary, args...).CombinedOutput(); err != nil || bytes.Contains(out, []byte("not read")) {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}
