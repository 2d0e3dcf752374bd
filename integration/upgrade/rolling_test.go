package upgrade

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// previous builds the release before this one from the commit in previous.txt. Without the
// paths in the binary, a second run finds it compiled.
func previous(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("previous.txt")
	if err != nil {
		t.Fatal(err)
	}
	commit := strings.TrimSpace(string(b))
	run := func(dir, name string, args ...string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.Bytes())
		}
		return out, err
	}
	if _, err := run("", "git", "cat-file", "-e", commit+"^{commit}"); err != nil {
		t.Skipf("the source of the release before this one is not in the history here, so nothing can be upgraded from it: %v", err)
	}
	dir := t.TempDir()
	tar := filepath.Join(dir, "source.tar")
	src, out := filepath.Join(dir, "source"), filepath.Join(dir, "conclave")
	for _, step := range [][]string{
		{"", "git", "-C", filepath.Join("..", ".."), "archive", "--output", tar, commit},
		{"", "mkdir", src},
		{"", "tar", "-xf", tar, "-C", src},
		{src, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out, "./cmd/conclave"},
	} {
		if _, err := run(step[0], step[1], step[2:]...); err != nil {
			t.Fatalf("building the release before this one: %v", err)
		}
	}
	return out
}

// rolling is a cluster that is upgraded while clients use it.
type rolling struct {
	t    *testing.T
	c    *harness.Cluster
	h    *harness.History
	b    *balancer
	seed uint64
	// use lets a node start with the old release or with the new one.
	use func(n *harness.Node, old bool)
	old map[*harness.Node]bool
	// entries is how many entries the nodes apply together after each restart, before their
	// states are compared. They compare them by themselves every 1,000 entries.
	entries uint64
	// back is how many nodes go back to the old release.
	back int
}

// restart restarts a node with another release under load, unseals it, lets all nodes work
// together, and compares their states.
func (r *rolling) restart(n *harness.Node, old bool) {
	r.t.Helper()
	w := harness.StartWorkload(r.t, r.c, r.h, r.seed+uint64(len(r.h.Ops())), 4)
	l := startClients(r.t, r.c, r.b, r.h, 6)
	l.await(50)
	n.Stop()
	r.use(n, old)
	r.old[n] = old
	n.Start()
	n.Unseal()
	r.c.WaitReady(n)
	from := r.applied(n)
	r.c.Eventually("waiting for entries", func(context.Context) error {
		if done := r.applied(n) - from; done < r.entries && !r.t.Failed() {
			return fmt.Errorf("%d entries so far", done)
		}
		return nil
	})
	l.finish()
	w.Finish()
	r.c.NoFaults()
	at := r.c.Converged()
	r.t.Logf("node %s restarted, old: %v; %d calls succeeded, %d failed; the states are the same at index %d", n.ID, old, l.done.Load(), l.failed.Load(), at)
}

func (r *rolling) applied(n *harness.Node) uint64 {
	r.t.Helper()
	s, err := n.Status(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return s.GetRaft().GetAppliedIndex()
}

// order returns the nodes with the leader last.
func (r *rolling) order() (list []*harness.Node) {
	leader := r.c.Leader()
	for _, n := range r.c.Nodes {
		if n != leader {
			list = append(list, n)
		}
	}
	return append(list, leader)
}

// levels checks what a node of the new release says about the upgrade.
func (r *rolling) levels(n *harness.Node, want, to uint32) {
	r.t.Helper()
	st, err := harness.Administration(n).UpgradeStatus(r.t.Context(), &kmspb.UpgradeStatusRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	if st.GetLevel() != want || st.GetTo() != to || len(st.GetMembers()) != len(r.c.Nodes) {
		r.t.Fatalf("node %s: %v, want level %d, which can be raised to %d", n.ID, st, want, to)
	}
	for i, m := range st.GetMembers() {
		if old := r.old[r.c.Nodes[i]]; m.GetNodeId() != r.c.Nodes[i].ID || (m.GetSchemaMax() == 1) != old || (m.GetObstacle() != "") != old {
			r.t.Errorf("node %s says of %s, old: %v: %v", n.ID, r.c.Nodes[i].ID, old, m)
		}
	}
}

// finalize raises the level by a node, or is refused because of those that are named.
func (r *rolling) finalize(n *harness.Node, because ...*harness.Node) {
	r.t.Helper()
	res, err := harness.Administration(n).FinalizeUpgrade(r.t.Context(), &kmspb.FinalizeUpgradeRequest{})
	if len(because) == 0 {
		if err != nil || res.GetLevel() != 2 {
			r.t.Fatalf("finalizing: %v, %v", res, err)
		}
		return
	}
	if status.Code(err) != codes.FailedPrecondition {
		r.t.Fatalf("finalizing with older nodes: %v, %v", res, err)
	}
	for _, o := range because {
		if !strings.Contains(err.Error(), "node "+o.ID+" runs release") {
			r.t.Errorf("the refusal does not name node %s: %v", o.ID, err)
		}
	}
}

// run upgrades the cluster, goes back, and upgrades it for good. In the end all nodes run
// the new release at level 2.
func (r *rolling) run() {
	for i, n := range r.order() {
		r.restart(n, false)
		r.levels(n, 1, 2)
		if i == 0 {
			var older []*harness.Node
			for _, o := range r.c.Nodes {
				if r.old[o] {
					older = append(older, o)
				}
			}
			r.finalize(n, older...)
		}
	}
	for _, n := range r.order()[:r.back] {
		r.restart(n, true)
	}
	for _, n := range r.order() {
		if r.old[n] {
			r.restart(n, false)
		}
	}
	r.levels(r.c.Nodes[0], 1, 2)
	r.finalize(r.c.Nodes[1])
	r.finalize(r.c.Nodes[2]) // again, which does nothing
	for _, n := range r.c.Nodes {
		r.c.Eventually("waiting for the level at "+n.ID, func(context.Context) error {
			if got := harness.Metric(r.t, n, "conclave_feature_level"); got != 2 {
				return fmt.Errorf("it has level %v", got)
			}
			return nil
		})
		r.levels(n, 2, 2)
	}
}

// refuses starts a node with the old release, which stops and says why, and then with the
// new one, which goes on from where the node was.
func (r *rolling) refuses(n *harness.Node, reason string) {
	r.t.Helper()
	n.Stop()
	r.use(n, true)
	err := n.TryStart()
	if err == nil {
		r.c.Eventually("waiting for the old release to stop", func(context.Context) error {
			if err = n.Fault(); err == nil {
				return fmt.Errorf("node %s runs", n.ID)
			}
			return nil
		})
	}
	if !strings.Contains(err.Error(), reason) {
		r.t.Errorf("the old release stops without the reason: %v", err)
	}
	n.Kill()
	r.use(n, false)
	n.Start()
	n.Unseal() // a process that has only begun to start would end by the signal to stop
	r.c.WaitReady(n)
	r.restart(n, false)
}

// done checks that clients saw nothing that the log does not witness.
func (r *rolling) done() {
	harness.Witnessed(r.t, r.c, r.h)
	finalized := 0
	for _, rec := range r.c.Nodes[0].ReadLog(0) {
		if rec.Name == "FinalizeUpgrade" && rec.Code == "" {
			finalized++
		}
	}
	if finalized != 1 {
		r.t.Errorf("the log has %d records of a finalized upgrade, want 1", finalized)
	}
}

// TestRollingUpgrade upgrades a cluster of the release before this one, which it builds from
// its source, one node at a time while clients use it; back; and forward again. Clients of
// AWS's SDK see no failure. Once the upgrade is finalized, the old release does not run on
// the data any more.
func TestRollingUpgrade(t *testing.T) {
	if !harness.Full() {
		t.Skip("it compiles another release and restarts nine processes: make test-full runs it, and TestRollingUpgradeInProcess is its short form")
	}
	before := previous(t)
	// While a node is down, nothing should have to be compiled.
	if _, err := harness.Binary(); err != nil {
		t.Fatal(err)
	}
	c := harness.NewCluster(t, 3, harness.Options{Processes: true, Binary: before})
	r := &rolling{t: t, c: c, h: harness.NewHistory(), b: startBalancer(t, c), seed: harness.NewSeed(t), old: make(map[*harness.Node]bool), entries: 250, back: 3,
		use: func(n *harness.Node, old bool) {
			if n.Binary = ""; old {
				n.Binary = before
			}
		}}
	for _, n := range c.Nodes {
		r.old[n] = true
	}
	r.run()
	r.refuses(c.Nodes[2], "schema 2, this binary knows 1 to 1")
	r.done()
}

// TestRollingUpgradeInProcess is TestRollingUpgrade with nodes in this process. Those of the
// older release are of this one, but know only its schemas.
func TestRollingUpgradeInProcess(t *testing.T) {
	harness.NotWithRaces(t)
	var upgraded sync.Map // by id
	c := harness.NewCluster(t, 3, harness.Options{Configure: func(n *harness.Node, cfg *node.Config) {
		cfg.OpsListen = n.Ops // for the balancer
		if _, ok := upgraded.Load(n.ID); !ok {
			cfg.Test.Cluster.Known = level.Range{Oldest: 1, Newest: 1}
		}
	}})
	r := &rolling{t: t, c: c, h: harness.NewHistory(), b: startBalancer(t, c), seed: harness.NewSeed(t), old: make(map[*harness.Node]bool), entries: 20, back: 1,
		use: func(n *harness.Node, old bool) {
			if upgraded.Store(n.ID, true); old {
				upgraded.Delete(n.ID)
			}
		}}
	for _, n := range c.Nodes {
		r.old[n] = true
	}
	r.run()
	r.refuses(c.Nodes[2], "schema 2, and this release knows schemas 1 to 1: a newer release wrote it")
	r.done()
}
