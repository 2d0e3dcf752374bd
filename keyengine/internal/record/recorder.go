package record

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// Clock is a node's time.
type Clock interface{ Now() time.Time }

// Log is what records need of the replicated log.
type Log interface {
	State() *fsm.State
	Propose(ctx context.Context, r *fsmpb.Record) (fsm.Decision, error)
	WaitApplied(ctx context.Context, index uint64) error
}

// Recorder commits events. It is the one way to record what is no operation of Do.
type Recorder struct {
	Node    string // that stands in the records
	Vault   *vault.Vault
	Replica Log
	Clock   Clock
	Log     *slog.Logger
	Pending *Pending
}

// Seal builds and seals an event's record. The state's cluster may not stand
// yet, when the event founds it.
func (r *Recorder) Seal(o *vault.Opened, c *fsmpb.Cluster, ev Event) (*fsmpb.Record, error) {
	if ev.RequestID == ([16]byte{}) {
		_, _ = rand.Read(ev.RequestID[:]) // never fails: crypto/rand ends the process instead
	}
	if ev.Region == "" {
		ev.Region = c.GetRegion()
	}
	now := r.Clock.Now()
	if ev.At.IsZero() {
		ev.At = now
	}
	salt := make([]byte, 16)
	_, _ = rand.Read(salt)
	rec := &auditpb.Record{
		Schema: auditlog.RecordSchema, Salt: salt, RequestId: ev.RequestID[:], EventTime: ev.At.UnixNano(),
		EventName: ev.Name, EventType: ev.Kind, EventSource: sourceConclave, Identity: ev.Identity,
		SourceIp: ev.SourceIP, UserAgent: ev.UserAgent, Region: ev.Region, Transport: ev.Transport,
		RequestParameters: ev.Parameters, ResponseElements: ev.Response, ServiceEventDetails: ev.Details,
		Tls: ev.TLS, Resources: ev.Resources, ReadOnly: ev.ReadOnly, Node: r.Node, RecipientAccountId: c.GetAccount(),
	}
	if ev.Kind == KindService {
		rec.EventSource = SourceKMS
	}
	rec.ErrorCode, rec.ErrorMessage = Outcome(ev.Err)
	plain, err := auditlog.EncodeRecord(rec)
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w", ev.Name, err)
	}
	body, generation, sealSalt, commitment, err := o.SealBody(now, ev.RequestID, plain)
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w", ev.Name, err)
	}
	return &fsmpb.Record{
		RequestId: ev.RequestID[:], Commitment: commitment[:], Body: body, Generation: generation, Salt: sealSalt[:],
		Reads: ev.Reads, NotBefore: ev.NotBefore, NotAfter: ev.NotAfter, Changes: ev.Changes,
	}, nil
}

// Commit records an event. An error means that it is not recorded, unless
// it says that this is unknown.
func (r *Recorder) Commit(ctx context.Context, ev Event) (fsm.Decision, error) {
	o, err := r.Vault.Current()
	if err != nil {
		return fsm.Decision{}, err
	}
	c, _ := r.Replica.State().Cluster()
	rec, err := r.Seal(o, c, ev)
	if err != nil {
		return fsm.Decision{}, err
	}
	d, err := r.Replica.Propose(ctx, rec)
	if err != nil {
		return fsm.Decision{}, Unavailable(err)
	}
	return d, nil
}

// Accepted is commit's answer for events that the log takes unless
// something is wrong.
func Accepted(name string, d fsm.Decision, err error) error {
	if err != nil {
		return err
	}
	if d.Verdict != fsm.Accepted {
		return fmt.Errorf("record of %s found %v", name, d.Verdict)
	}
	return nil
}

// Settled is accepted for events that may read what changes meanwhile: errConflict
// says, once this node has the change, that they are to be decided again.
func (r *Recorder) Settled(ctx context.Context, name string, d fsm.Decision, err error) error {
	if err == nil && d.Verdict == fsm.Conflict {
		if err := r.Replica.WaitApplied(ctx, d.Index); err != nil {
			return Unavailable(err)
		}
		return ErrConflict
	}
	return Accepted(name, d, err)
}

// Run records pending events until ctx ends.
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

// RecordPending records what it can of the pending events, in order. One whose
// outcome is unknown is recorded again: better twice than not at all. The second
// has a request id of its own, as an id that stands twice in the audit log is a
// sign that somebody copied a record.
func (r *Recorder) RecordPending(ctx context.Context) {
	r.Pending.recording.Lock()
	defer r.Pending.recording.Unlock()
	for !r.Vault.Sealed() {
		ev, ok := r.Pending.First()
		if !ok {
			return
		}
		d, err := r.Commit(ctx, ev)
		if err != nil {
			r.Pending.renew()
			if ctx.Err() == nil {
				r.Log.Warn("an event is not recorded yet", "event", ev.Name, "err", err)
			}
			return
		}
		if d.Verdict != fsm.Accepted {
			// It has no read set, so the log can only refuse it for a fault in its
			// making, and would again.
			r.Log.Error("an event could not be recorded", "event", ev.Name, "verdict", d.Verdict.String())
		}
		r.Pending.Done(ev)
	}
}

// RecordPendingWithin is recordPending with a bound of its own.
func (r *Recorder) RecordPendingWithin(ctx context.Context, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r.RecordPending(ctx)
}

// Now is the clock's time, but never before the cluster time of a state.
func Now(s *fsm.State, clock Clock) time.Time {
	t := clock.Now()
	if c := time.Unix(0, s.Time()); c.After(t) {
		return c
	}
	return t
}

// MaxTries is how often a node evaluates a request whose read set keeps
// changing, before the leader executes it.
const MaxTries = 3
