package keyengine

import (
	"context"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// How often the leader looks for keys to delete, and how long it leaves one
// alone that the log said it was early for. All real time.
const (
	dueLookMin  = time.Second
	dueLookMax  = 30 * time.Second
	dueEarlyMin = 2 * time.Second
	dueEarlyMax = time.Minute
)

// dueKey is a key that is to be deleted.
type dueKey struct {
	id      fsm.KeyID
	version fsm.Version
	at      int64 // cluster time, Unix nanoseconds
}

// due finds the keys whose time has come. All keys are looked at only when the
// state has changed, and at most every dueLookMax: a key is scheduled days before
// its time.
type due struct {
	e       *Engine
	index   uint64 // of the state that pending is from
	looked  time.Time
	pending []dueKey
	early   map[fsm.KeyID]time.Duration // how long to wait after an early try
	retry   map[fsm.KeyID]time.Time
}

// runDue deletes keys whose time has come, until ctx ends. It runs on the
// leader, but what keeps a key from being deleted early or twice is the log: the
// record is refused before the key's time by cluster time, and when the key is
// no longer the one that was looked at. A sealed leader can record nothing and so
// deletes nothing; it is the next one's turn.
func (e *Engine) runDue(ctx context.Context) {
	d := newDue(e)
	for {
		wait := dueLookMin
		if !e.vault.sealed() && e.replica.IsLeader() {
			wait = d.round(ctx, time.Now())
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func newDue(e *Engine) *due {
	return &due{e: e, early: make(map[fsm.KeyID]time.Duration), retry: make(map[fsm.KeyID]time.Time)}
}

// round deletes what is due, and returns how long to wait for the next. now is
// real time.
func (d *due) round(ctx context.Context, now time.Time) time.Duration {
	s := d.e.replica.State()
	if d.looked.IsZero() || now.Sub(d.looked) >= dueLookMax && s.Index() != d.index {
		d.look(s, now)
	}
	// Whichever says that a key is due is good enough to ask: the log decides.
	clock := d.e.now(s).UnixNano()
	wait := dueLookMax
	rest := d.pending[:0]
	for _, k := range d.pending {
		if ctx.Err() != nil {
			return 0
		}
		left := time.Duration(k.at - clock)
		if again, ok := d.retry[k.id]; ok {
			left = max(left, again.Sub(now))
		}
		if left <= 0 && !d.delete(ctx, k, now) {
			left = d.retry[k.id].Sub(now)
		}
		if left > 0 {
			rest = append(rest, k)
			wait = min(wait, left)
		}
	}
	d.pending = rest
	return max(wait, dueLookMin)
}

// look lists the keys that are to be deleted.
func (d *due) look(s *fsm.State, now time.Time) {
	d.pending, d.index, d.looked = d.pending[:0], s.Index(), now
	early, retry := d.early, d.retry
	d.early, d.retry = make(map[fsm.KeyID]time.Duration), make(map[fsm.KeyID]time.Time)
	for k := range s.AllKeys() {
		if k.State != fsmpb.KeyState_KEY_STATE_PENDING_DELETION || len(k.Id) != 16 {
			continue
		}
		id := fsm.KeyID{Region: k.Region, ID: [16]byte(k.Id)}
		d.pending = append(d.pending, dueKey{id: id, version: k.Version, at: k.DeletionTime})
		if at, ok := retry[id]; ok {
			d.early[id], d.retry[id] = early[id], at
		}
	}
}

// delete asks the log to delete a key. It reports whether that is settled: done,
// or no longer to be done, as far as the next look does not find otherwise. If
// not, it sets when to try again.
func (d *due) delete(ctx context.Context, k dueKey, now time.Time) bool {
	e := d.e
	s := e.replica.State()
	key, version := s.Key(k.id)
	if key == nil || version != k.version {
		return true
	}
	c, _ := s.Cluster()
	arn := keyARN(c, k.id.Region, formatKeyID(k.id.ID, key.MultiRegion))
	dec, err := e.commitEvent(ctx, event{
		name: "DeleteKey", kind: eventService, sourceIP: internalCaller, userAgent: internalCaller,
		identity:  &auditpb.Identity{AccountId: c.Account, InvokedBy: internalCaller},
		details:   []*auditpb.Field{text("keyId", arn)},
		resources: []*auditpb.Resource{{Type: "AWS::KMS::Key", AccountId: c.Account, Arn: arn}},
		reads:     []*fsmpb.Read{{Kind: fsmpb.Kind_KIND_KEY, Id: k.id.Bytes(), Version: k.version}},
		changes:   []*fsmpb.Change{{Change: &fsmpb.Change_DeleteKey{DeleteKey: &fsmpb.DeleteKey{Key: k.id.ID[:], Region: k.id.Region}}}},
	})
	switch {
	case err == nil && dec.Verdict == fsm.Accepted:
		e.log.Info("key deleted", "key_id", k.id.String())
		return true
	case err == nil && dec.Verdict == fsm.Conflict:
		return true
	case err == nil && dec.Verdict != fsm.Early:
		e.log.Error("a key that is due could not be deleted", "key_id", k.id.String(), "verdict", dec.Verdict.String())
	case err != nil && ctx.Err() == nil:
		e.log.Warn("a key that is due is not deleted yet", "key_id", k.id.String(), "err", err)
	}
	// A clock that runs ahead of cluster time would ask all the time.
	wait := min(max(2*d.early[k.id], dueEarlyMin), dueEarlyMax)
	d.early[k.id], d.retry[k.id] = wait, now.Add(wait)
	return false
}

// internalCaller is what AWS writes for what a service does by itself.
const internalCaller = "AWS Internal"
