package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/cluster/internal/peers"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

const (
	// leaderTick is how often a leader looks at clocks and at who should lead.
	leaderTick = 500 * time.Millisecond
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
		case <-n.ctx.Done():
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
	ctx, cancel := context.WithCancel(n.ctx)
	l := &leadership{cancel: cancel, done: make(chan struct{})}
	n.goroutine(func() {
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
	n.readClocks(ctx, clockWait)
	if ctx.Err() != nil || n.faulted.Load() != nil {
		return
	}
	n.log.Info("leading", "term", r.CurrentTerm())
	n.committer.SetOpen(true)
	if ctx.Err() != nil || n.faulted.Load() != nil {
		n.committer.SetOpen(false) // it ended between the look and the opening
		return
	}
	n.proposer.Poke()
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
		n.weighSpace(infos)
		n.watchTransfer()
		if n.applied.since() > n.cfg.Timeouts.ClockTick {
			n.tickClock()
		}
		if time.Since(lastTransfer) < transferPause {
			continue
		}
		to := ""
		if !n.canLead() || n.guard.disagrees() {
			to = n.successor(infos, onlyFit)
		} else {
			to = n.quicker(infos)
		}
		if to != "" {
			lastTransfer = time.Now()
			n.stepAside(ctx, to)
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
		n.proposer.Poke()
	}
}

// readClocks reads the clocks of the other voters, for as long as wait, and
// whatever else they say of their fitness to lead.
func (n *Node) readClocks(ctx context.Context, wait time.Duration) map[string]*clusterpb.ClockResponse {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	start := time.Now()
	infos, rs, voters := n.askVoters(ctx)
	was := n.guard.disagrees()
	if _, differ := n.guard.take(rs, start, voters); differ && !was {
		n.log.Error("this leader's clock differs from the majority's: cluster time stands still here")
	}
	return infos
}

// askVoters asks the other voters, until ctx ends, for their clocks, their fitness
// to lead and proof that they are unsealed. What they are follows from the newest
// answers; see standings.
func (n *Node) askVoters(ctx context.Context) (infos map[string]*clusterpb.ClockResponse, rs []reading, voters int) {
	ids := n.voters()
	type answer struct {
		node   string
		r      *clusterpb.ClockResponse
		offset time.Duration
	}
	answers := make(chan answer, len(ids))
	asked := 0
	for _, id := range ids {
		client, err := n.peers.Client(id)
		if err != nil { // this node itself
			continue
		}
		asked++
		n.goroutine(func() {
			r, offset := n.askVoter(ctx, id, client)
			answers <- answer{id, r, offset}
			if r != nil {
				n.compareStates(n.ctx, id, r.StateIndex, r.StateHash)
			}
		})
	}
	infos = make(map[string]*clusterpb.ClockResponse)
	for range asked {
		a := <-answers // each comes, with ctx at the latest
		if a.r != nil {
			infos[a.node] = a.r
			n.contacts.heard(a.node)
			rs = append(rs, reading{a.node, a.offset})
		}
	}
	return infos, rs, len(ids)
}

// askVoter asks one of them, and says how far its clock is from this node's; nil
// without an answer.
func (n *Node) askVoter(ctx context.Context, id string, client clusterpb.PeerClient, opts ...grpc.CallOption) (*clusterpb.ClockResponse, time.Duration) {
	nonce := peerproof.NewNonce()
	before := n.cfg.Clock.Now()
	began := time.Now()
	r, err := client.Clock(ctx, &clusterpb.ClockRequest{Group: wire.Group, NoGrowth: n.noGrowth.Load(), Nonce: nonce}, opts...)
	if err != nil || r.Node != id {
		n.standings.Silent(id)
		return nil, 0
	}
	// The answer was made somewhere in the round trip: take its middle.
	mid := before.Add(time.Since(began) / 2)
	n.standings.Take(id, r, n.peers.Proven(r, nonce), time.Now())
	return r, time.Unix(0, r.Wall).Sub(mid)
}

// askForProof asks a node in whose name somebody came without proof. The node may have
// been sealed, or started again, since it was asked last; or it is somebody else who
// came. It is not asked for each who does.
func (n *Node) askForProof(node string) {
	n.standings.Ask(node, func() {
		began := time.Now()
		r := n.askAgain(node, peers.ProofWait, grpc.WaitForReady(true))
		// Should it not answer, it is what it was known to be.
		if r != nil && !n.standings.ProvenSince(node, began, time.Now()) {
			n.standings.Forget(node)
		}
	})
}

// askAgain asks one voter now, for as long as wait.
func (n *Node) askAgain(id string, wait time.Duration, opts ...grpc.CallOption) *clusterpb.ClockResponse {
	client, err := n.peers.Client(id)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(n.ctx, wait)
	defer cancel()
	r, _ := n.askVoter(ctx, id, client, opts...)
	return r
}

// tickClock keeps cluster time moving on an idle cluster: after a day without
// evidence of time, only an operator could move it again.
func (n *Node) tickClock() {
	n.committer.Submit(&commit.Submission{Answer: func(*clusterpb.SubmitResponse) {}})
}

// nextCheck is the state hash that the next entry asks the others to compare,
// once for each. The others stop if theirs is another, so a majority must have it:
// it may be this node whose state is wrong.
func (n *Node) nextCheck() *fsmpb.StateCheck {
	c := n.applied.check.Load()
	if c == nil || c.Index <= n.proposedCheck || !n.standings.Agree(c.Index, len(n.voters())) {
		return nil
	}
	n.proposedCheck = c.Index
	return c
}

// watchTransfer notices a leader that refuses everything because of a transfer
// that does not end. The flag for it is in Raft's memory only, so a new process
// cures it.
func (n *Node) watchTransfer() {
	since := n.committer.RefusingSince()
	now := n.store.Meter().Ran() // a pause of this process is no hanging transfer
	switch {
	case since.IsZero():
		n.refusing, n.refusingFrom = time.Time{}, 0
	case since != n.refusing:
		n.refusing, n.refusingFrom = since, now
	case now-n.refusingFrom > 5*n.cfg.Timeouts.Election:
		n.fault(fmt.Errorf("%w: for %v", ErrTransferStuck, (now - n.refusingFrom).Round(time.Millisecond)))
	}
}

// SetCanLead registers what tells whether this node is fit to lead: a sealed one
// hands over as soon as a fit one can take over.
func (n *Node) SetCanLead(f func() bool) { n.leadCheck.Store(&f) }

func (n *Node) canLead() bool {
	if n.faulted.Load() != nil || poorDisk(n.disk(), n.cfg.Timeouts.DiskYield) {
		return false
	}
	f := n.leadCheck.Load()
	return f == nil || (*f)()
}

// stepAside hands over to a node that is fitter to lead.
func (n *Node) stepAside(ctx context.Context, to string) {
	ctx, cancel := context.WithTimeout(ctx, 2*n.cfg.Timeouts.Election)
	defer cancel()
	n.log.Info("handing the leadership to a node that is fitter to lead", "to", to)
	if err := n.transferTo(ctx, to); err != nil {
		n.log.Warn("could not hand over the leadership", "to", to, "err", err)
	}
}

// choice is what a successor is chosen by.
type choice int

const (
	// anyNode: fit ones first, and those with a poor disk last.
	anyNode choice = iota
	// onlyFit: one that says that it is fit.
	onlyFit
	// preferFit: one whose disk answers and has room, fit ones first.
	preferFit
	// preferQuick: a fit one, the quickest disk first.
	preferQuick
)

// successor is the node that is best placed to take over, of those whose log is
// about as long as this one's; "" when there is none.
func (n *Node) successor(infos map[string]*clusterpb.ClockResponse, by choice) string {
	own := n.raft.Load().LastIndex()
	var best *clusterpb.ClockResponse
	for _, r := range infos {
		poor := poorDisk(r.Disk, n.cfg.Timeouts.DiskYield)
		switch {
		case r.LastIndex+transferLag < own:
		case by != anyNode && poor, (by == onlyFit || by == preferQuick) && !r.CanLead:
		case by == preferQuick && r.Disk.GetWrite() == 0:
		case best == nil || n.better(r, best, by):
			best = r
		}
	}
	if best == nil {
		return ""
	}
	return best.Node
}

func (n *Node) better(r, than *clusterpb.ClockResponse, by choice) bool {
	if a, b := poorDisk(r.Disk, n.cfg.Timeouts.DiskYield), poorDisk(than.Disk, n.cfg.Timeouts.DiskYield); a != b {
		return b
	}
	if r.CanLead != than.CanLead {
		return r.CanLead
	}
	if a, b := r.Disk.GetWrite(), than.Disk.GetWrite(); by == preferQuick && a != b {
		return a < b
	}
	if r.LastIndex != than.LastIndex {
		return r.LastIndex > than.LastIndex
	}
	return r.Node < than.Node
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
	to := n.successor(n.readClocks(ctx, n.cfg.Timeouts.Election), anyNode)
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
	future := n.raft.Load().LeadershipTransferToServer(raft.ServerID(to), n.addressOf(to))
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
	return r != nil && r.State() == raft.Leader && n.elsewhere(r) == nil
}

// Leader is the node that leads and its peer address; empty when none is known.
func (n *Node) Leader() (id, addr string) {
	r := n.raft.Load()
	if r == nil {
		return "", ""
	}
	if k := n.elsewhere(r); k != nil {
		return k.id, k.addr
	}
	a, i := r.LeaderWithID()
	return string(i), string(a)
}
