package peerunseal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// enabled returns a cluster of level 2 with peer-assisted unsealing, in which every node has
// its return key.
func enabled(t *testing.T, n, agreements int, opts harness.Options) *harness.Cluster {
	t.Helper()
	c := harness.NewCluster(t, n, opts)
	enable(t, c, agreements)
	return c
}

func enable(t *testing.T, c *harness.Cluster, agreements int) {
	t.Helper()
	admin := harness.Administration(c.Nodes[0])
	c.Finalize()
	res, err := admin.SetPeerUnseal(t.Context(), &kmspb.SetPeerUnsealRequest{Agreements: uint32(agreements)})
	if err != nil || !res.GetChanged() {
		t.Fatalf("enabling: %v, %v", res, err)
	}
	enrolled(c, len(c.Nodes))
}

// enrolled waits until as many nodes have return keys.
func enrolled(c *harness.Cluster, n int) {
	c.T.Helper()
	for _, nd := range c.Running() {
		c.Eventually("waiting for return keys at "+nd.ID, func(ctx context.Context) error {
			res, err := harness.Administration(nd).GetPeerUnseal(ctx, &kmspb.GetPeerUnsealRequest{})
			if err == nil && len(res.GetState().GetNodes()) != n {
				err = fmt.Errorf("%v", res.GetState())
			}
			return err
		})
	}
}

// waits waits until a sealed node says that it waits for something.
func waits(c *harness.Cluster, n *harness.Node, text string) {
	c.T.Helper()
	c.Eventually(fmt.Sprintf("waiting for %s to say %q", n.ID, text), func(ctx context.Context) error {
		s, err := n.Status(ctx)
		if err != nil {
			return err
		}
		if !s.GetSeal().GetSealed() {
			c.T.Fatalf("node %s is unsealed", n.ID)
		}
		if why := s.GetSeal().GetWaitingFor(); !strings.Contains(why, text) {
			return fmt.Errorf("it says %q", why)
		}
		return nil
	})
}

// returnKey returns the content of a node's file of return keys.
func returnKey(t *testing.T, n *harness.Node) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(n.Data, "return.key"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// events returns the records with the given name, as JSON.
func events(t *testing.T, n *harness.Node, name string) (list []string) {
	t.Helper()
	for _, r := range harness.ReadAudit(t, n, 0) {
		if r.EventName == name {
			list = append(list, r.Raw)
		}
	}
	return list
}

// TestRestart restarts the nodes of a cluster one after the other, gracefully and not. Each
// is unsealed by the others, has a new return key afterwards, and the log says who helped.
func TestRestart(t *testing.T) {
	t.Parallel()
	c := enabled(t, 3, 2, harness.Options{Configure: func(n *harness.Node, cfg *node.Config) { cfg.OpsListen = n.Ops }})
	for i, n := range slices.Concat(c.Nodes, c.Nodes[:1]) {
		before := returnKey(t, n)
		if i%2 == 0 {
			n.Stop()
		} else {
			n.Kill()
		}
		n.Start()
		c.WaitReady(n)
		c.Eventually("waiting for a new return key", func(context.Context) error {
			if after := returnKey(t, n); after == before || strings.Contains(after, "next") {
				return errors.New("the return key is the old one")
			}
			return nil
		})
		enrolled(c, 3)
	}
	c.NoFaults()
	c.Converged()
	if got := len(events(t, c.Nodes[0], "UnsealByPeers")); got != 4 {
		t.Errorf("the log has %d records of an unsealing, want 4", got)
	}
	// Two parts are needed for each, and a third cannot be.
	parts := events(t, c.Nodes[0], "ReleaseUnsealPart")
	if len(parts) < 8 {
		t.Errorf("the log has %d records of parts, want at least 8", len(parts))
	}
	for _, n := range c.Nodes {
		if !slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(p, `"node":"`+n.ID+`"`) }) {
			t.Errorf("no record says that %s was helped: %v", n.ID, parts)
		}
	}
	if got := events(t, c.Nodes[0], "RefuseUnsealPart"); len(got) != 0 {
		t.Errorf("honest nodes were suspected: %v", got)
	}
	for _, n := range c.Nodes {
		if m := harness.Metric(t, n, "conclave_peer_unseal_suspects_total"); m != 0 {
			t.Errorf("%s counts %v suspects", n.ID, m)
		}
	}
}

// TestSetting: an operator enables peer-assisted unsealing at level 2 only, and with no more
// agreements than there are others. Without it, nobody helps.
func TestSetting(t *testing.T) {
	t.Parallel()
	c := harness.NewCluster(t, 3, harness.Options{})
	admin := harness.Administration(c.Nodes[1])
	set := func(agreements uint32) (*kmspb.SetPeerUnsealResponse, error) {
		return admin.SetPeerUnseal(t.Context(), &kmspb.SetPeerUnsealRequest{Agreements: agreements})
	}
	if _, err := set(1); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "it needs feature level 2") {
		t.Errorf("at level 1: %v", err)
	}
	enable(t, c, 1)
	if _, err := set(3); status.Code(err) != codes.InvalidArgument {
		t.Errorf("more agreements than there are others: %v", err)
	}
	if res, err := set(1); err != nil || res.GetChanged() {
		t.Errorf("the same again: %v, %v", res, err)
	}
	if res, err := set(0); err != nil || !res.GetChanged() || len(res.GetState().GetNodes()) != 0 {
		t.Errorf("disabling: %v, %v", res, err)
	}
	c.Nodes[0].Stop()
	c.Nodes[0].Start()
	c.Nodes[0].Unseal()
	c.WaitReady()
	if got := events(t, c.Nodes[0], "ReleaseUnsealPart"); len(got) != 0 {
		t.Errorf("somebody helped: %v", got)
	}
	if got := len(events(t, c.Nodes[0], "SetPeerUnseal")); got < 3 {
		t.Errorf("the log has %d records of the setting", got)
	}
}

// TestTooFewPeers: a node waits until enough others are unsealed. If all start at once, they
// wait for the custodians, and the first ones that are unsealed help the last.
func TestTooFewPeers(t *testing.T) {
	t.Parallel()
	c := enabled(t, 3, 2, harness.Options{})
	for _, n := range c.Nodes {
		n.Stop()
	}
	for _, n := range c.Nodes {
		n.Start()
	}
	waits(c, c.Nodes[0], "0 of 2 peers agreed; b: it is sealed itself")
	c.Nodes[1].Unseal()
	c.WaitReady(c.Nodes[1])
	waits(c, c.Nodes[0], "1 of 2 peers agreed; c: it is sealed itself")
	c.Nodes[2].Unseal()
	c.WaitReady()
	c.NoFaults()
}

// TestSealedByOperator: a node that an operator has sealed stays sealed, also when it
// restarts, until the custodians unseal it.
func TestSealedByOperator(t *testing.T) {
	t.Parallel()
	c := enabled(t, 3, 1, harness.Options{})
	n := c.Nodes[2]
	if _, err := n.Operator().Seal(t.Context(), &kmspb.SealRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(n.Data, "return.key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the return key of a sealed node: %v", err)
	}
	c.Eventually("waiting for the state to lose the return key", func(ctx context.Context) error {
		res, err := harness.Administration(c.Nodes[0]).GetPeerUnseal(ctx, &kmspb.GetPeerUnsealRequest{})
		if err == nil && slices.Contains(res.GetState().GetNodes(), n.ID) {
			err = errors.New("it has it")
		}
		return err
	})
	n.Stop()
	n.Start()
	waits(c, n, "the custodians have to unseal this node once")
	n.Unseal()
	c.WaitReady()
	enrolled(c, 3)
}

// copyDir copies a directory.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(to, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}
