package request

import (
	"cmp"
	"context"
	"errors"
	"log/slog"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/trace"
	"github.com/conclavekms/conclave/policy"
)

// Attempt is one evaluation of a request, with its outcome and the record that must be
// committed before the outcome is released.
type Attempt struct {
	Evaluation
	Out    any
	Err    error
	Record *fsmpb.Record

	// Initial storage for slices, which suffices for most evaluations and saves
	// allocations.
	fewResources [1]resource
	fewDecisions [1]decision
	fewMaterials [2]*fsmpb.Material
	fewSecrets   [1][]byte
}

// readSet has room for what most evaluations of the root user read and use, in one allocation.
// It is separate from the evaluation, which holds secrets, because the log may keep it for
// longer.
type readSet struct {
	reads    [4]*fsmpb.Read
	uses     [2]*fsmpb.Use
	eachRead [4]fsmpb.Read
	eachUse  [2]fsmpb.Use
}

// largerReadSet is readSet for callers who have policies of their own, each of which is read.
type largerReadSet struct {
	reads    [8]*fsmpb.Read
	uses     [2]*fsmpb.Use
	eachRead [8]fsmpb.Read
	eachUse  [2]fsmpb.Use
}

func newAttempt(ctx context.Context, svc *Services, s *fsm.State, c *iam.Caller, op *Operation, in any) *Attempt {
	ev := new(Attempt)
	ev.Evaluation = Evaluation{
		Ctx: ctx, Services: svc, State: s, Caller: c, Op: op, Input: in,
		resources: ev.fewResources[:0], decisions: ev.fewDecisions[:0], materials: ev.fewMaterials[:0], secrets: ev.fewSecrets[:0],
	}
	if c.Identity.Principal().Kind == policy.KindRoot {
		d := new(readSet)
		ev.Reads, ev.freeReads, ev.uses, ev.freeUses = d.reads[:0], d.eachRead[:], d.uses[:0], d.eachUse[:]
	} else {
		d := new(largerReadSet)
		ev.Reads, ev.freeReads, ev.uses, ev.freeUses = d.reads[:0], d.eachRead[:], d.uses[:0], d.eachUse[:]
	}
	return ev
}

// take returns the next element of a preallocated slice. If none is left, it allocates a few
// at once: what needs one more than most often needs several.
func take[T any](free *[]T) *T {
	if len(*free) == 0 {
		*free = make([]T, 4)
	}
	t := &(*free)[0]
	*free = (*free)[1:]
	return t
}

// Evaluate runs the operation on a state and builds its record. The attempt has an error
// and no record if the node is sealed, if the caller's credential is no longer valid, or if
// something outside the cluster must be called first.
func Evaluate(ctx context.Context, svc *Services, s *fsm.State, c *iam.Caller, op *Operation, in any) *Attempt {
	c.Trace.Next(trace.Decide)
	defer c.Trace.Stop()
	ev := newAttempt(ctx, svc, s, c, op, in)
	if ev.Err = ev.Admit(); ev.Err != nil && !ev.Known(ev.Err) {
		return ev
	}
	if ev.Err = cmp.Or(ev.Err, inRegion(&ev.Evaluation), checkSource(&ev.Evaluation), checkSession(&ev.Evaluation), checkBreakGlass(&ev.Evaluation)); ev.Err == nil {
		if ev.Err = op.input.Validate(in); ev.Err == nil {
			if ev.Err = svc.mayGrow(op); ev.Err == nil {
				if ev.Out, ev.Err = op.run(&ev.Evaluation, in); ev.Err == nil {
					ev.Err = writable(&ev.Evaluation)
				}
			}
		}
	}
	if ev.Err != nil {
		ev.Wipe()
		ev.Out, ev.Changes, ev.uses, ev.Later = nil, nil, nil, nil
		if errors.Is(ev.Err, ErrOutside) {
			return ev
		}
		told := Told(svc.Log, op, c, ev.Err)
		if told == ev.denied { // and not an error in its place that says less
			told.Encoded = encodeDenial(&ev.Evaluation)
		}
		ev.Err = told
	}
	var err error
	if ev.Record, err = ev.newRecord(); err != nil {
		ev.Wipe()
		ev.Out, ev.Err, ev.Record = nil, err, nil
	}
	return ev
}

// Decided returns the record of the outcome, or the error of an evaluation that has none.
func (ev *Attempt) Decided() (*fsmpb.Record, error) {
	if ev.Record == nil {
		return nil, ev.Err
	}
	return ev.Record, nil
}

// writable refuses changes that the cluster's feature level does not allow yet, because a
// node of the release before could not read them.
func writable(ev *Evaluation) error {
	for _, c := range ev.Changes {
		if err := ev.State.Allows(c); err != nil {
			return kmsapi.Errorf(kmsapi.ErrUnsupported, "This cannot be done yet: %v.", err)
		}
	}
	return nil
}

// inRegion refuses a request that was signed for a Region that the cluster does not serve,
// unless the cluster accepts any. What IAM and STS have is in no Region, and clients of IAM
// always sign for us-east-1.
func inRegion(ev *Evaluation) error {
	if ev.Op.Service == IAM || ev.Op.Service == STS {
		return nil
	}
	c := ev.Cluster()
	if r := ev.Caller.Region; r != "" && !ServesRegion(c, r) && !c.AnyRegion {
		return kmsapi.Errorf(kmsapi.ErrInvalidSignature, "Credential should be scoped to a valid region, not '%s'.", r)
	}
	return nil
}

// ErrNoSource is returned to callers that set a source ARN and are not services. Otherwise
// they could use grants that are limited to requests on behalf of that resource.
var ErrNoSource = kmsapi.Errorf(kmsapi.ErrAccessDenied, "Only service principals make requests on behalf of a resource.")

// checkSource checks that the caller may set a source ARN and that it is well-formed.
func checkSource(ev *Evaluation) error {
	switch arn := ev.Caller.SourceArn; {
	case arn == "":
		return nil
	case ev.Principal().Kind != policy.KindService:
		return ErrNoSource
	case len(arn) > iam.MaxSourceARN || !kmsapi.PatternOf("sourceArn").Match(arn):
		return kmsapi.Errorf(kmsapi.ErrValidation, "The source ARN of the request is not the ARN of a resource.")
	}
	return nil
}

// checkSession refuses what AWS refuses to credentials of GetSessionToken for which no device
// has vouched: all operations of IAM, and those of STS but two.
func checkSession(ev *Evaluation) error {
	if ev.who.Session.GetParent() == "" || ev.Op.Service != IAM && ev.Op.Service != STS || ev.Op.Name == "AssumeRole" || ev.Op.Name == "GetCallerIdentity" {
		return nil
	}
	return kmsapi.Errorf(kmsapi.ErrAccessDenied, "Cannot call %s with session credentials", ev.Op.Name)
}

// Told returns the error that a caller gets. Internal errors are hidden from the caller and
// logged here, once; a *kmsapi.Error is returned as it is, and was logged, if at all, where
// it was made.
func Told(log *slog.Logger, op *Operation, c *iam.Caller, err error) *kmsapi.Error {
	t, ok := errors.AsType[*kmsapi.Error](err)
	if !ok {
		t = kmsapi.ErrInternal
	}
	if t.Code == kmsapi.ErrInternal.Code && err != error(t) {
		log.Error("request failed", "operation", op.Name, "request_id", record.UUID(c.RequestID), "err", err)
	}
	return t
}
