// Package voters asks the other voters of the cluster what they are: how their clocks,
// disks and states are, whether they are fit to lead, and for proof that they are unsealed.
// A leader asks for what it decides; the others ask because of whom they follow.
//
// What may be relied on:
//
//   - Each answer is taken over into the standings, with its proof if that is good; so is
//     that there was none.
//   - Nobody is asked for longer than the caller said, or than the node runs.
//   - A node whose state most others contradict, as far as they can tell, fences itself.
package voters

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/clockguard"
	"github.com/conclavekms/conclave/cluster/internal/lifecycle"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/cluster/internal/peers"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/wire"
)

// Node is the node that asks, as far as it has to do with asking. Its methods may be called
// from any goroutine.
type Node interface {
	// Voters are the nodes that vote, this one included.
	Voters() []string
	// Leader is the node that leads, as far as this one knows; "" for none.
	Leader() string
	// LastIndex is the newest index in this node's log; 0 before Raft has started.
	LastIndex() uint64
	// CanLead reports whether this node is fit to lead, but for being unsealed.
	CanLead() bool
	// NoGrowth is what this node, as leader, tells the others.
	NoGrowth() bool
	// WaitApplied returns once the state is of an index, and StateAt is the one of an
	// index; nil if it is not kept.
	WaitApplied(ctx context.Context, index uint64) error
	StateAt(index uint64) *fsm.State
	// Initialised reports whether the cluster is, and Unsealed whether this node is.
	Initialised() bool
	Unsealed() bool
}

// Peers are the other nodes.
type Peers interface {
	// Client is the service of a node; an error is of this node itself.
	Client(node string) (clusterpb.PeerClient, error)
	// Proven checks a node's proof that it is unsealed.
	Proven(r *clusterpb.ClockResponse, nonce []byte) bool
}

// Config describes Voters. Everything is required.
type Config struct {
	// ID is this node.
	ID string
	// Heartbeat is the heartbeat timeout, in which standings count.
	Heartbeat time.Duration
	// Clock is the wall clock that others' are compared with, and Guard what follows.
	Clock     clockguard.Clock
	Guard     *clockguard.Guard
	Standings *standing.Standings
	Peers     Peers
	Life      *lifecycle.Life
	Log       *slog.Logger
}

// Voters are the other voters of the cluster, as a node asks them.
type Voters struct {
	cfg      Config
	node     Node
	contacts contacts
}

// New makes Voters that have not been asked.
func New(cfg Config, n Node) *Voters { return &Voters{cfg: cfg, node: n} }

// ReadClocks reads the clocks of the other voters, for as long as wait, and
// whatever else they say of their fitness to lead.
func (v *Voters) ReadClocks(ctx context.Context, wait time.Duration) map[string]*clusterpb.ClockResponse {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	start := time.Now()
	infos, rs, voters := v.ask(ctx)
	was := v.cfg.Guard.Disagrees()
	if _, differ := v.cfg.Guard.Take(rs, start, voters); differ && !was {
		v.cfg.Log.Error("this leader's clock differs from the majority's: cluster time stands still here")
	}
	return infos
}

// ask asks the other voters, until ctx ends, for their clocks, their fitness
// to lead and proof that they are unsealed. What they are follows from the newest
// answers; see standings.
func (v *Voters) ask(ctx context.Context) (infos map[string]*clusterpb.ClockResponse, rs []clockguard.Reading, voters int) {
	ids := v.node.Voters()
	type answer struct {
		node   string
		r      *clusterpb.ClockResponse
		offset time.Duration
	}
	answers := make(chan answer, len(ids))
	asked := 0
	for _, id := range ids {
		client, err := v.cfg.Peers.Client(id)
		if err != nil { // this node itself
			continue
		}
		asked++
		v.cfg.Life.Go(func() {
			r, offset := v.askOne(ctx, id, client)
			answers <- answer{id, r, offset}
			if r != nil {
				v.CompareStates(v.cfg.Life.Context(), id, r.StateIndex, r.StateHash)
			}
		})
	}
	infos = make(map[string]*clusterpb.ClockResponse)
	for range asked {
		a := <-answers // each comes, with ctx at the latest
		if a.r != nil {
			infos[a.node] = a.r
			v.contacts.heard(a.node)
			rs = append(rs, clockguard.Reading{Node: a.node, Offset: a.offset})
		}
	}
	return infos, rs, len(ids)
}

// askOne asks one of them, and says how far its clock is from this node's; nil
// without an answer.
func (v *Voters) askOne(ctx context.Context, id string, client clusterpb.PeerClient, opts ...grpc.CallOption) (*clusterpb.ClockResponse, time.Duration) {
	nonce := peerproof.NewNonce()
	before := v.cfg.Clock.Now()
	began := time.Now()
	r, err := client.Clock(ctx, &clusterpb.ClockRequest{Group: wire.Group, NoGrowth: v.node.NoGrowth(), Nonce: nonce}, opts...)
	if err != nil || r.Node != id {
		v.cfg.Standings.Silent(id)
		return nil, 0
	}
	// The answer was made somewhere in the round trip: take its middle.
	mid := before.Add(time.Since(began) / 2)
	v.cfg.Standings.Take(id, r, v.cfg.Peers.Proven(r, nonce), time.Now())
	return r, time.Unix(0, r.Wall).Sub(mid)
}

// AskForProof asks a node in whose name somebody came without proof. The node may have
// been sealed, or started again, since it was asked last; or it is somebody else who
// came. It is not asked for each who does.
func (v *Voters) AskForProof(node string) {
	v.cfg.Standings.Ask(node, func() {
		began := time.Now()
		r := v.AskAgain(node, peers.ProofWait, grpc.WaitForReady(true))
		// Should it not answer, it is what it was known to be.
		if r != nil && !v.cfg.Standings.ProvenSince(node, began, time.Now()) {
			v.cfg.Standings.Forget(node)
		}
	})
}

// AskAgain asks one voter now, for as long as wait.
func (v *Voters) AskAgain(id string, wait time.Duration, opts ...grpc.CallOption) *clusterpb.ClockResponse {
	client, err := v.cfg.Peers.Client(id)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(v.cfg.Life.Context(), wait)
	defer cancel()
	r, _ := v.askOne(ctx, id, client, opts...)
	return r
}

// Answering is which of these nodes have a disk that answers within wait.
func (v *Voters) Answering(ctx context.Context, infos map[string]*clusterpb.ClockResponse, wait time.Duration) map[string]*clusterpb.ClockResponse {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var mu sync.Mutex
	var asked sync.WaitGroup
	good := make(map[string]*clusterpb.ClockResponse)
	for id, info := range infos {
		client, err := v.cfg.Peers.Client(id)
		if err != nil {
			continue
		}
		asked.Go(func() {
			if _, err := client.Probe(ctx, &clusterpb.ProbeRequest{Group: wire.Group}); err == nil {
				mu.Lock()
				defer mu.Unlock()
				good[id] = info
			}
		})
	}
	asked.Wait() // each returns, with ctx at the latest
	return good
}

// Self is this node's part in its judgement of others.
func (v *Voters) Self() standing.Self {
	return standing.Self{Node: v.cfg.ID, Fit: v.node.Unsealed() && v.node.CanLead(), Last: v.node.LastIndex(), Voters: v.node.Voters()}
}

// Watch asks the other voters while this node does not lead; a leader asks
// them for its own needs more often than that.
func (v *Voters) Watch() {
	every := standing.Every * v.cfg.Heartbeat
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		v.look(every)
		select {
		case <-tick.C:
		case <-v.cfg.Life.Context().Done():
			return
		}
	}
}

// look asks the others once, for as long as wait, and judges the leader.
func (v *Voters) look(wait time.Duration) {
	if v.cfg.Life.Fenced() != nil {
		return
	}
	leader := v.node.Leader()
	if leader != v.cfg.ID {
		ctx, cancel := context.WithTimeout(v.cfg.Life.Context(), wait)
		defer cancel()
		v.ask(ctx)
	}
	if v.node.Initialised() && v.cfg.Standings.Judge(leader, v.Self(), time.Now()) {
		v.cfg.Log.Warn("the leader does not prove that it is unsealed, and another node that is could lead: it is not followed any more. "+
			"If it does not step aside, its identity may be stolen", "leader", leader)
	}
}

// CompareStates compares this node's state with another's, which says to have that
// hash at that index. The other one may be ahead by a moment.
func (v *Voters) CompareStates(ctx context.Context, node string, index uint64, hash []byte) {
	if !v.node.Initialised() || index == 0 || len(hash) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, v.cfg.Heartbeat)
	defer cancel()
	if v.node.WaitApplied(ctx, index) != nil {
		return
	}
	s := v.node.StateAt(index)
	if s == nil {
		return
	}
	own := s.Hash()
	same := bytes.Equal(own[:], hash)
	if v.cfg.Standings.Compare(node, index, same, time.Now()) {
		if same {
			v.cfg.Log.Info("another node's state is this node's again", "node", node, "index", index)
		} else {
			v.cfg.Log.Error("another node's state differs from this node's", "node", node, "index", index)
		}
	}
	if !same && v.cfg.Standings.Outvoted(len(v.node.Voters()), v.node.Unsealed(), time.Now()) {
		v.cfg.Life.Fence(fmt.Errorf("%w: at Raft index %d, like most nodes that can tell", fsm.ErrDiverged, index))
	}
}

// Heard is how long ago a node last answered; 0 if it never did.
func (v *Voters) Heard(node string) time.Duration { return v.contacts.since(node) }

// contacts remembers when other nodes last answered.
type contacts struct {
	mu sync.Mutex
	at map[string]time.Time
}

func (c *contacts) heard(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at == nil {
		c.at = make(map[string]time.Time)
	}
	c.at[node] = time.Now()
}

func (c *contacts) since(node string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.at[node]; ok {
		return time.Since(at)
	}
	return 0
}
