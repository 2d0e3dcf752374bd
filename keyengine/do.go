package keyengine

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// maxTries is how often a node evaluates a request whose read set keeps
// changing, before the leader executes it.
const maxTries = 3

// Do executes an operation for a caller: evaluate on one state, commit the
// record of the outcome, and give the answer only once the log accepted both.
// It is the one door: refusals and failures pass through it like successes. Its
// errors are of type *Error and may be told to the caller as they are.
func (e *Engine) Do(ctx context.Context, c *Caller, op *Operation, in any) (any, error) {
	start := e.clock.Now()
	out, err := e.do(ctx, c, op, in)
	took := e.clock.Now().Sub(start)
	if err != nil {
		told := e.told(op, c, err)
		e.metrics.operation(op, c, told, took)
		return nil, told
	}
	e.metrics.operation(op, c, nil, took)
	return out, nil
}

// told is what a caller may know of an error. The rest goes to the node's log, once: an
// error that is told as it is has no more to say, or was made here of one that had.
func (e *Engine) told(op *Operation, c *Caller, err error) *kmsapi.Error {
	t, ok := errors.AsType[*kmsapi.Error](err)
	if !ok {
		t = kmsapi.ErrInternal
	}
	if t.Code == kmsapi.ErrInternal.Code && err != error(t) {
		e.log.Error("request failed", "operation", op.Name, "request_id", formatUUID(c.RequestID), "err", err)
	}
	return t
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
		ev := e.evaluate(ctx, e.replica.State(), c, op, in)
		a, err := e.commit(ctx, ev)
		if err != errConflict {
			return a, err
		}
	}
	return e.onLeader(ctx, c, op, in)
}

// evaluation is an outcome with the record that must be committed before anyone
// hears of it.
type evaluation struct {
	eval
	in     any
	out    any
	err    error
	record *fsmpb.Record
	draft  *draft

	// Room for what most evaluations come to, instead of allocations.
	fewResources [1]resource
	fewDecisions [1]decision
	fewMaterials [2]*fsmpb.Material
	fewSecrets   [1][]byte
}

// draft is a record in the making, with room for what most records hold, so that
// all of it is one allocation. It is apart from the evaluation, which knows
// secrets, since the log may keep it for longer.
type draft struct {
	record     fsmpb.Record
	salt       [16]byte
	commitment auditlog.Hash
	reads      [4]*fsmpb.Read
	uses       [1]*fsmpb.Use
	eachRead   [4]fsmpb.Read
	eachUse    [1]fsmpb.Use
}

func (e *Engine) newEvaluation(ctx context.Context, s *fsm.State, c *Caller, op *Operation, in any) *evaluation {
	d := new(draft)
	ev := &evaluation{in: in, draft: d}
	ev.eval = eval{
		ctx: ctx, Services: e.services, state: s, caller: c, op: op,
		reads: d.reads[:0], freeReads: d.eachRead[:], uses: d.uses[:0], freeUses: d.eachUse[:],
		resources: ev.fewResources[:0], decisions: ev.fewDecisions[:0], materials: ev.fewMaterials[:0], secrets: ev.fewSecrets[:0],
	}
	return ev
}

// take is the next of what was allocated together, or a new one when there is none
// left.
func take[T any](free *[]T) *T {
	if len(*free) == 0 {
		return new(T)
	}
	t := &(*free)[0]
	*free = (*free)[1:]
	return t
}

// evaluate runs the operation on a state and builds its record. There is no
// record, only an error, when there can be none: the node is sealed, the caller's
// credential is no longer one, or something outside has to be asked first.
func (e *Engine) evaluate(ctx context.Context, s *fsm.State, c *Caller, op *Operation, in any) *evaluation {
	ev := e.newEvaluation(ctx, s, c, op, in)
	if ev.err = ev.admit(); ev.err != nil {
		return ev
	}
	if ev.err = cmp.Or(ev.inRegion(), ev.checkSource()); ev.err == nil {
		if ev.err = op.input.Validate(in); ev.err == nil {
			if ev.err = e.mayGrow(op); ev.err == nil {
				ev.out, ev.err = op.run(&ev.eval, in)
			}
		}
	}
	if ev.err != nil {
		ev.wipe()
		ev.out, ev.changes, ev.uses, ev.later = nil, nil, nil, nil
		if errors.Is(ev.err, errOutside) {
			return ev
		}
		ev.err = e.told(op, c, ev.err)
	}
	var err error
	if ev.record, err = e.newRecord(ev); err != nil {
		ev.wipe()
		ev.out, ev.err, ev.record = nil, err, nil
	}
	return ev
}

// inRegion refuses a request that was made for another Region.
func (ev *eval) inRegion() error {
	c := ev.cluster()
	if r := ev.caller.Region; r != "" && !servesRegion(c, r) && !c.AnyRegion {
		return kmsapi.Errorf(kmsapi.ErrInvalidSignature, "Credential should be scoped to a valid region, not '%s'.", r)
	}
	return nil
}

// errNoSource is for callers who say what only services may say: it would get them
// what is granted to those who act for that resource.
var errNoSource = kmsapi.Errorf(kmsapi.ErrAccessDenied, "Only service principals make requests on behalf of a resource.")

// checkSource refuses a source ARN that the caller may not give, or that is none.
func (ev *eval) checkSource() error {
	switch arn := ev.caller.SourceArn; {
	case arn == "":
		return nil
	case ev.caller.Identity.principal.Kind != policy.KindService:
		return errNoSource
	case len(arn) > maxSourceARN || !kmsapi.PatternOf("sourceArn").Match(arn):
		return kmsapi.Errorf(kmsapi.ErrValidation, "The source ARN of the request is not the ARN of a resource.")
	}
	return nil
}

// errConflict: what the evaluation read has changed; evaluate again.
var errConflict = errors.New("conflict")

// commit proposes an evaluation's record and releases its answer if the log took
// it.
func (e *Engine) commit(ctx context.Context, ev *evaluation) (any, error) {
	if ev.record == nil {
		return nil, ev.err
	}
	d, err := e.replica.Propose(ctx, ev.record)
	return e.settle(ctx, ev, d, err)
}

func (e *Engine) settle(ctx context.Context, ev *evaluation, d fsm.Decision, err error) (any, error) {
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
func (e *Engine) release(ctx context.Context, ev *evaluation, d fsm.Decision) (any, error) {
	if len(ev.record.Changes) == 0 {
		// The authority behind the answer may be withdrawn at any time from the commit
		// on. Changes have happened and are answered; what is read or opened is asked
		// again when it took too long.
		ev.caller.hold = hold{e.withheld, ev.op.Name, d.Late}
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

// unavailable is what a caller is told when the log could not take a record.
func unavailable(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return kmsapi.Errorf(kmsapi.ErrUnavailable, "The request was not answered in time.")
	case errors.Is(err, fsm.ErrOverloaded):
		return errThrottled
	case errors.Is(err, fsm.ErrNoLeader), errors.Is(err, fsm.ErrNodeStopped):
		return kmsapi.Errorf(kmsapi.ErrUnavailable, "The cluster has no leader that this node can reach. Try again.")
	case errors.Is(err, fsm.ErrOutcomeUnknown):
		return kmsapi.Errorf(kmsapi.ErrUnavailable, "The cluster did not say in time what became of the request. It may have taken effect.")
	}
	return err
}
