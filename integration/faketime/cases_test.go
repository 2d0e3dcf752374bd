package faketime

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine"
)

// dueCases are what can be in the way when things are due. run does it, and gives
// the time from which on the cluster can do what is due.
var dueCases = []struct {
	name   string
	before func(*world)
	run    func(*estate) time.Time
}{
	{"nothing", nil, func(e *estate) time.Time { return e.due }},

	{"a node that is behind, and material that nobody destroys yet", func(w *world) {
		w.onDue(slowly)
		n := w.nodes[0]
		hooked := n.replica
		n.replica = func(r keyengine.Replica) keyengine.Replica { return late{hooked(r), n} }
	}, func(e *estate) time.Time { return e.due }},

	{"leader killed before", nil, func(e *estate) time.Time { return e.killLeader(-time.Second) }},
	{"leader killed at", nil, func(e *estate) time.Time { return e.killLeader(0) }},
	{"leader killed after", nil, func(e *estate) time.Time { return e.killLeader(50 * time.Millisecond) }},
	{"leader killed before it commits", func(w *world) {
		w.firstDue(func(ctx context.Context, n *worldNode, next keyengine.Replica, r *fsmpb.Record) (fsm.Decision, error) {
			go n.kill()
			<-ctx.Done()
			return fsm.Decision{}, ctx.Err()
		})
	}, (*estate).revive},
	{"leader killed before it hears of the commit", func(w *world) {
		w.firstDue(func(ctx context.Context, n *worldNode, next keyengine.Replica, r *fsmpb.Record) (fsm.Decision, error) {
			d, err := next.Propose(ctx, r)
			if err != nil || d.Verdict != fsm.Accepted {
				n.fault("the proposal found %v, %w", d, err)
			}
			go n.kill()
			<-ctx.Done()
			return fsm.Decision{}, ctx.Err()
		})
	}, (*estate).revive},
	{"outcomes unknown", func(w *world) {
		w.onDue(func(ctx context.Context, n *worldNode, next keyengine.Replica, r *fsmpb.Record) (fsm.Decision, error) {
			_, err := next.Propose(ctx, r)
			if err == nil {
				err = fsm.ErrOutcomeUnknown
			}
			return fsm.Decision{}, err
		})
	}, func(e *estate) time.Time { return e.due }},
	{"leader cut off with the entry in its log", func(w *world) {
		w.firstDue(func(ctx context.Context, n *worldNode, next keyengine.Replica, r *fsmpb.Record) (fsm.Decision, error) {
			for _, o := range n.others(n) {
				n.mem.Cut(n.id, o.id)
			}
			return next.Propose(context.WithoutCancel(ctx), r)
		})
	}, func(e *estate) time.Time {
		e.sleepUntil(e.due.Add(12 * time.Second))
		e.mem.Heal()
		return e.due
	}},
	{"everybody believes to lead", func(w *world) {
		for _, n := range w.nodes {
			n.replica = func(r keyengine.Replica) keyengine.Replica { return leading{r} }
		}
	}, func(e *estate) time.Time {
		ctx, cancel := context.WithCancel(e.t.Context())
		for _, n := range e.nodes {
			e.probing.Go(func() { n.engine().Lead(ctx) })
		}
		e.sleepUntil(e.due.Add(promptly / 2))
		cancel()
		return e.due
	}},
	{"leadership handed over", nil, func(e *estate) time.Time {
		for _, before := range []time.Duration{400, 200, 0, -200} {
			l := e.leader()
			e.sleepUntil(e.due.Add(-before * time.Millisecond))
			if err := l.cluster.Changes().TransferLeadership(e.t.Context(), ""); err != nil {
				e.t.Logf("transfer: %v", err)
			}
		}
		return e.due
	}},

	{"all restarted and sealed", nil, func(e *estate) time.Time { return e.restartSealed(e.nodes) }},
	{"all restarted and one unsealed", nil, func(e *estate) time.Time {
		able := e.restartSealed(e.nodes[1:2])
		e.sleepUntil(able.Add(promptly))
		if !e.done() {
			e.t.Error("one unsealed node does not do what is due")
		}
		e.unseal(e.nodes[0], e.nodes[2])
		return able
	}},
	{"no majority for three hours", nil, func(e *estate) time.Time {
		down := e.others(e.leader())
		for _, n := range down {
			n.kill()
		}
		e.sleepUntil(e.due.Add(5 * time.Second))
		e.suspend(3 * time.Hour)
		e.sleepUntil(e.due.Add(3*time.Hour + 20*time.Second))
		e.notDone("without a majority")
		e.start(down...)
		e.unseal(down...)
		return e.now()
	}},
	{"down for three days", nil, func(e *estate) time.Time {
		e.stop(e.nodes...)
		e.suspend(3 * timeDay)
		e.start(e.nodes...)
		e.unseal(e.nodes...)
		return e.now()
	}},

	{"leader's clock an hour ahead", nil, func(e *estate) time.Time { return e.turnLeader(time.Hour) }},
	{"leader's clock a day ahead", nil, func(e *estate) time.Time { return e.turnLeader(25 * time.Hour) }},
	{"leader's clock a month ahead", nil, func(e *estate) time.Time { return e.turnLeader(30 * timeDay) }},
	{"leader's clock an hour behind", nil, func(e *estate) time.Time { return e.turnLeader(-time.Hour) }},
	{"leader's clock a month behind", nil, func(e *estate) time.Time { return e.turnLeader(-30 * timeDay) }},
	{"a leader's clock a month ahead, then the next one's a month behind", nil, func(e *estate) time.Time {
		l := e.leader()
		l.turn(30 * timeDay)
		e.poll("another leader", func() bool { return e.leader() != l })
		l.turn(-30 * timeDay)
		time.Sleep(2 * time.Second)
		return e.turnLeader(-30 * timeDay)
	}},
	{"leader's clock there and back", nil, func(e *estate) time.Time {
		e.turnLeader(time.Hour)
		time.Sleep(2 * time.Second)
		for _, n := range e.nodes {
			n.skew.Store(0)
		}
		return e.due
	}},
	{"leader's clock a little ahead", nil, func(e *estate) time.Time { return e.turnLeader(4 * time.Second) }},
	{"follower's clock ahead", nil, func(e *estate) time.Time {
		e.others(e.leader())[0].turn(25 * time.Hour)
		return e.due
	}},
	{"a leader with a wrong clock is elected", nil, func(e *estate) time.Time { return e.electWrong(25 * time.Hour) }},
	{"a leader whose clock is behind is elected", nil, func(e *estate) time.Time { return e.electWrong(-time.Hour) }},
	{"all clocks stepped back", nil, func(e *estate) time.Time { return e.turnAll(-2 * time.Second) }},
	{"all clocks stepped ahead", nil, func(e *estate) time.Time { return e.turnAll(800 * time.Millisecond) }},
	{"all clocks two hours ahead", nil, func(e *estate) time.Time {
		e.misled.Store(true)
		e.turnAll(2 * time.Hour)
		return e.now()
	}},
	{"all clocks a day ahead, confirmed", nil, func(e *estate) time.Time {
		e.misled.Store(true)
		e.turnAll(25 * time.Hour)
		time.Sleep(3 * time.Second)
		e.notDone("by clocks that nobody confirmed")
		if err := e.leader().engine().ConfirmTime(e.t.Context(), timeOperator); err != nil {
			e.t.Error(err)
		}
		return e.now()
	}},
}

// leading is what the engine of a node sees that believes to lead.
type leading struct{ keyengine.Replica }

// IsLeader implements keyengine.Replica.
func (leading) IsLeader() bool { return true }

// slowly proposes what is due some seconds late.
func slowly(ctx context.Context, _ *worldNode, next keyengine.Replica, r *fsmpb.Record) (fsm.Decision, error) {
	time.Sleep(3 * time.Second)
	return next.Propose(ctx, r)
}

// firstDue has f run in place of the first proposal of what is due.
func (w *world) firstDue(f func(ctx context.Context, n *worldNode, next keyengine.Replica, r *fsmpb.Record) (fsm.Decision, error)) {
	var one atomic.Bool
	w.onDue(func(ctx context.Context, n *worldNode, next keyengine.Replica, r *fsmpb.Record) (fsm.Decision, error) {
		if one.CompareAndSwap(false, true) {
			return f(ctx, n, next, r)
		}
		return next.Propose(ctx, r)
	})
}

// killLeader kills the leader some time after the estate is due, and brings it back
// later.
func (e *estate) killLeader(after time.Duration) time.Time {
	l := e.leader()
	e.sleepUntil(e.due.Add(after))
	l.kill()
	e.sleepUntil(e.due.Add(10 * time.Second))
	e.start(l)
	e.unseal(l)
	return e.due
}

// revive brings back the node that a hook kills.
func (e *estate) revive() time.Time {
	var dead *worldNode
	e.poll("a node's end", func() bool {
		for _, n := range e.nodes {
			if !n.up.Load() {
				dead = n
			}
		}
		return dead != nil
	})
	time.Sleep(10 * time.Second)
	e.start(dead)
	e.unseal(dead)
	return e.due
}

// notDone makes sure that nothing of what is due was done by now.
func (e *estate) notDone(when string) {
	e.t.Helper()
	for _, n := range e.nodes {
		for _, d := range dueEvents {
			if n.up.Load() && d.done(e, n.cluster.State()) {
				e.t.Errorf("%s is done %s", d.name, when)
			}
		}
	}
}

// restartSealed restarts all nodes, leaves them alone over the due time, and then
// unseals some.
func (e *estate) restartSealed(open []*worldNode) time.Time {
	e.stop(e.nodes...)
	e.start(e.nodes...)
	l := e.leader()
	size := l.server.AuditLog().Size()
	e.sleepUntil(e.due.Add(time.Minute))
	if !e.leader().engine().Sealed() || l.server.AuditLog().Size() != size {
		e.t.Errorf("sealed nodes made %d records", l.server.AuditLog().Size()-size)
	}
	e.notDone("by sealed nodes")
	e.unseal(open...)
	return e.now()
}

func (e *estate) turnLeader(by time.Duration) time.Time {
	e.leader().turn(by)
	return e.due
}

func (e *estate) turnAll(by time.Duration) time.Time {
	for _, n := range e.nodes {
		n.turn(by)
	}
	return e.due.Add(max(0, -by))
}

// electWrong leaves a node with a wrong clock and one with a right one, then all
// three, over the due time.
func (e *estate) electWrong(by time.Duration) time.Time {
	l := e.leader()
	e.others(l)[0].turn(by)
	e.sleepUntil(e.due.Add(-2 * time.Second))
	l.kill()
	e.sleepUntil(e.due.Add(20 * time.Second))
	e.start(l)
	e.unseal(l)
	return e.now()
}
