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

// How often the leader looks for what is due on keys, and how long it leaves a key
// alone that could not be done yet. All real time.
const (
	lookMin  = time.Second
	LookMax  = 30 * time.Second
	retryMin = 2 * time.Second
	RetryMax = time.Minute
)

// duty is a kind of thing that happens to keys by itself when its time has come.
type duty struct {
	// event is the name of its record.
	event string
	// at is when a key is due, in cluster time; false when it is not.
	at func(c *fsmpb.Cluster, s *fsm.State, k *fsmpb.Key) (int64, bool)
	// do makes the changes, and says what the record tells beside the key. It must
	// note all that it reads.
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

// rotationDue: a disabled key is due once it is enabled again. Replicas follow
// their primary.
func rotationDue(_ *fsmpb.Cluster, _ *fsm.State, k *fsmpb.Key) (int64, bool) {
	return k.Rotation.GetNext(), k.Rotation.GetEnabled() && k.State == fsmpb.KeyState_KEY_STATE_ENABLED &&
		k.Origin == kmsapi.OriginKMS && k.Spec == kmsapi.SpecSymmetric && !request.Replica(k)
}

func expiryDue(_ *fsmpb.Cluster, _ *fsm.State, k *fsmpb.Key) (int64, bool) {
	at := request.Expires(k)
	return at, at != 0 && k.Origin == kmsapi.OriginImported
}

// expireDue destroys material that has expired. It has not been used since (see
// asOf).
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

// windowDue: a primary that is to be deleted waits until its last replica is gone.
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

// startWindow lets the time run after which a primary without replicas is deleted.
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

// dueID names something that is to happen to a key.
type dueID struct {
	key  fsm.KeyID
	duty *duty
}

// dueKey is a key that something is to happen to.
type dueKey struct {
	dueID
	version fsm.Version
	at      int64 // cluster time, Unix nanoseconds
}

// Schedule finds the keys whose time has come. All keys are looked at only when the
// state has changed, and at most every dueLookMax: what is due soon after that is
// a little late, which only expiry could mind, and use of expired material is
// refused by itself.
type Schedule struct {
	cfg     Config
	index   uint64 // of the state that pending is from
	looked  time.Time
	pending []dueKey
	waits   map[dueID]time.Duration // the last wait after a try
	retry   map[dueID]time.Time
}

// Config is what a schedule works with.
type Config struct {
	Services *request.Services
	Replica  Replica
	Events   *record.Recorder
}

// Replica is what a schedule needs of the replicated log.
type Replica interface {
	State() *fsm.State
	// IsLeader reports whether this node believes that it leads.
	IsLeader() bool
}

// Run does what is due on keys until ctx ends. It runs on the leader, but what
// keeps a thing from happening early or twice is the log: the record is refused
// before its time by cluster time, and when the key is no longer the one that was
// looked at. A sealed leader can record nothing and so does nothing; it is the next
// one's turn.
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

// New returns a schedule, which looks at all keys first.
func New(cfg Config) *Schedule {
	return &Schedule{cfg: cfg, waits: make(map[dueID]time.Duration), retry: make(map[dueID]time.Time)}
}

// Round does what is due, and returns how long to wait for the next. now is real
// time.
func (d *Schedule) Round(ctx context.Context, now time.Time) time.Duration {
	s := d.cfg.Replica.State()
	if d.looked.IsZero() || now.Sub(d.looked) >= LookMax && s.Index() != d.index {
		d.Look(s, now)
	}
	// Whichever says that a key is due is good enough to ask: the log decides.
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

// Look lists what is to happen to keys.
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

// act asks the log to have a thing happen. It reports whether that is settled:
// done, or no longer to be done, as far as the next look does not find otherwise.
// If not, it sets when to try again.
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
		// A clock that runs ahead of cluster time would ask all the time. Cluster
		// time passes no slower than real time, unless it stands still.
		wait = time.Duration(k.at - d.cfg.Replica.State().Time())
	case err == nil && dec.Verdict != fsm.Late:
		log.Error("what is due on a key could not be done", "verdict", dec.Verdict.String())
	case err != nil && ctx.Err() == nil:
		log.Warn("what is due on a key is not done yet", "err", err)
	}
	wait = min(max(wait, retryMin), RetryMax)
	d.waits[k.dueID], d.retry[k.dueID] = wait, now.Add(wait)
	return false
}

// event is the event that does what is due on a key; nil when that is no longer
// to be done.
func (d *Schedule) event(ctx context.Context, k dueKey) (*record.Event, error) {
	s := d.cfg.Replica.State()
	key, version := s.Key(k.key)
	if key == nil || version != k.version {
		return nil, nil
	}
	ev := &request.Evaluation{Ctx: ctx, Services: d.cfg.Services, State: s}
	ev.Note(fsmpb.Kind_KIND_KEY, k.key.Bytes(), version)
	c := ev.Cluster()
	// The key as it is stored: not all that is due on it may have happened to it as
	// of now.
	t := &request.Target{ID: k.key, Key: key, ARN: request.KeyARN(c, k.key.Region, request.FormatKeyID(k.key.ID, key.MultiRegion))}
	ev.Within(k.at, 0)
	details, err := k.duty.do(ev, t, k.at)
	if err != nil || len(ev.Changes) == 0 {
		return nil, err
	}
	return &record.Event{
		Name: k.duty.event, Kind: record.KindService, Region: k.key.Region, SourceIP: record.InternalCaller, UserAgent: record.InternalCaller,
		Identity:  &auditpb.Identity{AccountId: c.Account, InvokedBy: record.InternalCaller},
		Details:   append([]*auditpb.Field{auditfield.Text("keyId", t.ARN)}, details...),
		Resources: []*auditpb.Resource{{Type: "AWS::KMS::Key", AccountId: c.Account, Arn: t.ARN}},
		Reads:     ev.Reads, Changes: ev.Changes, NotBefore: ev.NotBefore, NotAfter: ev.NotAfter,
	}, nil
}
