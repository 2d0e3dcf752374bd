package cluster

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// stealLeadership makes a sealed node lead, and not step aside, as a thief's would.
func stealLeadership(t *testing.T, c *testCluster) *testNode {
	t.Helper()
	l := c.leader()
	l.authority.sealed.Store(true)
	return l
}

// setFit makes the followers fit to lead, or not.
func (c *testCluster) setFit(fit bool) {
	c.t.Helper()
	for _, n := range c.followers() {
		n.SetCanLead(func() bool { return fit })
	}
}

// Under a leader that cannot prove to be unsealed nothing is submitted, and nothing
// that it puts into the log itself has an effect. Nobody else could lead here.
func TestSealedLeaderHasNoAuthority(t *testing.T) {
	t.Parallel()
	// A busy machine is not to elect somebody else meanwhile.
	c := startCluster(t, 3, func(_ string, cfg *Config) {
		cfg.Timeouts.Heartbeat, cfg.Timeouts.Election, cfg.Timeouts.Lease = 1500*time.Millisecond, 1500*time.Millisecond, 750*time.Millisecond
		cfg.Timeouts.DiskYield = time.Minute
	})
	c.setFit(false)
	honest := c.followers()[0]
	thief := stealLeadership(t, c)
	before := honest.State()

	if _, err := honest.Propose(within(t, 3*time.Second), clustertest.Record()); err == nil {
		t.Error("an unsealed node submitted to a sealed leader")
	}
	ctx := within(t, 3*time.Second)
	if _, err := honest.ExecuteOnLeader(ctx, []byte("plaintext")); !errors.Is(err, ErrNoLeader) {
		t.Errorf("a request was forwarded to a sealed leader: %v", err)
	}
	// Its own entries: a batch in its name, in the name of the honest node, and a
	// registration that would fence that one.
	batch := func(node string, incarnation uint64) []byte {
		encoded, err := wire.EncodeRecord(clustertest.Record())
		if err != nil {
			t.Fatal(err)
		}
		b, err := wire.EncodeBatch(&fsmpb.Batch{Node: node, Incarnation: incarnation, Seq: 1 << 40}, [][]byte{encoded}, false)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, n := range []*testNode{thief, honest} {
		data, err := wire.EncodeBatches(&fsmpb.Entry{}, [][]byte{batch(n.id, n.Node.dir.file.Incarnation)})
		if err != nil {
			t.Fatal(err)
		}
		f := thief.raft.Load().Apply(data, time.Second)
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
		if r := f.Response().(*fsm.Result); r.Batches[0].Status != fsm.BatchUnsigned {
			t.Errorf("a batch in the name of %s: %+v", n.id, r.Batches[0])
		}
	}
	fence, err := wire.EncodeEntry(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{
		Node: honest.id, Incarnation: 1 << 62, Watermark: 1 << 62,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := thief.raft.Load().Apply(fence, time.Second).Error(); err != nil {
		t.Fatal(err)
	}

	thief.authority.sealed.Store(false)
	mustPropose(t, honest, clustertest.Record())
	c.converged()
	a, _ := before.Audit()
	b, _ := honest.State().Audit()
	if b.Size() != a.Size()+1 {
		t.Errorf("%d audit records after one proposal, were %d", b.Size(), a.Size())
	}
	c.noFaults()
}

// A sealed node brings nothing to the leader, and goes on when it is unsealed.
func TestSealedNodeSubmitsNothing(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	n := c.followers()[0]
	mustPropose(t, n, clustertest.Record())
	n.seal()
	if _, err := n.Propose(within(t, 5*time.Second), clustertest.Record()); !errors.Is(err, ErrSealed) || !errors.Is(err, ErrNoLeader) {
		t.Errorf("a sealed node proposed: %v", err)
	}
	n.authority.sealed.Store(false)
	mustPropose(t, n, clustertest.Record())
	c.noFaults()
}

// A node that submits what no unsealed node made is refused from then on, and named.
// One that claims nothing is only told that nobody leads.
func TestForgeriesAreCutOff(t *testing.T) {
	t.Parallel()
	var named = make(chan string, 8)
	c := startCluster(t, 3, func(_ string, cfg *Config) {
		cfg.OnForgery = func(node, _ string) { named <- node }
	})
	leader, thief := c.leader(), c.followers()[0]
	client, err := thief.peers.Client(leader.id)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := wire.EncodeRecord(clustertest.Record())
	if err != nil {
		t.Fatal(err)
	}
	batch, err := wire.EncodeBatch(&fsmpb.Batch{Node: thief.id, Incarnation: thief.Node.dir.file.Incarnation, Seq: 1 << 40}, [][]byte{encoded}, false)
	if err != nil {
		t.Fatal(err)
	}
	registration, err := wire.EncodeRegistration(&fsmpb.RegisterNode{Node: thief.id, Incarnation: 1 << 62})
	if err != nil {
		t.Fatal(err)
	}
	_, otherMAC, _ := thief.authority.PeerMAC([]byte("something else"))
	_, kindMAC, _ := thief.authority.PeerMAC(append([]byte(commit.MACRegistration), batch...))
	submit := func(s *commit.Submission) *clusterpb.SubmitResponse {
		t.Helper()
		answers := make(chan *clusterpb.SubmitResponse, 4)
		link, err := thief.peers.Link(t.Context(), leader.id, func(r *clusterpb.SubmitResponse) { answers <- r })
		if err != nil {
			t.Fatal(err)
		}
		defer link.Close()
		link.Send(s)
		select {
		case r := <-answers:
			return r
		case <-time.After(10 * time.Second):
			t.Fatal("no answer, and the stream does not end")
			return nil
		}
	}
	size := func() uint64 { f, _ := leader.State().Audit(); return f.Size() }
	before := size()
	for name, s := range map[string]*commit.Submission{
		"batch":        {Batch: &commit.Batch{Encoded: batch}},
		"registration": {Registration: registration},
	} {
		if r := submit(s); r.Status != clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER {
			t.Errorf("a %s without a MAC: %v", name, r)
		}
	}
	for name, s := range map[string]*commit.Submission{
		"a wrong MAC":       {Batch: &commit.Batch{Encoded: batch}, Generation: 1, MAC: make([]byte, 32)},
		"another's MAC":     {Batch: &commit.Batch{Encoded: batch}, Generation: 1, MAC: otherMAC},
		"of another kind":   {Batch: &commit.Batch{Encoded: batch}, Generation: 1, MAC: kindMAC},
		"of a registration": {Registration: registration, Generation: 1, MAC: make([]byte, 32)},
	} {
		leader.cutOffs.Clear()
		if r := submit(s); r != commit.LinkBroke {
			t.Errorf("%s: answered with %v", name, r)
		}
		select {
		case got := <-named:
			if got != thief.id {
				t.Errorf("%s: %s was named", name, got)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: nobody was named", name)
		}
		if _, err := client.Clock(within(t, 10*time.Second), &clusterpb.ClockRequest{}); err == nil {
			t.Errorf("%s: the node is served on", name)
		}
	}
	if got := testutil.ToFloat64(leader.metrics.forgeries.WithLabelValues(thief.id)); got != 4 {
		t.Errorf("the metric counts %v forgeries, want 4", got)
	}
	if size() != before {
		t.Error("a forged batch is in the audit log")
	}
	if n, _ := leader.State().Node(thief.id); n.GetIncarnation() == 1<<62 {
		t.Error("a forged registration was applied")
	}
	mustPropose(t, leader, clustertest.Record())
	c.noFaults()
}

// A proof is for one nonce, one prover, one verifier and one state.
func TestProofs(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	l, f := c.leader(), c.followers()[0]
	client, err := f.peers.Client(l.id)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(nonce []byte) *clusterpb.ClockResponse {
		t.Helper()
		r, err := client.Clock(within(t, 10*time.Second), &clusterpb.ClockRequest{Nonce: nonce})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	nonce := peerproof.NewNonce()
	r := ask(nonce)
	if !f.peers.Proven(r, nonce) {
		t.Fatal("an honest proof is refused")
	}
	if f.peers.Proven(r, peerproof.NewNonce()) {
		t.Error("a replayed proof is taken")
	}
	if c.followers()[1].peers.Proven(r, nonce) {
		t.Error("a proof for another node is taken")
	}
	for name, change := range map[string]func(*clusterpb.ClockResponse){
		"prover": func(r *clusterpb.ClockResponse) { r.Node = f.id },
		"index":  func(r *clusterpb.ClockResponse) { r.StateIndex++ },
		"hash":   func(r *clusterpb.ClockResponse) { r.StateHash[0] ^= 1 },
		"proof":  func(r *clusterpb.ClockResponse) { r.Proof[7] ^= 1 },
		"none":   func(r *clusterpb.ClockResponse) { r.Proof = nil },
	} {
		r := ask(nonce)
		change(r)
		if f.peers.Proven(r, nonce) {
			t.Errorf("%s: a changed proof is taken", name)
		}
	}
	if r := ask([]byte("short")); r.Proof != nil {
		t.Error("a short nonce is signed")
	}
	l.authority.sealed.Store(true)
	if r := ask(nonce); r.Proof != nil {
		t.Error("a sealed node proves itself unsealed")
	}
}
