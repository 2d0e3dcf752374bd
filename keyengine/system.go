package keyengine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// Kinds of events that are no operation of Do, as eventType has them.
const (
	eventService  = "AwsServiceEvent"       // the service did it by itself
	eventOperator = "ConclaveOperatorEvent" // an operator did it
	eventConclave = "ConclaveApiCall"       // a caller did it with something that AWS does not have
)

const (
	sourceKMS      = "kms.amazonaws.com"
	sourceConclave = "conclave"
)

var errHeldUp = kmsapi.Errorf(kmsapi.ErrUnavailable, "The response missed its release deadline and was discarded. Retry the request.")

// event is a record beside those of operations: what operators and the service
// itself do.
type event struct {
	name, kind string
	region     string    // the cluster's first when empty
	requestID  RequestID // made up when zero
	at         time.Time // now when zero
	identity   *auditpb.Identity
	sourceIP   string
	userAgent  string
	transport  string
	tls        TLS
	err        error
	readOnly   bool

	parameters, response, details []*auditpb.Field
	resources                     []*auditpb.Resource

	reads   []*fsmpb.Read
	changes []*fsmpb.Change
	// The cluster time in which the event may happen; 0 leaves a side open.
	notBefore, notAfter int64

	// summary stands for itself and times-1 more of its kind, up to last.
	summary bool
	times   int
	last    time.Time
}

func principalIdentity(p policy.Principal, credential string) *auditpb.Identity {
	id := new(auditpb.Identity)
	fillIdentity(id, p, credential)
	return id
}

// fillIdentity says in a record whom it is about.
func fillIdentity(id *auditpb.Identity, p policy.Principal, credential string) {
	id.Arn, id.AccountId, id.PrincipalId, id.UserName = p.ARN, p.Account, p.Account, p.Name
	switch p.Kind {
	case policy.KindRoot:
		id.Type = "Root"
	case policy.KindUser:
		id.Type = "IAMUser"
	case policy.KindService:
		id.Type, id.InvokedBy, id.Arn = "AWSService", p.Name, ""
	default:
		id.Type = p.Kind.String()
	}
	if isAccessKeyID(credential) {
		id.AccessKeyId = credential
	} else {
		id.Certificate = credential
	}
}

// recorder commits events. It is the one way to record what is no operation of Do.
type recorder struct {
	node    string // that stands in the records
	vault   *vault.Vault
	replica Replica
	clock   Clock
	log     *slog.Logger
	pending *pendingEvents
}

// seal builds and seals an event's record. The state's cluster may not stand
// yet, when the event founds it.
func (r *recorder) seal(o *vault.Opened, c *fsmpb.Cluster, ev event) (*fsmpb.Record, error) {
	if ev.requestID == (RequestID{}) {
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
		Resources: ev.resources, ReadOnly: ev.readOnly, Node: r.node, RecipientAccountId: c.GetAccount(),
	}
	if ev.kind == eventService {
		rec.EventSource = sourceKMS
	}
	if ev.tls != (TLS{}) {
		rec.Tls = &auditpb.Tls{Version: ev.tls.Version, Cipher: ev.tls.Cipher}
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

// serviceEvent is an event that nobody asked for.
func serviceEvent(name string, at time.Time, details ...*auditpb.Field) event {
	return event{
		name: name, kind: eventService, at: at,
		identity: &auditpb.Identity{Type: "AWSService", InvokedBy: "Conclave"}, details: details,
	}
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

// runSweeps drops, every second until ctx ends, what must not be kept: shares of
// an abandoned ceremony, keys of what is no more.
func (e *Engine) runSweeps(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		e.expireShares()
		e.withheld.record(e.replica.State())
		e.vault.Sweep(e.replica.State(), e.clock.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// clusterID is the cluster's id as text.
func clusterID(c *fsmpb.Cluster) string { return hex.EncodeToString(c.GetId()) }
