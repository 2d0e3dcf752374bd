package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
)

const (
	// leaderTick is how often a leader looks at clocks and at who should lead.
	leaderTick = 500 * time.Millisecond
	// transferPause lies between attempts to hand the leadership over.
	transferPause = 5 * time.Second
	// clockWait bounds how long a new leader waits for other clocks.
	clockWait = 500 * time.Millisecond
)

// leaderFuncs are what runs while this node leads.
type leaderFuncs struct {
	mu    sync.Mutex
	funcs []func(context.Context)
	ctx   context.Context // of the leadership term under way, or nil
	run   func(func())
}

// OnLeader registers f to run, each time this node has become leader and its
// state contains everything committed before, until ctx ends with the
// leadership. f must return then. It may be called at any time.
func (n *Node) OnLeader(f func(ctx context.Context)) {
	l := &n.onLeader
	l.mu.Lock()
	defer l.mu.Unlock()
	l.funcs = append(l.funcs, f)
	if l.ctx != nil && l.ctx.Err() == nil {
		ctx := l.ctx
		l.run(func() { f(ctx) })
	}
}

func (l *leaderFuncs) begin(ctx context.Context, run func(func())) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ctx, l.run = ctx, run
	for _, f := range l.funcs {
		run(func() { f(ctx) })
	}
}

func (l *leaderFuncs) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ctx, l.run = nil, nil
}

// watchLeadership takes every change that Raft reports at once, since Raft waits
// for that, and keeps one leadership term running while this node leads.
func (n *Node) watchLeadership() {
	var current *leadership
	for {
		select {
		case leading := <-n.notify:
			// Flapping: a second "leading" without an end between is a new term.
			n.leave(current)
			if !leading {
				n.proposer.Poke()
				continue
			}
			current = n.enter(current)
		case <-n.life.Context().Done():
			n.leave(current)
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
func (n *Node) enter(last *leadership) *leadership {
	ctx, cancel := context.WithCancel(n.life.Context())
	l := &leadership{cancel: cancel, done: make(chan struct{})}
	n.life.Go(func() {
		defer close(l.done)
		defer cancel()
		if last != nil {
			<-last.done // its functions may take a moment to return
		}
		n.lead(ctx)
	})
	return l
}

func (n *Node) leave(l *leadership) {
	if l != nil {
		l.cancel()
		n.committer.SetOpen(false)
	}
}

// lead is one leadership term.
func (n *Node) lead(ctx context.Context) {
	r := n.raft.Load()
	term := r.CurrentTerm()
	// Nothing is proposed on a state that lags behind what earlier leaders
	// committed.
	if err := waitFuture(ctx, r.Barrier(commit.EnqueueTimeout)); err != nil {
		if ctx.Err() == nil {
			n.log.Warn("new leader could not catch up", "err", err)
			n.giveUp(ctx)
		}
		return
	}
	if r.CurrentTerm() == term { // else the barrier may have been of another
		n.readTerm.Store(term)
		defer n.readTerm.CompareAndSwap(term, 0)
	}
	n.voters.ReadClocks(ctx, clockWait)
	if ctx.Err() != nil || n.life.Fenced() != nil {
		return
	}
	n.log.Info("leading", "term", r.CurrentTerm())
	n.committer.SetOpen(true)
	if ctx.Err() != nil || n.life.Fenced() != nil {
		n.committer.SetOpen(false) // it ended between the look and the opening
		return
	}
	n.proposer.Poke()
	var funcs sync.WaitGroup
	n.onLeader.begin(ctx, func(f func()) {
		funcs.Add(1)
		n.life.Go(func() {
			defer funcs.Done()
			f()
		})
	})
	defer funcs.Wait()
	defer n.onLeader.end()
	tick := time.NewTicker(min(leaderTick, n.cfg.Timeouts.ClockTick))
	defer tick.Stop()
	var lastTransfer time.Time
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		infos := n.voters.ReadClocks(ctx, leaderTick)
		n.space.Weigh(infos, len(n.members.Voters()))
		n.handover.CheckTransfer()
		if n.applied.since() > n.cfg.Timeouts.ClockTick {
			n.tickClock()
		}
		if time.Since(lastTransfer) < transferPause {
			continue
		}
		if to := n.handover.Fitter(infos, n.guard.Disagrees()); to != "" {
			lastTransfer = time.Now()
			n.handover.StepAside(ctx, to)
		}
	}
}

// giveUp makes Raft elect again: a leader that cannot even commit a barrier is
// of no use.
func (n *Node) giveUp(ctx context.Context) {
	tctx, cancel := context.WithTimeout(ctx, 2*n.cfg.Timeouts.Election)
	defer cancel()
	if err := n.TransferLeadership(tctx); err != nil {
		n.log.Warn("could not hand over the leadership", "err", err)
	}
}

// waitFuture waits for a future of Raft, which knows no contexts.
func waitFuture(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// followLeader passes changes of leader on to those who wait for one.
func (n *Node) followLeader(observed <-chan raft.Observation) {
	// Observations may be dropped when they come too fast, so look as well.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last string
	for {
		select {
		case <-observed:
		case <-tick.C:
		case <-n.life.Context().Done():
			return
		}
		leader, _ := n.Leader()
		if leader == last {
			continue
		}
		if last = leader; leader != "" {
			n.metrics.leaders.Inc()
			n.log.Info("leader changed", "leader", leader)
		}
		n.proposer.Poke()
	}
}

// tickClock keeps cluster time moving on an idle cluster: after a day without
// evidence of time, only an operator could move it again.
func (n *Node) tickClock() {
	n.committer.Submit(&commit.Submission{Answer: func(*clusterpb.SubmitResponse) {}})
}

// SetCanLead registers what tells whether this node is fit to lead: a sealed one
// hands over as soon as a fit one can take over.
func (n *Node) SetCanLead(f func() bool) { n.handover.SetCanLead(f) }

// TransferLeadership hands the leadership to the best placed other voter and
// returns when this node has stopped leading. One transfer runs at a time.
func (n *Node) TransferLeadership(ctx context.Context) error { return n.handover.Transfer(ctx) }

// IsLeader reports whether this node believes to lead. It proves nothing: what
// must be certain goes through the log.
func (n *Node) IsLeader() bool { return n.handover.Leads() }

// Leader is the node that leads and its peer address; empty when none is known.
func (n *Node) Leader() (id, addr string) { return n.handover.Leader() }
