package faults

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// stepBar is what 99 of 100 calls must take at most while the members change, in each step.
// A call that is not answered for good counts as one that takes for ever.
const stepBar = time.Second

// changing is a cluster whose members change, and its clients.
type changing struct {
	*harness.Cluster
	t *testing.T
	h *harness.History
	w *harness.Workload
	// serving are the nodes that a load balancer would send requests to.
	serving atomic.Pointer[[]*harness.Node]
}

// TestGrowReplaceShrink grows a cluster from three to five nodes, replaces every one of them
// and shrinks it to three again, under load and without gossip. No node counts before it is
// ready, and none that was removed is let in.
func TestGrowReplaceShrink(t *testing.T) {
	seed := harness.NewSeed(t)
	c := newChanging(t)
	c.load(seed)
	next := 'd'
	name := func() string {
		next++
		return string(next - 1)
	}
	for range 2 {
		c.grow(name())
	}
	for _, old := range slices.Clone(*c.serving.Load()) {
		c.grow(name())
		c.shrink(old)
	}
	for _, old := range (*c.serving.Load())[:2] {
		c.shrink(old)
	}
	c.w.Finish()
	res := c.members()
	if res.GetVoters() != 3 || res.GetReadyVoters() != 3 || res.GetFailureTolerance() != 1 || len(res.GetMembers()) != 3 {
		t.Errorf("at the end: %v", res)
	}
	c.Eventually("the metrics of three voters", func(context.Context) error {
		if got := harness.Metric(t, c.Leader(), "conclave_failure_tolerance"); got != 1 {
			return fmt.Errorf("the tolerance is %v", got)
		}
		return nil
	})
	c.w.OpensEverywhere(rand.New(rand.NewPCG(seed, 0)))
	harness.Witnessed(t, c.Cluster, c.h)
}

// TestReplicas: four nodes without a vote serve beside three voters, and may all fail at once.
// What they add on one machine is measured, and nothing is promised of it: all nodes share its
// processors and its disk.
func TestReplicas(t *testing.T) {
	seed := harness.NewSeed(t)
	c := newChanging(t)
	c.load(seed)
	during := 2 * time.Second
	if harness.Full() {
		during = 10 * time.Second
	}
	measure := func(what string) {
		from, before := c.h.Now(), c.w.Answers.Load()
		time.Sleep(during) // the clients' time
		t.Logf("%s: %.0f answers a second", what, float64(c.w.Answers.Load()-before)/(c.h.Now()-from).Seconds())
	}
	measure("three voters")
	for _, id := range []string{"r1", "r2", "r3", "r4"} {
		nd, addr := c.Join(id)
		c.change("adding "+id, func(ctx context.Context, _ *harness.Node, on kmspb.ClusterClient) error {
			_, err := on.AddNode(ctx, &kmspb.AddNodeRequest{NodeId: id, PeerAddress: addr})
			return err
		})
		nd.Unseal()
		c.WaitReady(nd)
		now := append(slices.Clone(*c.serving.Load()), nd)
		c.serving.Store(&now)
	}
	measure("three voters and four replicas")
	voters := slices.Clone((*c.serving.Load())[:3])
	replicas := (*c.serving.Load())[3:]
	c.serving.Store(&voters)
	c.w.AwaitAnswers(50) // what they were asked before is answered
	c.step("the end of all replicas", func() {
		for _, nd := range replicas {
			nd.Kill()
		}
	})
	if res := c.members(); res.GetVoters() != 3 || res.GetReadyVoters() != 3 || res.GetFailureTolerance() != 1 || len(res.GetMembers()) != 7 {
		t.Errorf("without the replicas: %v", res)
	}
	c.w.Finish()
	c.w.OpensEverywhere(rand.New(rand.NewPCG(seed, 0)))
	harness.Witnessed(t, c.Cluster, c.h)
}

// newChanging starts a cluster of three, whose members can change.
func newChanging(t *testing.T) *changing {
	t.Helper()
	c := &changing{Cluster: harness.NewCluster(t, 3, harness.Options{Processes: true}), t: t, h: harness.NewHistory()}
	first := slices.Clone(c.Nodes)
	c.serving.Store(&first)
	c.Finalize()
	return c
}

// load starts the clients.
func (c *changing) load(seed uint64) {
	c.w = harness.StartWorkloadOn(c.t, c.Cluster, c.h, seed, 8, func() []*harness.Node { return *c.serving.Load() })
	c.w.AwaitAnswers(100)
}

// members is what the leader says of the members.
func (c *changing) members() *kmspb.MembersResponse {
	c.t.Helper()
	var res *kmspb.MembersResponse
	c.Eventually("asking for the members", func(ctx context.Context) (err error) {
		res, err = harness.Administration(c.Leader()).Members(ctx, &kmspb.MembersRequest{})
		return err
	})
	return res
}

// step measures what clients see while the members change.
func (c *changing) step(what string, change func()) {
	c.t.Helper()
	from := c.h.Now()
	change()
	c.w.AwaitAnswers(100)
	to := c.h.Now()
	var took []time.Duration
	open := 0
	for _, o := range c.h.Ops() {
		if o.Returned < from || o.Returned > to {
			continue
		}
		if d := o.Returned - o.Invoked; o.Definite() {
			took = append(took, d)
		} else {
			took = append(took, max(d, time.Hour))
			open++
		}
	}
	slices.Sort(took)
	p99 := took[(len(took)*99+99)/100-1]
	c.t.Logf("%s in %v: %d calls, median %v, p99 %v, slowest answer %v, %d without a definite answer", what, (to - from).Round(time.Millisecond),
		len(took), took[len(took)/2].Round(time.Millisecond), p99.Round(time.Millisecond), took[len(took)-open-1].Round(time.Millisecond), open)
	if p99 > stepBar {
		c.t.Errorf("%s: the p99 is %v; the bar is %v", what, p99, stepBar)
	}
}

// change makes a change on whichever node leads, until it is not refused for the moment.
func (c *changing) change(what string, f func(ctx context.Context, l *harness.Node, on kmspb.ClusterClient) error) {
	c.t.Helper()
	c.Eventually(what, func(ctx context.Context) error {
		l := c.Leader()
		return f(ctx, l, harness.Administration(l))
	})
}

// grow adds a node, which has no vote before it is ready.
func (c *changing) grow(id string) {
	c.t.Helper()
	before := c.members().GetVoters()
	c.step("adding "+id, func() {
		nd, addr := c.Join(id)
		c.change("adding "+id, func(ctx context.Context, _ *harness.Node, on kmspb.ClusterClient) error {
			_, err := on.AddNode(ctx, &kmspb.AddNodeRequest{NodeId: id, PeerAddress: addr})
			return err
		})
		promote := func(ctx context.Context, _ *harness.Node, on kmspb.ClusterClient) error {
			_, err := on.PromoteNode(ctx, &kmspb.PromoteNodeRequest{NodeId: id})
			return err
		}
		if err := promote(c.t.Context(), nil, harness.Administration(c.Leader())); err == nil || !strings.Contains(err.Error(), "not ready") {
			c.t.Errorf("%s is sealed, and is to get a vote: %v", id, err)
		}
		if res := c.members(); res.GetVoters() != before {
			c.t.Errorf("%s is sealed, and there are %d voters instead of %d", id, res.GetVoters(), before)
		}
		nd.Unseal()
		c.change("promoting "+id, promote)
		c.WaitReady(nd)
		now := append(slices.Clone(*c.serving.Load()), nd)
		c.serving.Store(&now)
	})
	if res := c.members(); res.GetVoters() != before+1 {
		c.t.Errorf("with %s there are %d voters, and there were %d", id, res.GetVoters(), before)
	}
}

// shrink removes a node, which ends, and is let in nowhere with its certificate.
func (c *changing) shrink(old *harness.Node) {
	c.t.Helper()
	c.step("removing "+old.ID, func() {
		rest := slices.DeleteFunc(slices.Clone(*c.serving.Load()), func(n *harness.Node) bool { return n == old })
		c.serving.Store(&rest)
		c.w.AwaitAnswers(50) // what it was asked before is answered
		c.change("removing "+old.ID, func(ctx context.Context, l *harness.Node, on kmspb.ClusterClient) error {
			if l == old {
				_, err := on.TransferLeadership(ctx, &kmspb.TransferLeadershipRequest{})
				return cmp.Or(err, errors.New("the leadership had to be moved first"))
			}
			_, err := on.RemoveNode(ctx, &kmspb.RemoveNodeRequest{NodeId: old.ID})
			return err
		})
	})
	c.Eventually(old.ID+" to end", func(context.Context) error {
		if err := old.Fault(); err == nil || !strings.Contains(err.Error(), "this node was removed from the cluster") {
			return fmt.Errorf("it does not say why: %v", err)
		}
		return nil
	})
	old.Kill()
	for _, nd := range *c.serving.Load() {
		for _, alpn := range []string{pki.ALPNRaft, pki.ALPNPeer, pki.ALPNLineage} {
			c.Eventually(nd.ID+" to refuse "+old.ID, func(ctx context.Context) error { return c.refused(ctx, old, nd, alpn) })
		}
	}
}

// refused returns an error if a node lets another one in. In TLS 1.3 the client's handshake is
// over before the server has refused it.
func (c *changing) refused(ctx context.Context, who, where *harness.Node, alpn string) error {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", where.Peer)
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	conn := tls.Client(raw, c.Identity(who).Client(where.ID, alpn))
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	if err == nil || !strings.Contains(err.Error(), "remote error: tls") {
		return fmt.Errorf("%s has %s: %v", who.ID, alpn, err)
	}
	return nil
}
