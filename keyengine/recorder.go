package keyengine

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

// recordClock is a node's time.
type recordClock interface{ Now() time.Time }

// recordLog is what records need of the replicated log.
type recordLog interface {
	State() *fsm.State
	Propose(ctx context.Context, r *fsmpb.Record) (fsm.Decision, error)
	WaitApplied(ctx context.Context, index uint64) error
}

// recorder commits events. It is the one way to record what is no operation of Do.
type recorder struct {
	node    string // that stands in the records
	vault   *vault.Vault
	replica recordLog
	clock   recordClock
	log     *slog.Logger
	pending *pendingEvents
}

// seal builds and seals an event's record. The state's cluster may not stand
// yet, when the event founds it.
func (r *recorder) seal(o *vault.Opened, c *fsmpb.Cluster, ev event) (*fsmpb.Record, error) {
	if ev.requestID == ([16]byte{}) {
		_, _ = rand.Read(ev.requestID[:]) // never fails: crypto/rand ends the process instead
	}
	if ev.region == "" {
		ev.region = c.GetRegion()
	}
	now := r.clock.Now()
	if ev.at.IsZero() {
		ev.at = now
	}
	salt := make([]byte, 16)
	_, _ = rand.Read(salt)
	rec := &auditpb.Record{
		Schema: auditlog.RecordSchema, Salt: salt, RequestId: ev.requestID[:], EventTime: ev.at.UnixNano(),
		EventName: ev.name, EventType: ev.kind, EventSource: sourceConclave, Identity: ev.identity,
		SourceIp: ev.sourceIP, UserAgent: ev.userAgent, Region: ev.region, Transport: ev.transport,
		RequestParameters: ev.parameters, ResponseElements: ev.response, ServiceEventDetails: ev.details,
		Tls: ev.tls, Resources: ev.resources, ReadOnly: ev.readOnly, Node: r.node, RecipientAccountId: c.GetAccount(),
	}
	if ev.kind == eventService {
		rec.EventSource = sourceKMS
	}
	rec.ErrorCode, rec.ErrorMessage = outcome(ev.err)
	plain, err := auditlog.EncodeRecord(rec)
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w", ev.name, err)
	}
	body, generation, sealSalt, commitment, err := o.SealBody(now, ev.requestID, plain)
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w", ev.name, err)
	}
	return &fsmpb.Record{
		RequestId: ev.requestID[:], Commitment: commitment[:], Body: body, Generation: generation, Salt: sealSalt[:],
		Reads: ev.reads, NotBefore: ev.notBefore, NotAfter: ev.notAfter, Changes: ev.changes,
	}, nil
}

// commit records an event. An error means that it is not recorded, unless
// it says that this is unknown.
func (r *recorder) commit(ctx context.Context, ev event) (fsm.Decision, error) {
	o, err := r.vault.Current()
	if err != nil {
		return fsm.Decision{}, err
	}
	c, _ := r.replica.State().Cluster()
	rec, err := r.seal(o, c, ev)
	if err != nil {
		return fsm.Decision{}, err
	}
	d, err := r.replica.Propose(ctx, rec)
	if err != nil {
		return fsm.Decision{}, unavailable(err)
	}
	return d, nil
}

// accepted is commit's answer for events that the log takes unless
// something is wrong.
func accepted(name string, d fsm.Decision, err error) error {
	if err != nil {
		return err
	}
	if d.Verdict != fsm.Accepted {
		return fmt.Errorf("record of %s found %v", name, d.Verdict)
	}
	return nil
}

// settled is accepted for events that may read what changes meanwhile: errConflict
// says, once this node has the change, that they are to be decided again.
func (r *recorder) settled(ctx context.Context, name string, d fsm.Decision, err error) error {
	if err == nil && d.Verdict == fsm.Conflict {
		if err := r.replica.WaitApplied(ctx, d.Index); err != nil {
			return unavailable(err)
		}
		return errConflict
	}
	return accepted(name, d, err)
}

// run records pending events until ctx ends.
func (r *recorder) run(ctx context.Context) {
	retry := time.NewTicker(time.Second)
	defer retry.Stop()
	for {
		r.recordPending(ctx)
		select {
		case <-ctx.Done():
			return
		case <-r.pending.wake:
		case <-retry.C:
		}
	}
}

// recordPending records what it can of the pending events, in order. One whose
// outcome is unknown is recorded again: better twice than not at all. The second
// has a request id of its own, as an id that stands twice in the audit log is a
// sign that somebody copied a record.
func (r *recorder) recordPending(ctx context.Context) {
	r.pending.recording.Lock()
	defer r.pending.recording.Unlock()
	for !r.vault.Sealed() {
		ev, ok := r.pending.first()
		if !ok {
			return
		}
		d, err := r.commit(ctx, ev)
		if err != nil {
			r.pending.renew()
			if ctx.Err() == nil {
				r.log.Warn("an event is not recorded yet", "event", ev.name, "err", err)
			}
			return
		}
		if d.Verdict != fsm.Accepted {
			// It has no read set, so the log can only refuse it for a fault in its
			// making, and would again.
			r.log.Error("an event could not be recorded", "event", ev.name, "verdict", d.Verdict.String())
		}
		r.pending.done(ev)
	}
}

// recordPendingWithin is recordPending with a bound of its own.
func (r *recorder) recordPendingWithin(ctx context.Context, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r.recordPending(ctx)
}

// nowIn is the clock's time, but never before the cluster time of a state.
func nowIn(s *fsm.State, clock recordClock) time.Time {
	t := clock.Now()
	if c := time.Unix(0, s.Time()); c.After(t) {
		return c
	}
	return t
}

// maxTries is how often a node evaluates a request whose read set keeps
// changing, before the leader executes it.
const maxTries = 3
