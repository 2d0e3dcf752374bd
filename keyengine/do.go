package keyengine

import (
	"context"
	"errors"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/trace"
)

// Do executes an operation for a caller: it evaluates the operation on one state, commits a
// record of the outcome, and returns the answer once the record has been accepted. All
// operations on keys go through Do, and refusals and failures take the same path as
// successes. Errors are of type *kmsapi.Error and may be returned to the caller unchanged.
func (e *Engine) Do(ctx context.Context, c *iam.Caller, op *request.Operation, in any) (any, error) {
	start := e.clock.Now()
	out, err := e.do(ctx, c, op, in)
	if c.Record != nil {
		c.Trace.Known() // by the input, if not by a signature
	}
	took := e.clock.Now().Sub(start)
	if err != nil {
		told := request.Told(e.log, op, c, err)
		e.metrics.operation(op, c, told, took)
		return nil, told
	}
	e.metrics.operation(op, c, nil, took)
	return out, nil
}

func (e *Engine) do(ctx context.Context, c *iam.Caller, op *request.Operation, in any) (any, error) {
	if err := e.limits.allow(c); err != nil {
		return nil, err
	}
	if op.Costly {
		if err := e.limits.allowCostly(op, c); err != nil {
			return nil, err
		}
	}
	if err := e.hasRoom(); err != nil {
		return nil, err
	}
	ctx, room := request.WithResults(ctx)
	defer room.Wipe()
	var a *request.Attempt
	d, err := e.events.Commit(ctx, func(s *fsm.State) (*fsmpb.Record, error) {
		if a != nil {
			e.discard(a)
		}
		a = e.evaluate(ctx, s, c, op, in)
		c.Trace.Next(trace.Commit)
		return a.Decided()
	})
	c.Trace.Stop()
	out, err := e.finish(ctx, a, d, err)
	if err == record.ErrConflict {
		return e.onLeader(ctx, c, op, in)
	}
	return out, err
}

// evaluate is request.Evaluate within the limits for callers whose input says who they are.
func (e *Engine) evaluate(ctx context.Context, s *fsm.State, c *iam.Caller, op *request.Operation, in any) *request.Attempt {
	a := request.Evaluate(ctx, e.services, s, c, op, in)
	if !op.Unsigned || a.Err == nil || errors.Is(a.Err, request.ErrOutside) {
		return a
	}
	switch {
	case a.Record == nil:
		e.limits.refused(c, a.Err)
	case !e.limits.mayRecord(a.Principal(), c):
		a.Record, a.Err = nil, record.ErrThrottled
	}
	return a
}

// finish returns the answer of an evaluation whose record was accepted. Otherwise it
// discards the evaluation and returns the error of its record.
func (e *Engine) finish(ctx context.Context, a *request.Attempt, d fsm.Decision, err error) (any, error) {
	switch {
	case err == record.ErrConflict:
		e.discard(a)
		return nil, err
	case err != nil:
		a.Wipe()
		return nil, err
	}
	a.Caller.Record = d.Record
	return e.release(ctx, a, d)
}

// discard wipes an evaluation that conflicted with the log.
func (e *Engine) discard(a *request.Attempt) {
	a.Wipe()
	e.metrics.conflict(a.Op)
}

// release returns the answer of an accepted record.
func (e *Engine) release(ctx context.Context, ev *request.Attempt, d fsm.Decision) (any, error) {
	if len(ev.Record.Changes) == 0 {
		// The authority that the answer rests on can be withdrawn at any time after the
		// commit. A change has taken effect and is always answered; data that was read or
		// decrypted is withheld if the answer comes too late.
		ev.Caller.Bound(e.withheld, ev.Op.Name, d.Late)
		if err := ev.Caller.Overdue(); err != nil {
			ev.Wipe()
			return nil, err
		}
	}
	if ev.Err != nil {
		e.limits.refused(ev.Caller, ev.Err)
		return nil, ev.Err
	}
	if len(ev.Record.Changes) > 0 || ev.Later != nil {
		// Wait, so that the caller reads its own write on this node, and a list is read
		// from a state that includes its own record.
		if err := e.replica.WaitApplied(ctx, d.Index); err != nil && ev.Later != nil {
			return nil, record.Unavailable(err)
		}
	}
	if ev.Later != nil {
		return ev.Later(e.replica.State())
	}
	return ev.Out, nil
}
