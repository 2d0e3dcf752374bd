package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

const (
	// leaderTick is how often a leader looks at clocks and at who should lead.
	leaderTick = time.Second
	// transferPause lies between attempts to hand the leadership over.
	transferPause = 5 * time.Second
	// clockWait bounds how long a new leader waits for other clocks.
	clockWait = 500 * time.Millisecond
	// transferLag is how far behind the log a node may be that takes over.
	transferLag = 512
)

// leaderFuncs are what runs while this node leads.
type leaderFuncs struct {
	mu    sync.Mutex
	funcs []func(context.Context)
	ctx   context.Context // of the term of office under way, or nil
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
// for that, and keeps one term of office running while this node leads.
func (n *Node) watchLeadership() {
	var office *office
	for {
		select {
		case leading := <-n.notify:
			// Flapping: a second "leading" without an end between is a new term.
			n.leave(office)
			if !leading {
				n.origin.poke()
				continue
			}
			office = n.enter(office)
		case <-n.ctx.Done():
			n.leave(office)
			return
		}
	}
}

// office is one term in which this node leads.
type office struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// enter begins a term once the last one has ended in full.
func (n *Node) enter(last *office) *office {
	ctx, cancel := context.WithCancel(n.ctx)
	o := &office{cancel: cancel, done: make(chan struct{})}
	n.goroutine(func() {
		defer close(o.done)
		defer cancel()
		if last != nil {
			<-last.done // its functions may take a moment to return
		}
		n.lead(ctx)
	})
	return o
}

func (n *Node) leave(o *office) {
	if o != nil {
		o.cancel()
		n.merger.setOpen(false)
	}
}

// lead is one term of office.
func (n *Node) lead(ctx context.Context) {
	r := n.raft.Load()
	// Nothing is proposed on a state that lags behind what earlier leaders
	// committed.
	if err := waitFuture(ctx, r.Barrier(enqueueTimeout)); err != nil {
		if ctx.Err() == nil {
			n.log.Warn("new leader could not catch up", "err", err)
			n.giveUp(ctx)
		}
		return
	}
	n.readClocks(ctx, clockWait)
	if ctx.Err() != nil || n.faulted.Load() != nil {
		return
	}
	n.log.Info("leading", "term", r.CurrentTerm())
	n.merger.setOpen(true)
	if ctx.Err() != nil || n.faulted.Load() != nil {
		n.merger.setOpen(false) // it ended between the look and the opening
		return
	}
	n.origin.poke()
	var funcs sync.WaitGroup
	n.onLeader.begin(ctx, func(f func()) {
		funcs.Add(1)
		n.goroutine(func() {
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
		infos := n.readClocks(ctx, leaderTick)
		n.watchTransfer()
		if n.applied.since() > n.cfg.Timeouts.ClockTick {
			n.tickClock()
		}
		if (!n.canLead() || n.guard.disagrees()) && time.Since(lastTransfer) > transferPause {
			lastTransfer = time.Now()
			n.stepAside(ctx, infos)
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
		case <-n.ctx.Done():
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
		n.origin.poke()
	}
}

// readClocks reads the clocks of the other voters, for as long as wait, and
// whatever else they say of their fitness to lead.
func (n *Node) readClocks(ctx context.Context, wait time.Duration) map[string]*clusterpb.ClockResponse {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	voters := n.voters()
	type answer struct {
		node   string
		r      *clusterpb.ClockResponse
		offset time.Duration
	}
	start := time.Now()
	answers := make(chan answer, len(voters))
	asked := 0
	for _, id := range voters {
		client, err := n.peers.client(id)
		if err != nil { // this node itself
			continue
		}
		asked++
		n.goroutine(func() {
			before := n.cfg.Clock.Now()
			began := time.Now()
			r, err := client.Clock(ctx, &clusterpb.ClockRequest{})
			if err != nil || r.Node != id {
				answers <- answer{}
				return
			}
			// The answer was made somewhere in the round trip: take its middle.
			mid := before.Add(time.Since(began) / 2)
			answers <- answer{id, r, time.Unix(0, r.Wall).Sub(mid)}
		})
	}
	infos := make(map[string]*clusterpb.ClockResponse)
	var rs []reading
	for range asked {
		a := <-answers // each comes, with ctx at the latest
		if a.r != nil {
			infos[a.node] = a.r
			n.contacts.heard(a.node)
			rs = append(rs, reading{a.node, a.offset})
		}
	}
	was := n.guard.disagrees()
	if _, differ := n.guard.take(rs, start, len(voters)); differ && !was {
		n.log.Error("this leader's clock differs from the majority's: cluster time stands still here")
	}
	return infos
}

// tickClock keeps cluster time moving on an idle cluster: after a day without
// evidence of time, only an operator could move it again.
func (n *Node) tickClock() {
	n.merger.submit(&submission{answer: func(*clusterpb.SubmitResponse) {}})
}

// nextCheck is the state hash that the next entry asks the others to compare,
// once for each.
func (n *Node) nextCheck() *fsmpb.StateCheck {
	c := n.applied.check.Load()
	if c == nil || c.Index <= n.proposedCheck {
		return nil
	}
	n.proposedCheck = c.Index
	return c
}

// watchTransfer notices a leader that refuses everything because of a transfer
// that does not end. The flag for it is in Raft's memory only, so a new process
// cures it.
func (n *Node) watchTransfer() {
	if since := n.merger.refusingSince(); !since.IsZero() && time.Since(since) > 5*n.cfg.Timeouts.Election {
		n.fault(fmt.Errorf("%w: for %v", ErrTransferStuck, time.Since(since).Round(time.Millisecond)))
	}
}

// SetCanLead registers what tells whether this node is fit to lead: a sealed one
// hands over as soon as a fit one can take over.
func (n *Node) SetCanLead(f func() bool) { n.leadCheck.Store(&f) }

func (n *Node) canLead() bool {
	if n.faulted.Load() != nil {
		return false
	}
	f := n.leadCheck.Load()
	return f == nil || (*f)()
}

// stepAside hands over to a fit node, if there is one.
func (n *Node) stepAside(ctx context.Context, infos map[string]*clusterpb.ClockResponse) {
	to := n.successor(infos, true)
	if to == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*n.cfg.Timeouts.Election)
	defer cancel()
	n.log.Info("handing the leadership to a node that is fit to lead", "to", to)
	if err := n.transferTo(ctx, to); err != nil {
		n.log.Warn("could not hand over the leadership", "to", to, "err", err)
	}
}

// successor is the node that is best placed to take over: of those whose log is
// about as long as this one's, the longest; fit ones first, or only.
func (n *Node) successor(infos map[string]*clusterpb.ClockResponse, onlyFit bool) string {
	own := n.raft.Load().LastIndex()
	var best *clusterpb.ClockResponse
	for _, r := range infos {
		if r.LastIndex+transferLag < own || onlyFit && !r.CanLead {
			continue
		}
		if best == nil || r.CanLead && !best.CanLead ||
			r.CanLead == best.CanLead && (r.LastIndex > best.LastIndex || r.LastIndex == best.LastIndex && r.Node < best.Node) {
			best = r
		}
	}
	if best == nil {
		return ""
	}
	return best.Node
}

// TransferLeadership hands the leadership to the best placed other voter and
// returns when this node has stopped leading. One transfer runs at a time.
func (n *Node) TransferLeadership(ctx context.Context) error {
	if !n.IsLeader() {
		return ErrNotLeader
	}
	if err := n.begin(); err != nil {
		return err
	}
	defer n.running.Done()
	to := n.successor(n.readClocks(ctx, n.cfg.Timeouts.Election), false)
	if to == "" {
		return ErrNoTransfer
	}
	return n.transferTo(ctx, to)
}

func (n *Node) transferTo(ctx context.Context, to string) error {
	select {
	case n.transfer <- struct{}{}:
	default:
		return fmt.Errorf("%w: a transfer is under way", ErrNoTransfer)
	}
	var addr raft.ServerAddress
	for _, s := range n.configuration().Servers {
		if string(s.ID) == to {
			addr = s.Address
		}
	}
	future := n.raft.Load().LeadershipTransferToServer(raft.ServerID(to), addr)
	done := make(chan error, 1)
	go func() {
		// Held until Raft is done with it, whoever stopped waiting: a second one
		// beside it is what issue 696 needs.
		err := future.Error()
		<-n.transfer
		result := "ok"
		if err != nil {
			result = "failed"
		}
		n.metrics.transfers.WithLabelValues(result).Inc()
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("leadership transfer to %s: %w", to, err)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// IsLeader reports whether this node believes to lead. It proves nothing: what
// must be certain goes through the log.
func (n *Node) IsLeader() bool {
	r := n.raft.Load()
	return r != nil && r.State() == raft.Leader
}

// Leader is the node that leads and its peer address; empty when none is known.
func (n *Node) Leader() (id, addr string) {
	r := n.raft.Load()
	if r == nil {
		return "", ""
	}
	a, i := r.LeaderWithID()
	return string(i), string(a)
}
