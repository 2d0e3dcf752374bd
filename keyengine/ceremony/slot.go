package ceremony

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// stepPatience is how long a call waits until its step is recorded. After that the step is
// recorded later.
const stepPatience = 5 * time.Second

// slot is the custody of the one ceremony of its kind that an unsealed node can have. Each of
// its steps is recorded before it counts.
//
// An operator whose calls are refused too often is throttled, and these calls have no record:
// unlike a sealed node, this one records each refusal at once, and a stolen certificate must
// not fill the log.
type slot struct {
	*custody
	// turn is held during calls that change the ceremony. They wait for records to be
	// committed, and mu must not be held for as long.
	turn chan struct{}

	r      *Ceremonies
	kind   slotKind
	opened *vault.Opened // what the vault held when the ceremony began; guarded by mu
}

// slotKind is what the kinds of ceremonies differ in. Its methods are called with mu held.
type slotKind interface {
	// eventLocked is what the names of the events have of the ceremony, such as "BreakGlass".
	eventLocked() string
	// describeLocked returns the fields of each record of the ceremony, besides those that the
	// slot knows, and submittedLocked those that only the record of a share has.
	describeLocked() []*auditpb.Field
	submittedLocked() []*auditpb.Field
	// setLocked returns the share set that the ceremony waits for, with its commitments.
	setLocked(c *fsmpb.Cluster) (shamir.SetInfo, [][32]byte, error)
	// staleLocked says why the ceremony must end since the cluster has changed, or "".
	staleLocked(c *fsmpb.Cluster) string
	// forgetLocked forgets what the ceremony has besides its shares.
	forgetLocked()
	// gone is the error for a ceremony that is not there.
	gone() error
}

func newSlot(r *Ceremonies, kind slotKind, purpose string, timeout time.Duration, arena *keymat.Arena) slot {
	return slot{custody: newCustody(purpose, timeout, arena), turn: make(chan struct{}, 1), r: r, kind: kind}
}

// take waits for the turn of a call, which must give it back.
func (s *slot) take(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return record.Unavailable(ctx.Err())
	}
}

func (s *slot) giveBack() { <-s.turn }

// isLocked reports whether the ceremony with that nonce is under way. The nonce is no secret:
// every operator may see it.
func (s *slot) isLocked(nonce []byte) bool {
	return !s.began.IsZero() && string(nonce) == string(s.nonce[:])
}

// fieldsLocked returns the fields of each record of the ceremony, if there is one.
func (s *slot) fieldsLocked() []*auditpb.Field {
	if s.began.IsZero() {
		return nil
	}
	return append(s.custody.fieldsLocked(), s.kind.describeLocked()...)
}

// custodiansLocked returns the fields of a record of the ceremony's end.
func (s *slot) custodiansLocked() []*auditpb.Field {
	return append([]*auditpb.Field{s.indexes("custodians")}, s.fieldsLocked()...)
}

// endLocked ends the ceremony, whatever its outcome, and wipes its secrets.
func (s *slot) endLocked() {
	s.custody.endLocked()
	s.kind.forgetLocked()
	s.opened = nil
}

// begin begins a ceremony with what the vault holds. step is its record, without the nonce.
// busy is the error for a ceremony that is under way already, with its owner and nonce, and
// start sets what the ceremony has of its own. The caller has the turn, and gets mu with the
// ceremony unless there is an error.
func (s *slot) begin(ctx context.Context, op Operator, c *fsmpb.Cluster, o *vault.Opened, step record.Event, busy string, start func()) error {
	s.mu.Lock()
	s.sweepLocked(c)
	now := s.r.cfg.Clock.Now()
	owner, taken, nonce := s.owner, !s.began.IsZero(), s.nonce
	err := s.allowLocked(now, op.Name)
	if err == nil {
		if taken {
			s.refusedLocked(now, op.Name)
		} else {
			_, err = s.receiverLocked(now)
		}
	}
	s.mu.Unlock()
	if err != nil {
		return vault.Gone(err)
	}
	if taken {
		step.Err = kmsapi.Errorf(ErrOwner, busy, owner, nonce)
		s.r.note(ctx, step)
		return step.Err
	}
	step.Response = []*auditpb.Field{auditfield.Text("ceremony", hex.EncodeToString(nonce[:]))}
	_, err = s.r.cfg.Events.Record(ctx, step)
	s.mu.Lock()
	if err != nil {
		s.endLocked() // the record may yet be committed, with this nonce
		s.mu.Unlock()
		return err
	}
	s.began, s.owner, s.opened = s.r.cfg.Clock.Now(), op.Name, o
	start()
	if c, _ = s.r.cfg.Replica.State().Cluster(); s.sweepLocked(c) {
		return nil
	}
	s.mu.Unlock()
	if s.r.cfg.Vault.Sealed() {
		return vault.ErrSealed
	}
	return s.kind.gone()
}

// submitted is a share that was submitted, and what it completes.
type submitted struct {
	step   record.Event
	index  int
	unseal *keymat.Secret // the unseal key, if the share completes the threshold
	opened *vault.Opened
	fields []*auditpb.Field // of the record of the ceremony's end
}

// submit accepts the share of one custodian for the ceremony with the given nonce, and records
// it; only then does it count. then is called with mu held, after the share was added and
// before it is recorded. If the share completes the threshold, the caller gets the unseal key,
// which it must destroy. The caller has the turn.
func (s *slot) submit(ctx context.Context, op Operator, c *fsmpb.Cluster, nonce, sealed []byte, then func(*submitted)) (*submitted, error) {
	given, err := s.add(op, c, nonce, sealed, then)
	if err != nil {
		if given != nil {
			s.r.note(ctx, given.step)
		}
		return nil, err
	}
	if _, err := s.r.cfg.Events.Record(ctx, given.step); err != nil {
		given.unseal.Destroy()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.isLocked(nonce) {
			s.shares[given.index].Destroy()
			delete(s.shares, given.index)
		}
		given.step.RequestID, given.step.Err = [16]byte{}, err // the first attempt may still be recorded
		s.r.cfg.Events.Pending.Add(given.step)
		return nil, err
	}
	return given, nil
}

// add adds a share to the ceremony. The result has the step to record even if the share is
// refused; it is nil if there is nothing to record.
func (s *slot) add(op Operator, c *fsmpb.Cluster, nonce, sealed []byte, then func(*submitted)) (*submitted, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweepLocked(c)
	now := s.r.cfg.Clock.Now()
	if err := s.allowLocked(now, op.Name); err != nil {
		return nil, err
	}
	given := &submitted{step: op.Event("Submit"+s.kind.eventLocked()+"Share", c), opened: s.opened}
	given.step.At = now
	set, commitments, err := s.kind.setLocked(c)
	if err != nil {
		return nil, err
	}
	if !s.isLocked(nonce) {
		err = s.kind.gone()
	} else {
		keymat.Scrub(func() {
			var share *keymat.Secret
			if share, err = s.openLocked(set.Cluster, s.r.cfg.NodeID, nonce, sealed); err == nil {
				defer share.Destroy()
				given.index, given.unseal, err = s.addLocked(now, op.Name, set, commitments, share)
			}
			err = shareError(err)
		})
	}
	if errors.Is(err, ErrShare) || errors.Is(err, ErrNoCeremony) {
		s.refusedLocked(now, op.Name)
	}
	if given.index > 0 {
		given.step.Parameters = append(given.step.Parameters, auditfield.Number("custodian", given.index))
	}
	given.step.Parameters = append(given.step.Parameters, s.fieldsLocked()...)
	given.step.Parameters = append(given.step.Parameters, s.kind.submittedLocked()...)
	if given.step.Err = err; err != nil {
		return given, err
	}
	given.fields = s.custodiansLocked()
	then(given)
	return given, nil
}

// cancel ends the ceremony with the given nonce and wipes its shares. It does not wait for its
// turn: a share whose record is being committed is wiped, too.
func (s *slot) cancel(ctx context.Context, op Operator, nonce []byte) error {
	c, _, err := s.r.unsealedCluster()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.sweepLocked(c)
	event := s.kind.eventLocked()
	step := op.Event("Cancel"+event, c)
	step.At = s.r.cfg.Clock.Now()
	if err := s.allowLocked(step.At, op.Name); err != nil {
		s.mu.Unlock()
		return err
	}
	if s.isLocked(nonce) {
		step.Parameters = s.custodiansLocked()
		s.endLocked()
	} else {
		step.Err = s.kind.gone()
		s.refusedLocked(step.At, op.Name)
	}
	s.mu.Unlock()
	s.r.note(ctx, step)
	if step.Err == nil {
		s.r.cfg.Log.Warn("a ceremony was cancelled", "ceremony", event, "operator", op.Name)
	}
	return step.Err
}

// sweepLocked ends a ceremony that has timed out, that the cluster has changed under, or that
// began before the node was sealed, and adds an event for it. It reports whether there still
// is a ceremony.
func (s *slot) sweepLocked(c *fsmpb.Cluster) bool {
	if s.began.IsZero() {
		return false
	}
	now := s.r.cfg.Clock.Now()
	why := s.kind.staleLocked(c)
	if s.timedOutLocked(now) {
		why = "timeout"
	}
	if o, err := s.r.cfg.Vault.Current(); err != nil || o != s.opened {
		why = "sealed"
	}
	if why == "" {
		return true
	}
	event := s.kind.eventLocked()
	ev := record.ServiceEvent("Expire"+event, now)
	ev.Kind = record.KindOperator
	ev.Parameters = append([]*auditpb.Field{auditfield.Text("cause", why)}, s.custodiansLocked()...)
	s.r.cfg.Log.Warn("a ceremony has ended, and nothing has come of it", "ceremony", event, "cause", why, "shares", len(s.shares))
	s.endLocked()
	s.r.cfg.Events.Pending.Add(ev)
	return false
}

// note records a step, now or, if that takes too long, as soon as possible.
func (r *Ceremonies) note(ctx context.Context, step record.Event) {
	r.cfg.Events.Pending.Add(step)
	r.cfg.Events.RecordPendingWithin(ctx, stepPatience)
}
