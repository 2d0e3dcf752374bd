package record

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Clock tells the time of a node.
type Clock interface{ Now() time.Time }

// Log is the part of the replicated log that a Recorder uses.
type Log interface {
	State() *fsm.State
	Propose(ctx context.Context, r *fsmpb.Record) (fsm.Decision, error)
	WaitApplied(ctx context.Context, index uint64) error
}

// Recorder commits records. All records go through it, except for those that are built in
// ProposeExclusive and that of Init.
type Recorder struct {
	Node    string // id of this node, for the records
	Vault   *vault.Vault
	Replica Log
	Clock   Clock
	Log     *slog.Logger
	Pending *Pending
}

// MaxTries is how many times a request is evaluated when its read set keeps changing.
const MaxTries = 3

// Commit evaluates and commits a record: decide builds it from the newest state, and it is
// proposed. If an object of its read set has changed, or the time is outside its limits,
// decide is called again on a state that includes the change, at most MaxTries times in
// all; after that Commit returns [ErrConflict]. An error of decide is returned at once, and
// nothing is proposed. If Commit returns no error, the record was accepted.
func (r *Recorder) Commit(ctx context.Context, decide func(*fsm.State) (*fsmpb.Record, error)) (fsm.Decision, error) {
	for range MaxTries {
		rec, err := decide(r.Replica.State())
		if err != nil {
			return fsm.Decision{}, err
		}
		d, err := r.Replica.Propose(ctx, rec)
		if err = r.Settle(ctx, d, err); err != ErrConflict {
			return d, err
		}
	}
	return fsm.Decision{}, ErrConflict
}

// Settle translates the result of a proposal into an error: nil if the record was accepted,
// or [ErrConflict] if it must be evaluated again, after this node has applied the
// conflicting change. Other errors may be returned to callers.
func (r *Recorder) Settle(ctx context.Context, d fsm.Decision, err error) error {
	if err != nil {
		return Unavailable(err)
	}
	switch d.Verdict {
	case fsm.Accepted:
		return nil
	case fsm.Conflict, fsm.Early, fsm.Late:
		if err := r.Replica.WaitApplied(ctx, d.Index); err != nil {
			return Unavailable(err)
		}
		return ErrConflict
	}
	return fmt.Errorf("the log found %v of a record", d.Verdict)
}

// CommitEvent is Commit for an event instead of a record.
func (r *Recorder) CommitEvent(ctx context.Context, decide func(*fsm.State) (Event, error)) (fsm.Decision, error) {
	return r.Commit(ctx, func(s *fsm.State) (*fsmpb.Record, error) {
		ev, err := decide(s)
		if err != nil {
			return nil, err
		}
		return r.build(s, ev)
	})
}

// ChangeCluster is CommitEvent for an event of an operator that replaces the cluster's record.
// All its errors may be returned to the operator.
func (r *Recorder) ChangeCluster(ctx context.Context, decide func(*fsm.State) (Event, error)) (fsm.Decision, error) {
	d, err := r.CommitEvent(ctx, decide)
	if err == ErrConflict {
		err = kmsapi.Errorf(kmsapi.ErrUnavailable, "The cluster's record keeps changing. Try again.")
	}
	return d, err
}

// Record is CommitEvent for an event that does not depend on the state.
func (r *Recorder) Record(ctx context.Context, ev Event) (fsm.Decision, error) {
	return r.CommitEvent(ctx, func(*fsm.State) (Event, error) { return ev, nil })
}

// Propose proposes an event once and returns the decision, whatever its verdict.
func (r *Recorder) Propose(ctx context.Context, ev Event) (fsm.Decision, error) {
	rec, err := r.build(r.Replica.State(), ev)
	if err != nil {
		return fsm.Decision{}, err
	}
	d, err := r.Replica.Propose(ctx, rec)
	if err != nil {
		return fsm.Decision{}, Unavailable(err)
	}
	return d, nil
}

func (r *Recorder) build(s *fsm.State, ev Event) (*fsmpb.Record, error) {
	o, err := r.Vault.Current()
	if err != nil {
		return nil, err
	}
	c, _ := s.Cluster()
	return Build(o, r.Node, r.Clock.Now(), c, s.Level(), &ev)
}

// Run records pending events as they arrive, until ctx ends.
func (r *Recorder) Run(ctx context.Context) {
	retry := time.NewTicker(time.Second)
	defer retry.Stop()
	for {
		r.RecordPending(ctx)
		select {
		case <-ctx.Done():
			return
		case <-r.Pending.wake:
		case <-retry.C:
		}
	}
}

// RecordPending records pending events in order, until one fails. An event whose outcome is
// unknown is recorded again, because twice is better than not at all. The second record
// gets a request id of its own: a request id that occurs twice in the audit log is a sign
// that a record was copied.
func (r *Recorder) RecordPending(ctx context.Context) {
	r.Pending.recording.Lock()
	defer r.Pending.recording.Unlock()
	for !r.Vault.Sealed() {
		ev, ok := r.Pending.First()
		if !ok {
			return
		}
		d, err := r.Propose(ctx, ev)
		if err != nil {
			r.Pending.renew()
			if ctx.Err() == nil {
				r.Log.Warn("recording an event failed and will be retried", "event", ev.Name, "err", err)
			}
			return
		}
		if d.Verdict != fsm.Accepted {
			// An event without a read set is only rejected if it is malformed, and would be
			// rejected again.
			r.Log.Error("an event could not be recorded", "event", ev.Name, "verdict", d.Verdict.String())
		}
		r.Pending.Done(ev)
	}
}

// RecordPendingWithin is RecordPending with a timeout.
func (r *Recorder) RecordPendingWithin(ctx context.Context, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r.RecordPending(ctx)
}

// Now returns the time of the clock or the cluster time of the state, whichever is later.
func Now(s *fsm.State, clock Clock) time.Time {
	t := clock.Now()
	if c := time.Unix(0, s.Time()); c.After(t) {
		return c
	}
	return t
}
