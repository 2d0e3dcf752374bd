// Package leadership is what a node does while it leads: from when Raft says so until it says
// that it does not, a leadership term.
//
// What may be relied on:
//
//   - Nothing is proposed in a term, no function of OnLeader runs and no ReadIndex answers
//     before the node's state has everything that was committed before.
//   - A term begins when everything of the one before it is over.
//   - A leader that is not fit to lead, or whose clock most others contradict, hands over as
//     soon as somebody fitter can take over.
//   - On an idle cluster the leader proposes entries that carry the time alone.
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
	// Tick is how often a leader looks at clocks and at who should lead.
	Tick = 500 * time.Millisecond
	// transferPause lies between attempts to hand the leadership over.
	transferPause = 5 * time.Second
	// clockWait bounds how long a new leader waits for other clocks.
	clockWait = 500 * time.Millisecond
)

// Handover knows who leads, and moves the leadership to another node.
type Handover interface {
	Leader() (id, addr string)
	// Transfer hands over to the best placed other voter.
	Transfer(ctx context.Context) error
	// Fitter is the node to which this leader should hand over, for its disk, its
	// fitness, or because of unfit; "" for none.
	Fitter(infos map[string]*clusterpb.ClockResponse, unfit bool) string
	StepAside(ctx context.Context, to string)
	// CheckTransfer notices a transfer that does not end.
	CheckTransfer()
}

// Config describes Terms. Everything is required. The functions may be called from any
// goroutine.
type Config struct {
	// Election is the election timeout, and ClockTick how long cluster time may stand
	// still on an idle cluster.
	Election, ClockTick time.Duration
	// Raft is nil before it was started, and Notify where it says that this node leads
	// or does not any more.
	Raft func() *raft.Raft
	// RaftEnd ends what Raft does not answer any more.
	RaftEnd raftend.End
	Notify  <-chan bool
	// Voters are asked for their clocks, for as long as wait, and Guard knows whether they
	// confirm this node's.
	Voters interface {
		ReadClocks(ctx context.Context, wait time.Duration) map[string]*clusterpb.ClockResponse
	}
	Guard    interface{ Disagrees() bool }
	Handover Handover
	// Weigh decides whether the cluster may grow, from what the voters say.
	Weigh func(infos map[string]*clusterpb.ClockResponse)
	// Committer takes what is proposed while this node leads.
	Committer interface {
		SetOpen(open bool)
		Submit(s *commit.Submission)
	}
	// Proposer looks who leads when it is poked.
	Proposer interface{ Poke() }
	// Applied is the index of the newest applied state, and Idle how long ago an entry
	// was applied; 0 for never.
	Applied func() uint64
	Idle    func() time.Duration
	Life    *lifecycle.Life
	// Changes counts changes of leader.
	Changes prometheus.Counter
	Log     *slog.Logger
}

// Terms are the leadership terms of one node.
type Terms struct {
	cfg   Config
	funcs leaderFuncs
	// readTerm is the term in which this node leads with a state that has all that
	// was committed before; 0 without.
	readTerm atomic.Uint64
}

// New makes the Terms of a node; none begins before Watch.
func New(cfg Config) *Terms { return &Terms{cfg: cfg} }

// Watch takes every change that Raft reports at once, since Raft waits
// for that, and keeps one leadership term running while this node leads.
func (t *Terms) Watch() {
	var current *leadership
	for {
		select {
		case leading := <-t.cfg.Notify:
			// Flapping: a second "leading" without an end between is a new term.
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

// leadership is one leadership term: the time in which this node leads, without a break.
type leadership struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// enter begins a term once the last one has ended in full.
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

// lead is one leadership term.
func (t *Terms) lead(ctx context.Context) {
	r := t.cfg.Raft()
	term := r.CurrentTerm()
	// Nothing is proposed on a state that lags behind what earlier leaders
	// committed.
	if err := t.cfg.RaftEnd.Await(ctx, r.Barrier(commit.EnqueueTimeout)); err != nil {
		if ctx.Err() == nil {
			t.cfg.Log.Warn("new leader could not catch up", "err", err)
			t.giveUp(ctx)
		}
		return
	}
	if r.CurrentTerm() == term { // else the barrier may have been of another
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
		t.cfg.Committer.SetOpen(false) // it ended between the look and the opening
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

// giveUp makes Raft elect again: a leader that cannot even commit a barrier is
// of no use.
func (t *Terms) giveUp(ctx context.Context) {
	tctx, cancel := context.WithTimeout(ctx, 2*t.cfg.Election)
	defer cancel()
	if err := t.cfg.Handover.Transfer(tctx); err != nil {
		t.cfg.Log.Warn("could not hand over the leadership", "err", err)
	}
}

// Follow passes changes of leader on to those who wait for one.
func (t *Terms) Follow(observed <-chan raft.Observation) {
	// Observations may be dropped when they come too fast, so look as well.
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

// tickClock keeps cluster time moving on an idle cluster: after a day without
// evidence of time, only an operator could move it again.
func (t *Terms) tickClock() {
	t.cfg.Committer.Submit(&commit.Submission{Answer: func(*clusterpb.SubmitResponse) {}})
}
