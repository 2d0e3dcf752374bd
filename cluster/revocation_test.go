package cluster

import (
	"errors"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/pki"
)

// TestRevokedNode: a node whose certificate is revoked is cut off, in both
// directions, and so are the connections that it has; one with another certificate
// comes back.
func TestRevokedNode(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	l := c.leader()
	mustPropose(t, l, clustertest.Record())
	stolen := c.leader() // the one that leads is connected to all
	revoked, err := c.ca.Revoke(nil, time.Now(), pki.Revocation{Serial: stolen.cfg.Identity.Serial(), At: time.Now(), Reason: "unspecified"})
	if err != nil {
		t.Fatal(err)
	}
	list := revoked.DER()
	var honest []*testNode
	for _, n := range c.up() {
		if n != stolen {
			honest = append(honest, n)
		}
	}
	for _, n := range honest {
		if _, closed, err := n.cfg.Identity.InstallCRL(list); err != nil || closed == 0 {
			t.Fatalf("%s closed %d connections, %v", n.id, closed, err)
		}
	}
	open := func(n *testNode) (with int) {
		_, with = n.port.Open(stolen.id)
		return with + n.peers.Open(stolen.id)
	}
	clustertest.Eventually(t, time.Minute, "no connection with the revoked node", func() bool { return open(honest[0])+open(honest[1]) == 0 })
	clustertest.Eventually(t, time.Minute, "another leader", func() bool { return honest[0].IsLeader() || honest[1].IsLeader() })
	for _, n := range honest {
		if _, err := stolen.peers.Connect(within(t, 10*time.Second), n.id, pki.ALPNRaft); err == nil {
			// In TLS 1.3 the client learns of a refusal later than it is done itself.
			if open(n) != 0 {
				t.Errorf("the revoked node reached %s", n.id)
			}
		}
		if _, err := n.peers.Connect(within(t, 10*time.Second), stolen.id, pki.ALPNRaft); !errors.Is(err, pki.ErrRevoked) {
			t.Errorf("%s connects to the revoked node: %v", n.id, err)
		}
	}
	clustertest.Eventually(t, time.Minute, "a leader that takes records", func() bool {
		for _, n := range honest {
			if n.IsLeader() && n.proposer.Leader() == n.id {
				_, err := n.Propose(within(t, 10*time.Second), clustertest.Record())
				return err == nil
			}
		}
		return false
	})
	if open(honest[0])+open(honest[1]) != 0 {
		t.Error("the revoked node has connections again")
	}
	c.kill(stolen.id)
	c.start(stolen.id) // with a certificate that is issued anew
	c.converged()
	for _, n := range honest {
		if held := n.cfg.Identity.Watched(); held == 0 || held > 40 {
			t.Errorf("%s has an eye on %d connections", n.id, held)
		}
	}
}
