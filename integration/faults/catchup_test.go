package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog/verify"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/harness"
)

// TestSnapshotCatchUp lets a node miss so much that the others no longer have the
// log entries, so that it can only catch up with a snapshot, which holds no audit
// records: those it fetches from the others.
func TestSnapshotCatchUp(t *testing.T) {
	seed := harness.NewSeed(t)
	c := harness.NewCluster(t, 3, harness.Options{Configure: func(_ *harness.Node, cfg *node.Config) {
		cfg.Test.SnapshotEntries, cfg.Test.TrailingLogs = 50, 10
		cfg.Timeouts.Snapshot = 200 * time.Millisecond
	}})
	h := harness.NewHistory()
	ctx := t.Context()
	key, o := h.At(c.Nodes[0]).CreateKey(ctx, "kept")
	if o.Code != "" {
		t.Fatal(o)
	}
	blob, _, o := h.At(c.Nodes[0]).Encrypt(ctx, key, []byte("kept"))
	if o.Code != "" {
		t.Fatal(o)
	}
	opens := func() {
		t.Helper()
		for _, nd := range c.Nodes {
			harness.Opens(t, h.At(nd), blob, []byte("kept"))
		}
	}
	opens()
	leader := c.Leader()
	missing := c.Nodes[(leader.Index+1)%3]
	missed := c.Converged()
	missing.Kill()
	w := harness.StartWorkload(t, c, h, seed, 8)
	w.AwaitAnswers(400)
	c.Eventually("waiting for the others to forget what the node missed", func(context.Context) error {
		for _, nd := range c.Running() {
			first, err := harness.SnapshotIndex(nd)
			if err != nil || first < missed+50 {
				return fmt.Errorf("the newest snapshot of %s is of index %d, want more than %d: %v", nd.ID, first, missed+50, err)
			}
		}
		return nil
	})
	w.AwaitAnswers(100)
	w.Finish()
	missing.Start()
	missing.Unseal()
	c.WaitReady(missing)
	c.Converged()
	log, err := os.ReadFile(filepath.Join(filepath.Dir(missing.Data), missing.ID+".log"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(log, []byte("snapshot")) || !bytes.Contains(log, []byte("nstalled remote snapshot")) {
		t.Error("void: the node caught up without a snapshot")
	}
	complete(t, c)
	opens()
	harness.Witnessed(t, c, h)
	c.Eventually("waiting for every node to have signed", func(ctx context.Context) error {
		for _, nd := range c.Nodes {
			s, err := nd.Status(ctx)
			if err != nil || s.GetAudit().GetCheckpointed() <= missed {
				return fmt.Errorf("%s has signed for %d records: %v", nd.ID, s.GetAudit().GetCheckpointed(), err)
			}
		}
		return nil
	})

	for _, nd := range c.Nodes {
		nd.Kill()
	}
	sameAudit(t, c, false)
	for _, nd := range c.Nodes {
		nd.Start()
	}
	c.Unseal()
	c.WaitReady()
	opens()
	complete(t, c)
	harness.Witnessed(t, c, h)
	// In good order this time, so that the newest records are signed.
	for _, nd := range c.Nodes {
		nd.Stop()
	}
	sameAudit(t, c, true)
}

// complete waits until every node stores the whole audit log.
func complete(t *testing.T, c *harness.Cluster) {
	t.Helper()
	c.Eventually("waiting for every node to have the whole audit log", func(ctx context.Context) error {
		for _, nd := range c.Nodes {
			s, err := nd.Status(ctx)
			if err != nil {
				return err
			}
			if a := s.GetAudit(); !a.GetComplete() {
				return fmt.Errorf("%s has %d records of %d", nd.ID, a.GetStored(), a.GetSize())
			}
		}
		return nil
	})
}

// sameAudit verifies the audit logs that stopped nodes left, with their files and
// the public key alone, and compares them byte by byte as far as all go.
func sameAudit(t *testing.T, c *harness.Cluster, signed bool) {
	t.Helper()
	var reports []*verify.Report
	var segments []map[string][]byte
	for _, nd := range c.Nodes {
		dir := filepath.Join(nd.Data, "groups", "0", "audit")
		r, err := verify.Dir(dir, c.VerifierKey, verify.Options{})
		if err != nil {
			t.Fatalf("node %s: %v", nd.ID, err)
		}
		for _, p := range r.Problems {
			t.Errorf("node %s: %v", nd.ID, p)
		}
		reports = append(reports, r)
		files := make(map[string][]byte)
		err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.Contains(path, "segment") {
				return err
			}
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			files[rel], err = os.ReadFile(path)
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if len(files) == 0 {
			t.Errorf("node %s has no segments", nd.ID)
		}
		segments = append(segments, files)
		t.Logf("node %s: %d records, %d of them signed for, root %x", nd.ID, r.Size, r.CheckpointSize, r.Root[:8])
		if signed && r.CheckpointSize == 0 {
			t.Errorf("node %s has signed for nothing", nd.ID)
		}
	}
	for i, nd := range c.Nodes[1:] {
		if reports[i+1].Size == reports[0].Size && reports[i+1].Root != reports[0].Root {
			t.Errorf("nodes %s and %s have different roots", c.Nodes[0].ID, nd.ID)
		}
		for name, a := range segments[0] {
			b := segments[i+1][name]
			n := min(len(a), len(b))
			if n == 0 || !bytes.Equal(a[:n], b[:n]) {
				t.Errorf("segment %s of %s and %s differs in its first %d bytes", name, c.Nodes[0].ID, nd.ID, n)
			}
		}
	}
}
