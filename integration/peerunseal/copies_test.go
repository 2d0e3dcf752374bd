package peerunseal

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/integration/harness/ports"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// configurations are those with which the nodes of a cluster were started.
type configurations struct {
	mu sync.Mutex
	of map[string]node.Config
}

func (c *configurations) note(n *harness.Node, cfg *node.Config) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = make(map[string]node.Config)
	}
	cfg.OpsListen = n.Ops
	// A node that no leader reaches knows only what is in its newest snapshot. With that,
	// copies know enough to ask.
	cfg.Test.SnapshotEntries, cfg.Timeouts.Snapshot = 5, 200*time.Millisecond
	c.of[n.ID] = *cfg
}

// startCopy starts a node from a copy of another's files, at addresses of its own. It has
// the certificate, too.
func startCopy(t *testing.T, c *harness.Cluster, all *configurations, of *harness.Node, data string) (*node.Node, error) {
	t.Helper()
	all.mu.Lock()
	cfg := all.of[of.ID]
	all.mu.Unlock()
	cfg.Data, cfg.OpsListen = data, ""
	for _, addr := range []*string{&cfg.AWSListen, &cfg.GRPCListen, &cfg.PeerListen} {
		var err error
		if *addr, err = ports.Free(); err != nil {
			t.Fatal(err)
		}
	}
	c.Network.Rejoin(of.ID)
	cfg.PeerAdvertise = cfg.PeerListen
	n, err := node.Start(t.Context(), cfg)
	if err == nil {
		t.Cleanup(func() { n.Stop(context.Background()) })
	}
	return n, err
}

// snapshotted waits until a node has a snapshot with the setting and its return key.
func snapshotted(t *testing.T, c *harness.Cluster, n *harness.Node) {
	t.Helper()
	from, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.Eventually("waiting for a snapshot of "+n.ID, func(ctx context.Context) error {
		if _, err := n.KMS().CreateKey(ctx, &kmspb.CreateKeyRequest{}); err != nil {
			return err
		}
		index, err := harness.SnapshotIndex(n)
		if err == nil && index < from.GetRaft().GetAppliedIndex() {
			err = fmt.Errorf("it is at index %d", index)
		}
		return err
	})
}

// staysSealed waits until a copy says that it waits for something.
func staysSealed(c *harness.Cluster, n *node.Node, text string) {
	c.T.Helper()
	c.Eventually(fmt.Sprintf("waiting for the copy to say %q", text), func(context.Context) error {
		s := n.Engine().SealStatus()
		if !s.Sealed {
			c.T.Fatal("the copy is unsealed")
		}
		if !strings.Contains(s.Waiting, text) {
			return fmt.Errorf("it says %q", s.Waiting)
		}
		return nil
	})
}

// suspected waits until the log and the metrics name a node that may have been copied.
func suspected(t *testing.T, c *harness.Cluster, by *harness.Node, node, reason string) {
	t.Helper()
	c.Eventually("waiting for the record of a suspicion", func(context.Context) error {
		for _, r := range events(t, by, "RefuseUnsealPart") {
			if strings.Contains(r, `"node":"`+node+`"`) && strings.Contains(r, reason) {
				return nil
			}
		}
		return errors.New("there is none")
	})
	// Those who were asked count it, which may be another node than by.
	c.Eventually("waiting for a node that counts the suspect", func(context.Context) error {
		for _, n := range c.Nodes {
			if n.ID != node && harness.Metric(t, n, "conclave_peer_unseal_suspects_total") > 0 {
				return nil
			}
		}
		return errors.New("there is none")
	})
}

// TestCopyOfStoppedNode: a copy of a node's files that runs at another address, with the
// node's certificate, gets nothing while the node is down. The node itself is unsealed when
// it comes back.
func TestCopyOfStoppedNode(t *testing.T) {
	t.Parallel()
	all := new(configurations)
	c := enabled(t, 3, 1, harness.Options{Configure: all.note})
	n := c.Nodes[2]
	snapshotted(t, c, n)
	n.Stop()
	data := filepath.Join(t.TempDir(), "copy")
	copyDir(t, n.Data, data)
	dup, err := startCopy(t, c, all, n, data)
	if err != nil {
		t.Fatal(err)
	}
	staysSealed(c, dup, "c is not at its address "+n.Peer)
	suspected(t, c, c.Nodes[0], n.ID, "is not at its address")
	if got := events(t, c.Nodes[0], "ReleaseUnsealPart"); len(got) != 0 {
		t.Errorf("parts were given: %v", got)
	}
	if err := dup.Stop(t.Context()); err != nil {
		t.Log(err)
	}
	n.Start()
	c.WaitReady(n)
}

// TestCopyOfRunningNode: the same while the node runs. It goes on undisturbed.
func TestCopyOfRunningNode(t *testing.T) {
	t.Parallel()
	all := new(configurations)
	c := enabled(t, 3, 1, harness.Options{Configure: all.note})
	n := c.Nodes[2]
	snapshotted(t, c, n)
	c.Converged()
	data := filepath.Join(t.TempDir(), "copy")
	copyDir(t, n.Data, data)
	dup, err := startCopy(t, c, all, n, data)
	if err != nil {
		t.Fatal(err)
	}
	staysSealed(c, dup, "that it is unsealed, after another process had asked in its name")
	suspected(t, c, c.Nodes[0], n.ID, "after another process had asked in its name")
	if got := events(t, c.Nodes[0], "ReleaseUnsealPart"); len(got) != 0 {
		t.Errorf("parts were given: %v", got)
	}
	harness.Usable(t, n)
	c.NoFaults()
}

// TestRolledBackDisk: a node with an older copy of its own files does not start, and its
// return key is worth nothing.
func TestRolledBackDisk(t *testing.T) {
	t.Parallel()
	all := new(configurations)
	c := enabled(t, 3, 1, harness.Options{Configure: all.note})
	n := c.Nodes[2]
	n.Stop()
	data := filepath.Join(t.TempDir(), "copy")
	copyDir(t, n.Data, data)
	n.Start()
	c.WaitReady(n)
	harness.Usable(t, n)
	enrolled(c, 3)
	n.Stop()
	if _, err := startCopy(t, c, all, n, data); err == nil || !strings.Contains(err.Error(), "rolled back") {
		t.Errorf("a node with an older disk: %v", err)
	}
	n.Start()
	c.WaitReady(n)
}

// TestRemovedNode: a node that was removed while it was down ends when it is started, and is
// never unsealed, although its files and its certificate are the newest ones. TestGive of package peerunseal in cluster
// has what its peers do if it asks nevertheless.
func TestRemovedNode(t *testing.T) {
	t.Parallel()
	all := new(configurations)
	c := enabled(t, 4, 1, harness.Options{Configure: all.note})
	n := c.Nodes[3]
	snapshotted(t, c, n)
	n.Stop()
	c.Eventually("removing "+n.ID, func(ctx context.Context) error {
		_, err := harness.Administration(c.Leader()).RemoveNode(ctx, &kmspb.RemoveNodeRequest{NodeId: n.ID})
		return err
	})
	err := n.TryStart()
	if err == nil {
		// It had not heard from its peers when it started.
		c.Eventually("waiting for the removed node to end", func(ctx context.Context) error {
			if s, err := n.Status(ctx); err == nil && s.GetSeal() != nil && !s.GetSeal().GetSealed() {
				t.Fatal("the removed node is unsealed")
			}
			if err = n.Fault(); err == nil {
				return errors.New("it runs")
			}
			return nil
		})
	}
	if err == nil || !strings.Contains(err.Error(), "removed from the cluster") {
		t.Errorf("starting a removed node: %v", err)
	}
	if got := events(t, c.Nodes[0], "ReleaseUnsealPart"); len(got) != 0 {
		t.Errorf("parts were given: %v", got)
	}
}
