package integration

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/harness"
)

// TestRestartSealed ends all nodes and starts them again with nobody present.
// They find a leader among themselves but answer nothing about keys, until each
// is unsealed by itself.
func TestRestartSealed(t *testing.T) {
	c := harness.NewCluster(t, 3, harness.Options{})
	h := harness.NewHistory()
	ctx := t.Context()
	key, o := h.At(c.Nodes[0]).CreateKey(ctx, "kept")
	if o.Code != "" {
		t.Fatal(o)
	}
	blob, _, o := h.At(c.Nodes[1]).Encrypt(ctx, key, []byte("kept"))
	if o.Code != "" {
		t.Fatal(o)
	}
	// At once, so that no one is left to hand anything over.
	for _, nd := range c.Nodes {
		nd.Kill()
	}
	for _, nd := range c.Nodes {
		nd.Start()
	}
	c.Leader()
	before := audited(t, c)
	refused := 0
	asks := func(nd *harness.Node) []harness.Op {
		at := h.At(nd)
		_, described := at.DescribeKey(ctx, key)
		_, _, encrypted := at.Encrypt(ctx, key, []byte("x"))
		_, decrypted := at.Decrypt(ctx, blob)
		_, made := at.CreateKey(ctx, "while sealed")
		_, aws := at.AWSEncrypt(ctx, key, []byte("x"))
		return []harness.Op{described, encrypted, decrypted, made, at.DisableKey(ctx, key), at.PutKeyPolicy(ctx, key, harness.DenyUse), aws}
	}
	mustRefuse := func(nd *harness.Node) {
		t.Helper()
		for _, o := range asks(nd) {
			if o.Code != "ServiceUnavailable" {
				t.Errorf("a sealed node answered: %v", o)
			}
			refused++
		}
	}
	for _, nd := range c.Nodes {
		mustRefuse(nd)
	}
	if after := audited(t, c); after != before {
		t.Errorf("sealed nodes recorded something: %d records, then %d", before, after)
	}
	for i, nd := range c.Nodes {
		nd.Unseal()
		c.WaitReady(nd)
		for j, other := range c.Nodes {
			if j <= i {
				harness.Opens(t, h.At(other), blob, []byte("kept"))
			} else {
				mustRefuse(other)
			}
		}
		// A sealed leader makes room for a node that can serve.
		c.Eventually("waiting for an unsealed leader", func(ctx context.Context) error {
			s, err := c.Leader().Status(ctx)
			if err == nil && s.GetSeal().GetSealed() {
				err = fmt.Errorf("%s leads, and is sealed", s.GetNodeId())
			}
			return err
		})
	}
	t.Logf("%d requests to sealed nodes were refused", refused)
	harness.Witnessed(t, c, h)
}

// audited is the number of audit records, once it stands still.
func audited(t *testing.T, c *harness.Cluster) uint64 {
	t.Helper()
	var size uint64
	c.Eventually("waiting for the audit log to stand still", func(ctx context.Context) error {
		read := func() (sizes [3]uint64, err error) {
			for i, nd := range c.Nodes {
				s, err := nd.Status(ctx)
				if err != nil {
					return sizes, err
				}
				sizes[i] = s.GetAudit().GetSize()
			}
			return sizes, nil
		}
		first, err := read()
		if err != nil {
			return err
		}
		time.Sleep(300 * time.Millisecond)
		second, err := read()
		if err != nil {
			return err
		}
		if first != second || first[0] != first[1] || first[1] != first[2] || first[0] == 0 {
			return errors.New("it grows, or the nodes differ")
		}
		size = first[0]
		return nil
	})
	return size
}

// TestLateGreeting starts a node while one of the others cannot hear it. By the
// time that it can, the node has long taken part again, and more is known of it
// than it had on disk when it started. That must not be taken for a disk that went
// back in time.
func TestLateGreeting(t *testing.T) {
	network := harness.NewNetwork(1)
	network.Break = true
	c := harness.NewCluster(t, 3, harness.Options{Network: network})
	h := harness.NewHistory()
	late := c.Nodes[0]
	c.Converged()
	late.Kill()
	var deaf *harness.Node // not the leader, whom it needs
	leader := c.Leader()
	for _, nd := range c.Running() {
		if nd != leader {
			deaf = nd
		}
	}
	network.Set(late.ID, deaf.ID, harness.Rule{Hold: true})
	late.Start()
	late.Unseal()
	c.WaitReady(late)
	for range 20 {
		if _, o := h.At(late).CreateKey(t.Context(), ""); o.Code != "" {
			t.Fatal(o)
		}
	}
	c.Converged()
	network.Heal()
	// Several times as long as it waits between two tries.
	for until := time.Now().Add(5 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		if c.NoFaults(); t.Failed() {
			return
		}
	}
	harness.Witnessed(t, c, h)
}
