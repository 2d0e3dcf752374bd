// Package leadership runs what a node does while it leads. A leadership term lasts from the
// time that Raft reports this node as leader until it no longer does.
//
// It guarantees:
//
//   - Before the node's state contains everything that was committed earlier, nothing is
//     proposed in a term, no function of OnLeader runs and ReadIndex returns no index.
//   - A term begins only after everything in the previous one has ended.
//   - A leader that is not fit to lead, or whose clock differs from the majority's, hands
//     over as soon as a fitter node can take over.
//   - On an idle cluster the leader proposes entries that carry only the time.
package leadership

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/lifecycle"
	"github.com/conclavekms/conclave/cluster/internal/raftend"
)

const (
	// Tick is how often a leader checks the clocks and whether another node should lead.
	Tick = 500 * time.Millisecond
	// transferPause is the minimum time between two attempts to hand the leadership over.
	transferPause = 5 * time.Second
	// clockWait bounds how long a new leader waits for the clocks of the others.
	clockWait = 500 * time.Millisecond
)

// Handover tracks which node leads, and moves the leadership to another node.
type Handover interface {
	Leader() (id, addr string)
	// Transfer hands the leadership to the given voter, or to the best placed one if to is "".
	Transfer(ctx context.Context, to string) error
	// Fitter returns the node to which this leader should hand over because of its disk,
	// its fitness or unfit, or "".
	Fitter(infos map[string]*clusterpb.ClockResponse, unfit bool) string
	StepAside(ctx context.Context, to string)
	// CheckTransfer fences the node if a transfer does not end.
	CheckTransfer()
}

// Rounds is the part of rafttransport.Transport that ReadIndex needs.
type Rounds interface {
	Mark() uint64
	Confirmed(node raft.ServerID, mark, term uint64) bool
}

// Config describes Terms. Everything is required. The functions may be called from any
// goroutine.
type Config struct {
	// ID is the id of this node.
	ID raft.ServerID
	// Election is the election timeout, and ClockTick how long cluster time may stand still
	// on an idle cluster.
	Election, ClockTick time.Duration
	// Raft returns nil before Raft has started. On Notify, Raft reports whether this node
	// leads.
	Raft func() *raft.Raft
	// RaftEnd ends the futures that Raft no longer answers.
	RaftEnd raftend.End
	// Rounds returns the transport's record of which nodes confirmed this leader.
	Rounds func() Rounds
	Notify <-chan bool
	// Voters asks the other voters for their clocks, for at most wait. Guard records
	// whether they confirm this node's clock.
	Voters interface {
		ReadClocks(ctx context.Context, wait time.Duration) map[string]*clusterpb.ClockResponse
	}
	Guard    interface{ Disagrees() bool }
	Handover Handover
	// Weigh decides, from the answers of the voters, whether the cluster may grow.
	Weigh func(infos map[string]*clusterpb.ClockResponse)
	// Committer accepts batches while this node leads.
	Committer interface {
		SetOpen(open bool)
		Submit(s *commit.Submission)
	}
	// Proposer checks which node leads when Poke is called.
	Proposer interface{ Poke() }
	// Applied returns the index of the newest applied state, and Idle how long ago an entry
	// was last applied, or 0 if none was.
	Applied func() uint64
	Idle    func() time.Duration
	Life    *lifecycle.Life
	// Changes counts the changes of leader.
	Changes prometheus.Counter
	Log     *slog.Logger
}

// Terms runs the leadership terms of one node.
type Terms struct {
	cfg   Config
	funcs leaderFuncs
	// readTerm is the term that this node leads with a state that contains everything
	// committed before it; 0 if there is none.
	readTerm atomic.Uint64
}

// New returns the Terms of a node. No term begins before Watch is called.
func New(cfg Config) *Terms { return &Terms{cfg: cfg} }

// Watch receives every change that Raft reports without delay, because Raft waits for it,
// and keeps one leadership term running while this node leads.
func (t *Terms) Watch() {
	var current *leadership
	for {
		select {
		case leading := <-t.cfg.Notify:
			// If the leadership was lost and regained, Raft may report only the second
			// gain.
			t.leave(current)
			if !leading {
				t.cfg.Proposer.Poke()
				continue
			}
			current = t.enter(current)
		case <-t.cfg.Life.Context().Done():
			t.leave(current)
			return
		}
	}
}

// leadership is one leadership term: the time in which this node leads without a break.
type leadership struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// enter begins a term once the previous one has ended in full.
func (t *Terms) enter(last *leadership) *leadership {
	ctx, cancel := context.WithCancel(t.cfg.Life.Context())
	l := &leadership{cancel: cancel, done: make(chan struct{})}
	t.cfg.Life.Go(func() {
		defer close(l.done)
		defer cancel()
		if last != nil {
			<-last.done // its functions may take a moment to return
		}
		t.lead(ctx)
	})
	return l
}

func (t *Terms) leave(l *leadership) {
	if l != nil {
		l.cancel()
		t.cfg.Committer.SetOpen(false)
	}
}

// lead runs one leadership term.
func (t *Terms) lead(ctx context.Context) {
	r := t.cfg.Raft()
	term := r.CurrentTerm()
	// Nothing may be proposed on a state that lacks what earlier leaders committed.
	if err := t.cfg.RaftEnd.Await(ctx, r.Barrier(commit.EnqueueTimeout)); err != nil {
		if ctx.Err() == nil {
			t.cfg.Log.Warn("new leader could not catch up", "err", err)
			t.giveUp(ctx)
		}
		return
	}
	if r.CurrentTerm() == term { // otherwise the barrier may be from another term
		t.readTerm.Store(term)
		defer t.readTerm.CompareAndSwap(term, 0)
	}
	t.cfg.Voters.ReadClocks(ctx, clockWait)
	if ctx.Err() != nil || t.cfg.Life.Fenced() != nil {
		return
	}
	t.cfg.Log.Info("leading", "term", r.CurrentTerm())
	t.cfg.Committer.SetOpen(true)
	if ctx.Err() != nil || t.cfg.Life.Fenced() != nil {
		t.cfg.Committer.SetOpen(false) // the term ended between the check and the opening
		return
	}
	t.cfg.Proposer.Poke()
	var funcs sync.WaitGroup
	t.funcs.begin(ctx, func(f func()) {
		funcs.Add(1)
		t.cfg.Life.Go(func() {
			defer funcs.Done()
			f()
		})
	})
	defer funcs.Wait()
	defer t.funcs.end()
	tick := time.NewTicker(min(Tick, t.cfg.ClockTick))
	defer tick.Stop()
	var lastTransfer time.Time
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		infos := t.cfg.Voters.ReadClocks(ctx, Tick)
		t.cfg.Weigh(infos)
		t.cfg.Handover.CheckTransfer()
		if t.cfg.Idle() > t.cfg.ClockTick {
			t.tickClock()
		}
		if time.Since(lastTransfer) < transferPause {
			continue
		}
		if to := t.cfg.Handover.Fitter(infos, t.cfg.Guard.Disagrees()); to != "" {
			lastTransfer = time.Now()
			t.cfg.Handover.StepAside(ctx, to)
		}
	}
}

// giveUp makes Raft elect again: a leader that cannot even commit a barrier is of no use.
func (t *Terms) giveUp(ctx context.Context) {
	tctx, cancel := context.WithTimeout(ctx, 2*t.cfg.Election)
	defer cancel()
	if err := t.cfg.Handover.Transfer(tctx, ""); err != nil {
		t.cfg.Log.Warn("could not hand over the leadership", "err", err)
	}
}

// Follow passes changes of leader on to the parts that wait for a leader.
func (t *Terms) Follow(observed <-chan raft.Observation) {
	// Raft drops observations that come too fast, so check regularly as well.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last string
	for {
		select {
		case <-observed:
		case <-tick.C:
		case <-t.cfg.Life.Context().Done():
			return
		}
		leader, _ := t.cfg.Handover.Leader()
		if leader == last {
			continue
		}
		if last = leader; leader != "" {
			t.cfg.Changes.Inc()
			t.cfg.Log.Info("leader changed", "leader", leader)
		}
		t.cfg.Proposer.Poke()
	}
}

// tickClock keeps cluster time moving on an idle cluster. After a day without evidence of
// time only an operator could move it again.
func (t *Terms) tickClock() {
	t.cfg.Committer.Submit(&commit.Submission{Answer: func(*clusterpb.SubmitResponse) {}})
}
