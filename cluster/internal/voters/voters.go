// Package voters asks the other voters of the cluster about their clocks, disks and states,
// whether they are fit to lead, and for proof that they are unsealed. A leader needs the
// answers for its decisions, the other nodes to decide whom to follow.
//
// It guarantees:
//
//   - Each answer is recorded in the standings, with its proof if that is valid. A missing
//     answer is recorded too.
//   - A question waits no longer than the caller asked for, and ends when the node stops.
//   - A node whose state is contradicted by most of the nodes that can tell fences itself.
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

// Node is the node that asks the questions. Its methods may be called from any goroutine.
type Node interface {
	// Voters returns the nodes that vote, this one included.
	Voters() []string
	// Leader returns the leader as far as this node knows, or "".
	Leader() string
	// LastIndex returns the newest index in this node's log; 0 before Raft has started.
	LastIndex() uint64
	// CanLead reports whether this node is fit to lead, apart from being unsealed.
	CanLead() bool
	// NoGrowth reports whether this node, as leader, refuses growth.
	NoGrowth() bool
	// WaitApplied returns once the index has been applied. StateAt returns the state of an
	// index, or nil if it is not kept.
	WaitApplied(ctx context.Context, index uint64) error
	StateAt(index uint64) *fsm.State
	// Initialised reports whether the cluster is initialised, and Unsealed whether this
	// node is unsealed.
	Initialised() bool
	Unsealed() bool
}

// Peers gives access to the other nodes.
type Peers interface {
	// Client returns the client of a node's service. It returns an error for this node
	// itself.
	Client(node string) (clusterpb.PeerClient, error)
	// Proven reports whether an answer has a valid proof that its sender is unsealed.
	Proven(r *clusterpb.ClockResponse, nonce []byte) bool
}

// Config describes Voters. Everything is required.
type Config struct {
	// ID is the id of this node.
	ID string
	// Heartbeat is the heartbeat timeout, the unit of time of the standings.
	Heartbeat time.Duration
	// Clock is the wall clock that the others' clocks are compared with. Guard gets the
	// result.
	Clock     clockguard.Clock
	Guard     *clockguard.Guard
	Standings *standing.Standings
	Peers     Peers
	Life      *lifecycle.Life
	Log       *slog.Logger
}

// Voters asks the other voters of the cluster on behalf of one node.
type Voters struct {
	cfg      Config
	node     Node
	contacts contacts
}

// New returns a Voters that has not asked yet.
func New(cfg Config, n Node) *Voters { return &Voters{cfg: cfg, node: n} }

// ReadClocks asks the other voters for their clocks and their fitness to lead, and waits
// for answers for at most wait.
func (v *Voters) ReadClocks(ctx context.Context, wait time.Duration) map[string]*clusterpb.ClockResponse {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	start := time.Now()
	infos, rs, voters := v.ask(ctx)
	was := v.cfg.Guard.Disagrees()
	if _, differ := v.cfg.Guard.Take(rs, start, voters); differ && !was {
		v.cfg.Log.Error("this leader's clock differs from the majority's: cluster time stands still")
	}
	return infos
}

// ask asks the other voters, until ctx ends, for their clocks, their fitness to lead and
// proof that they are unsealed. It records the answers in the standings.
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
		a := <-answers // every goroutine answers, when ctx ends at the latest
		if a.r != nil {
			infos[a.node] = a.r
			v.contacts.heard(a.node)
			rs = append(rs, clockguard.Reading{Node: a.node, Offset: a.offset})
		}
	}
	return infos, rs, len(ids)
}

// askOne asks one voter and returns the offset of its clock from this node's. The answer is
// nil if there is none.
func (v *Voters) askOne(ctx context.Context, id string, client clusterpb.PeerClient, opts ...grpc.CallOption) (*clusterpb.ClockResponse, time.Duration) {
	nonce := peerproof.NewNonce()
	before := v.cfg.Clock.Now()
	began := time.Now()
	r, err := client.Clock(ctx, &clusterpb.ClockRequest{Group: wire.Group, NoGrowth: v.node.NoGrowth(), Nonce: nonce}, opts...)
	if err != nil || r.Node != id {
		v.cfg.Standings.Silent(id)
		return nil, 0
	}
	// The other node read its clock somewhere in the round trip, so assume the middle.
	mid := before.Add(time.Since(began) / 2)
	v.cfg.Standings.Take(id, r, v.cfg.Peers.Proven(r, nonce), time.Now())
	return r, time.Unix(0, r.Wall).Sub(mid)
}

// AskMember asks a member, which need not vote. The answer has no effect on the standings.
func (v *Voters) AskMember(ctx context.Context, node string) (r *clusterpb.ClockResponse, proven bool) {
	client, err := v.cfg.Peers.Client(node)
	if err != nil {
		return nil, false
	}
	nonce := peerproof.NewNonce()
	r, err = client.Clock(ctx, &clusterpb.ClockRequest{Group: wire.Group, NoGrowth: v.node.NoGrowth(), Nonce: nonce}, grpc.WaitForReady(true))
	if err != nil || r.Node != node {
		return nil, false
	}
	return r, v.cfg.Peers.Proven(r, nonce)
}

// AskForProof asks a node for proof after a connection without proof claimed to be from it.
// The node may have been sealed or restarted since it was last asked, or the connection is
// from an impostor. Several such claims in a row share one question.
func (v *Voters) AskForProof(node string) {
	v.cfg.Standings.Ask(node, func() {
		began := time.Now()
		r := v.AskAgain(node, peers.ProofWait, grpc.WaitForReady(true))
		// Without an answer the node keeps the standing that it had.
		if r != nil && !v.cfg.Standings.ProvenSince(node, began, time.Now()) {
			v.cfg.Standings.Forget(node)
		}
	})
}

// AskAgain asks one voter now and waits for at most wait.
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

// Answering returns those of the nodes whose disks answer within wait.
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
	asked.Wait() // each returns, when ctx ends at the latest
	return good
}

// Self returns what this node contributes to its judgement of others.
func (v *Voters) Self() standing.Self {
	return standing.Self{Node: v.cfg.ID, Fit: v.node.Unsealed() && v.node.CanLead(), Last: v.node.LastIndex(), Voters: v.node.Voters()}
}

// Watch asks the other voters regularly while this node does not lead. A leader asks them
// more often for its own needs.
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

// look asks the others once, for at most wait, and judges the leader.
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
		v.cfg.Log.Warn("the leader has not proved that it is unsealed, although an unsealed node could lead: this node no longer follows it. "+
			"If it does not step aside, its identity may be stolen", "leader", leader)
	}
}

// CompareStates compares this node's state with that of another node, which reports to have
// the given hash at the given index. The other node may be slightly ahead.
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
			v.cfg.Log.Info("another node's state matches this node's again", "node", node, "index", index)
		} else {
			v.cfg.Log.Error("another node's state differs from this node's", "node", node, "index", index)
		}
	}
	if !same && v.cfg.Standings.Outvoted(len(v.node.Voters()), v.node.Unsealed(), time.Now()) {
		v.cfg.Life.Fence(fmt.Errorf("%w: at Raft index %d, like most nodes that can tell", fsm.ErrDiverged, index))
	}
}

// Heard returns how long ago a node last answered; 0 if it never did.
func (v *Voters) Heard(node string) time.Duration { return v.contacts.since(node) }

// contacts records when other nodes last answered.
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
