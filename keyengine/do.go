package keyengine

import (
	"context"
	"fmt"

	"github.com/conclavekms/conclave/fsm"
)

// Do executes an operation for a caller: evaluate on one state, commit the
// record of the outcome, and give the answer only once the log accepted both.
// It is the one door: refusals and failures pass through it like successes. Its
// errors are of type *Error and may be told to the caller as they are.
func (e *Engine) Do(ctx context.Context, c *Caller, op *Operation, in any) (any, error) {
	start := e.clock.Now()
	out, err := e.do(ctx, c, op, in)
	took := e.clock.Now().Sub(start)
	if err != nil {
		told := told(e.log, op, c, err)
		e.metrics.operation(op, c, told, took)
		return nil, told
	}
	e.metrics.operation(op, c, nil, took)
	return out, nil
}

func (e *Engine) do(ctx context.Context, c *Caller, op *Operation, in any) (any, error) {
	if err := e.limits.allow(c); err != nil {
		return nil, err
	}
	if err := e.hasRoom(); err != nil {
		return nil, err
	}
	ctx, room := withOnce(ctx)
	defer room.wipe()
	for range maxTries {
		ev := evaluate(ctx, e.services, e.replica.State(), c, op, in)
		a, err := e.commit(ctx, ev)
		if err != errConflict {
			return a, err
		}
	}
	return e.onLeader(ctx, c, op, in)
}

// commit proposes an evaluation's record and releases its answer if the log took
// it.
func (e *Engine) commit(ctx context.Context, ev *attempt) (any, error) {
	if ev.record == nil {
		return nil, ev.err
	}
	d, err := e.replica.Propose(ctx, ev.record)
	return e.settle(ctx, ev, d, err)
}

func (e *Engine) settle(ctx context.Context, ev *attempt, d fsm.Decision, err error) (any, error) {
	if err != nil {
		ev.wipe()
		return nil, unavailable(err)
	}
	switch d.Verdict {
	case fsm.Accepted:
		return e.release(ctx, ev, d)
	case fsm.Conflict, fsm.Early, fsm.Late:
		ev.wipe()
		e.metrics.conflict(ev.op)
		if err := e.replica.WaitApplied(ctx, d.Index); err != nil {
			return nil, unavailable(err)
		}
		return nil, errConflict
	default:
		ev.wipe()
		return nil, fmt.Errorf("record of %s found %v", ev.op.Name, d.Verdict)
	}
}

// release gives the answer of an accepted record.
func (e *Engine) release(ctx context.Context, ev *attempt, d fsm.Decision) (any, error) {
	if len(ev.record.Changes) == 0 {
		// The authority behind the answer may be withdrawn at any time from the commit
		// on. Changes have happened and are answered; what is read or opened is asked
		// again when it took too long.
		ev.caller.Bound(e.withheld, ev.op.Name, d.Late)
		if err := ev.caller.Overdue(); err != nil {
			ev.wipe()
			return nil, err
		}
	}
	if ev.err != nil {
		e.limits.refused(ev.caller, ev.err)
		return nil, ev.err
	}
	if len(ev.record.Changes) > 0 || ev.later != nil {
		// So that the caller reads its own write here without a second try, and a
		// list is read no earlier than its record stands.
		if err := e.replica.WaitApplied(ctx, d.Index); err != nil && ev.later != nil {
			return nil, unavailable(err)
		}
	}
	if ev.later != nil {
		return ev.later(e.replica.State())
	}
	return ev.out, nil
}
