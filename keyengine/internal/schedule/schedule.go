package schedule

import (
	"context"
	"encoding/hex"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// How often the leader looks for keys with a change that is due, and how long it waits
// before it retries a change that could not be made. All are real time.
const (
	lookMin  = time.Second
	LookMax  = 30 * time.Second
	retryMin = 2 * time.Second
	RetryMax = time.Minute
)

// duty is a kind of scheduled change.
type duty struct {
	// event is the event name of its record.
	event string
	// at returns when the change to a key is due, in cluster time, or false if it is not
	// scheduled.
	at func(c *fsmpb.Cluster, s *fsm.State, k *fsmpb.Key) (int64, bool)
	// do adds the changes to the evaluation, and everything that it reads to the read set.
	// It returns the details for the record, in addition to the key.
	do func(ev *request.Evaluation, t *request.Target, at int64) ([]*auditpb.Field, error)
}

var duties = []*duty{
	{"DeleteKey", deletionDue, deleteDue},
	{"RotateKey", rotationDue, ops.RotateDue},
	{"DeleteExpiredKeyMaterial", expiryDue, expireDue},
	{"SynchronizeMultiRegionKey", windowDue, startWindow},
}

func deletionDue(_ *fsmpb.Cluster, _ *fsm.State, k *fsmpb.Key) (int64, bool) {
	return k.DeletionTime, k.State == fsmpb.KeyState_KEY_STATE_PENDING_DELETION
}

func deleteDue(ev *request.Evaluation, t *request.Target, _ int64) ([]*auditpb.Field, error) {
	ev.Change(&fsmpb.Change{Change: &fsmpb.Change_DeleteKey{DeleteKey: &fsmpb.DeleteKey{Account: uint64(t.ID.Account), Key: t.ID.ID[:], Region: t.ID.Region}}})
	return nil, nil
}

// rotationDue excludes disabled keys, which are rotated once they are enabled again, and
// replicas, which follow their primary.
func rotationDue(_ *fsmpb.Cluster, _ *fsm.State, k *fsmpb.Key) (int64, bool) {
	return k.Rotation.GetNext(), k.Rotation.GetEnabled() && k.State == fsmpb.KeyState_KEY_STATE_ENABLED &&
		k.Origin == kmsapi.OriginKMS && k.Spec == kmsapi.SpecSymmetric && !request.Replica(k)
}

func expiryDue(_ *fsmpb.Cluster, _ *fsm.State, k *fsmpb.Key) (int64, bool) {
	at := request.Expires(k)
	return at, at != 0 && k.Origin == kmsapi.OriginImported
}

// expireDue destroys material that has expired. Evaluations have not used it since it
// expired (see asOf in request).
func expireDue(ev *request.Evaluation, t *request.Target, at int64) ([]*auditpb.Field, error) {
	k := proto.CloneOf(t.Key)
	var names []string
	ops.Destroy(k, func(m *fsmpb.Material) bool {
		expired := len(m.Wrapped) > 0 && m.ValidTo != 0 && m.ValidTo <= at
		if expired {
			names = append(names, hex.EncodeToString(m.MaterialId))
		}
		return expired
	})
	if err := ops.PutDestroyed(ev, t, k); err != nil {
		return nil, err
	}
	return []*auditpb.Field{auditfield.TextList("keyMaterialId", names)}, nil
}

// windowDue returns a primary key that is scheduled for deletion once it has no replicas
// any more.
func windowDue(c *fsmpb.Cluster, s *fsm.State, k *fsmpb.Key) (int64, bool) {
	if k.State != fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION || len(k.Id) != 16 {
		return 0, false
	}
	for _, r := range request.Regions(c) {
		if o, _ := s.Key(fsm.KeyID{Account: fsm.Account(k.Account), Region: r, ID: [16]byte(k.Id)}); o != nil && r != k.Region {
			return 0, false
		}
	}
	return s.Time(), true
}

// startWindow starts the waiting period before a primary without replicas is deleted.
func startWindow(ev *request.Evaluation, t *request.Target, _ int64) ([]*auditpb.Field, error) {
	if len(ops.MembersOf(ev, t)) > 1 {
		return nil, nil
	}
	k := proto.CloneOf(t.Key)
	k.State = fsmpb.KeyState_KEY_STATE_PENDING_DELETION
	k.DeletionTime = ops.FromNow(ev).Add(time.Duration(k.DeletionDays) * ops.Day).UnixNano()
	k.DeletionDays = 0
	ops.PutKey(ev, k)
	return []*auditpb.Field{auditfield.Text("deletionDate", auditfield.FormatTime(*ops.TimeOf(k.DeletionTime)))}, nil
}

// dueID identifies a scheduled change to a key.
type dueID struct {
	key  fsm.KeyID
	duty *duty
}

// dueKey is a key with a scheduled change.
type dueKey struct {
	dueID
	version fsm.Version
	at      int64 // cluster time, Unix nanoseconds
}

// Schedule finds the keys with changes that are due. It scans all keys only when the state
// has changed, and at most every LookMax, so a change may be a little late. For expiry this
// does no harm, because expired material is refused anyway.
type Schedule struct {
	cfg     Config
	index   uint64 // of the state that pending was made from
	looked  time.Time
	pending []dueKey
	waits   map[dueID]time.Duration // the last wait before a retry
	retry   map[dueID]time.Time
}

// Config configures a Schedule.
type Config struct {
	Services *request.Services
	Replica  Replica
	Events   *record.Recorder
}

// Replica is the part of the replicated log that a Schedule uses.
type Replica interface {
	State() *fsm.State
	// IsLeader reports whether this node believes that it leads.
	IsLeader() bool
}

// Run makes the scheduled changes until ctx ends, while this node leads. The log ensures
// that none is made early or twice: it rejects a record before its time, by cluster time,
// or if the key has changed since. A sealed leader cannot record anything and does nothing,
// until it is unsealed or another node leads.
func (d *Schedule) Run(ctx context.Context) {
	for {
		wait := lookMin
		if !d.cfg.Services.Vault.Sealed() && d.cfg.Replica.IsLeader() {
			wait = d.Round(ctx, time.Now())
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// New returns a Schedule, which scans all keys in its first round.
func New(cfg Config) *Schedule {
	return &Schedule{cfg: cfg, waits: make(map[dueID]time.Duration), retry: make(map[dueID]time.Time)}
}

// Round makes the changes that are due and returns how long to wait for the next one. now
// is real time.
func (d *Schedule) Round(ctx context.Context, now time.Time) time.Duration {
	s := d.cfg.Replica.State()
	if d.looked.IsZero() || now.Sub(d.looked) >= LookMax && s.Index() != d.index {
		d.Look(s, now)
	}
	// Use the later of both times. The log decides whether a change is due.
	clock := record.Now(s, d.cfg.Services.Clock).UnixNano()
	wait := LookMax
	rest := d.pending[:0]
	for _, k := range d.pending {
		if ctx.Err() != nil {
			return 0
		}
		left := time.Duration(k.at - clock)
		if again, ok := d.retry[k.dueID]; ok {
			left = max(left, again.Sub(now))
		}
		if left <= 0 && !d.act(ctx, k, now) {
			left = d.retry[k.dueID].Sub(now)
		}
		if left > 0 {
			rest = append(rest, k)
			wait = min(wait, left)
		}
	}
	d.pending = rest
	return max(wait, lookMin)
}

// Look lists the scheduled changes of all keys.
func (d *Schedule) Look(s *fsm.State, now time.Time) {
	d.pending, d.index, d.looked = d.pending[:0], s.Index(), now
	waits, retry := d.waits, d.retry
	d.waits, d.retry = make(map[dueID]time.Duration), make(map[dueID]time.Time)
	c, _ := s.Cluster()
	for k := range s.AllKeys() {
		if len(k.Id) != 16 {
			continue
		}
		for _, y := range duties {
			at, ok := y.at(c, s, k)
			if !ok {
				continue
			}
			id := dueID{fsm.IDOf(k), y}
			d.pending = append(d.pending, dueKey{dueID: id, version: k.Version, at: at})
			if again, ok := retry[id]; ok {
				d.waits[id], d.retry[id] = waits[id], again
			}
		}
	}
}

// act proposes a change. It reports whether the change was made or is no longer scheduled;
// the next scan may find it again. Otherwise it sets when to try again.
func (d *Schedule) act(ctx context.Context, k dueKey, now time.Time) bool {
	rec, err := d.event(ctx, k)
	if err == nil && rec == nil {
		return true
	}
	var dec fsm.Decision
	if err == nil {
		dec, err = d.cfg.Events.Propose(ctx, *rec)
	}
	log := d.cfg.Services.Log.With("event", k.duty.event, "key_id", k.key.String())
	wait := 2 * d.waits[k.dueID]
	switch {
	case err == nil && dec.Verdict == fsm.Accepted:
		log.Info("scheduled key action completed")
		return true
	case err == nil && dec.Verdict == fsm.Conflict:
		return true
	case err == nil && dec.Verdict == fsm.Early:
		// With a clock ahead of cluster time, this node would retry all the time. Wait
		// instead for the difference, as cluster time is no slower than real time unless it
		// stands still.
		wait = time.Duration(k.at - d.cfg.Replica.State().Time())
	case err == nil && dec.Verdict != fsm.Late:
		log.Error("scheduled key action was rejected", "verdict", dec.Verdict.String())
	case err != nil && ctx.Err() == nil:
		log.Warn("scheduled key action failed and will be retried", "err", err)
	}
	wait = min(max(wait, retryMin), RetryMax)
	d.waits[k.dueID], d.retry[k.dueID] = wait, now.Add(wait)
	return false
}

// event returns the event that makes a change, or nil if it is no longer scheduled.
func (d *Schedule) event(ctx context.Context, k dueKey) (*record.Event, error) {
	s := d.cfg.Replica.State()
	key, version := s.Key(k.key)
	if key == nil || version != k.version {
		return nil, nil
	}
	ev := &request.Evaluation{Ctx: ctx, Services: d.cfg.Services, State: s}
	ev.Note(fsmpb.Kind_KIND_KEY, k.key.Bytes(), version)
	c := ev.Cluster()
	// Use the key as stored and not as of now, because other scheduled changes may not have
	// been made yet.
	t := &request.Target{ID: k.key, Key: key, ARN: request.KeyARN(c, k.key.Account, k.key.Region, request.FormatKeyID(k.key.ID, key.MultiRegion))}
	ev.Within(k.at, 0)
	details, err := k.duty.do(ev, t, k.at)
	if err != nil || len(ev.Changes) == 0 {
		return nil, err
	}
	return &record.Event{
		Name: k.duty.event, Kind: record.KindService, Region: k.key.Region, SourceIP: record.InternalCaller, UserAgent: record.InternalCaller,
		Identity:  &auditpb.Identity{AccountId: k.key.Account.String(), InvokedBy: record.InternalCaller},
		Details:   append([]*auditpb.Field{auditfield.Text("keyId", t.ARN)}, details...),
		Resources: []*auditpb.Resource{{Type: "AWS::KMS::Key", AccountId: k.key.Account.String(), Arn: t.ARN}},
		Reads:     ev.Reads, Changes: ev.Changes, NotBefore: ev.NotBefore, NotAfter: ev.NotAfter,
	}, nil
}
