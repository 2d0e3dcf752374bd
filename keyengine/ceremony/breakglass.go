package ceremony

import (
	"context"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/iamops"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	// DefaultBreakGlassLife and MaxBreakGlassLife are how long a break-glass access key is
	// valid by default and at most.
	DefaultBreakGlassLife = 15 * time.Minute
	MaxBreakGlassLife     = time.Hour
	minBreakGlassLife     = time.Minute

	maxBreakGlassReason = 512 // bytes

	// breakGlassSkew is how far this node's clock may be ahead of cluster time when it makes
	// a break-glass access key, whose end it computes from its clock.
	breakGlassSkew = time.Minute

	breakGlassPurpose = "conclave break-glass share v1"

	// stepPatience is how long a call waits until its step is recorded. After that the step is
	// recorded later.
	stepPatience = 5 * time.Second
)

// breakGlass is the break-glass ceremony of a node.
//
// An operator whose calls are refused too often is throttled, and these calls have no record:
// unlike a sealed node, this one records each refusal at once, and a stolen certificate must
// not fill the log.
type breakGlass struct {
	*custody // mu guards the fields below, too

	// turn is held during calls that change the ceremony. They wait for records to be
	// committed, and mu must not be held for as long.
	turn chan struct{}

	opened  *vault.Opened // what the vault held when the ceremony began
	account fsm.Account
	reason  string
	life    time.Duration // of the access key
}

// take waits for the turn of a call, which must give it back.
func (b *breakGlass) take(ctx context.Context) error {
	select {
	case b.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return record.Unavailable(ctx.Err())
	}
}

func (b *breakGlass) giveBack() { <-b.turn }

// isLocked reports whether the ceremony with that nonce is under way. The nonce is no secret:
// every operator may see it.
func (b *breakGlass) isLocked(nonce []byte) bool {
	return !b.began.IsZero() && slices.Equal(nonce, b.nonce[:])
}

// describeLocked returns the fields of each record of the ceremony.
func (b *breakGlass) describeLocked() []*auditpb.Field {
	if b.began.IsZero() {
		return nil
	}
	return append(b.fieldsLocked(), auditfield.Text("reason", b.reason), auditfield.Text("account", b.account.String()), auditfield.Number("durationSeconds", int(b.life/time.Second)))
}

// endGlassLocked ends the ceremony and wipes its shares.
func (b *breakGlass) endGlassLocked() {
	b.endLocked()
	b.opened, b.account, b.reason, b.life = nil, 0, "", 0
}

// BreakGlassParams are the parameters of a break-glass ceremony.
type BreakGlassParams struct {
	// Account is the number of the account whose root user gets the access key. The default
	// is the account that the cluster was initialised with.
	Account string
	// Reason is for the audit log and for the custodians: 1 to 512 bytes of printable text.
	Reason string
	// Life is how long the access key will be valid, from a minute to MaxBreakGlassLife. 0
	// means DefaultBreakGlassLife.
	Life time.Duration
}

// BreakGlass is the status of a break-glass ceremony.
type BreakGlass struct {
	NodeID    string
	ClusterID [16]byte
	// Threshold is the number of shares that are needed.
	Threshold int
	// Active is false if there is no ceremony on this node; the fields below are then empty.
	Active bool
	// Nonce identifies the ceremony on this node.
	Nonce [16]byte
	// PublicKey is the key that shares are encrypted to; see Challenge.
	PublicKey []byte
	Owner     string // the operator who began it
	Account   string
	Reason    string
	Life      time.Duration // of the access key
	// Began is when the ceremony began, and Expires when its shares are wiped.
	Began, Expires time.Time
	// Custodians are the indexes of the shares that it has, in ascending order.
	Custodians []int
}

// BreakGlassKey is the access key that a ceremony has made.
type BreakGlassKey struct {
	AccessKeyID string
	// SealedSecret is the secret, encrypted to the answer key of the last share's submitter.
	SealedSecret []byte
	RootARN      string
	// Expires is when no node accepts the key any more, by cluster time.
	Expires time.Time
}

// unsealedCluster returns the cluster's record, or an error if the node is sealed.
func (r *Ceremonies) unsealedCluster() (*fsmpb.Cluster, *vault.Opened, error) {
	o, err := r.cfg.Vault.Current()
	if err != nil {
		return nil, nil, err
	}
	c, _ := r.cfg.Replica.State().Cluster()
	if c == nil {
		return nil, nil, errNotInitialised
	}
	return c, o, nil
}

// BeginBreakGlass begins a ceremony in which the custodians' threshold gives the root user of
// an account a short-lived access key. It is recorded before the ceremony begins. There is one
// ceremony on a node at a time; it ends when the threshold is reached, when it is cancelled,
// when ShareTimeout is over, when the node is sealed, and when the node restarts. Errors:
// ErrValidation, ErrOwner if there is a ceremony already, ErrUnavailable if the node is sealed
// or the log does not accept records.
func (r *Ceremonies) BeginBreakGlass(ctx context.Context, op Operator, p BreakGlassParams) (*BreakGlass, error) {
	c, o, err := r.unsealedCluster()
	if err != nil {
		return nil, err
	}
	account, err := p.check(r.cfg.Replica.State())
	if err != nil {
		return nil, err
	}
	set, _, err := shareSet(c)
	if err != nil {
		return nil, err
	}
	b := r.glass
	if err := b.take(ctx); err != nil {
		return nil, err
	}
	defer b.giveBack()
	b.mu.Lock()
	r.sweepBreakGlassLocked(c)
	now := r.cfg.Clock.Now()
	owner, busy, nonce := b.owner, !b.began.IsZero(), b.nonce
	if err = b.allowLocked(now, op.Name); err == nil {
		if busy {
			b.refusedLocked(now, op.Name)
		} else {
			_, err = b.receiverLocked(now)
		}
	}
	b.mu.Unlock()
	if err != nil {
		return nil, vault.Gone(err)
	}

	step := op.Event("BeginBreakGlass", c)
	step.Parameters = []*auditpb.Field{
		auditfield.Text("reason", p.Reason), auditfield.Text("account", account.String()), auditfield.Number("durationSeconds", int(p.Life/time.Second)),
	}
	if busy {
		step.Err = kmsapi.Errorf(ErrOwner, "A break-glass ceremony that %s began is under way on this node. Complete it, or cancel it by its nonce, %x.", owner, nonce)
		r.note(ctx, step)
		return nil, step.Err
	}
	step.Response = []*auditpb.Field{auditfield.Text("ceremony", hex.EncodeToString(nonce[:]))}
	_, err = r.cfg.Events.Record(ctx, step)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.endLocked() // the record may yet be committed, with this nonce
		return nil, err
	}
	r.cfg.Log.Warn("a break-glass ceremony has begun", "operator", op.Name, "account", account.String(), "reason", p.Reason)
	b.set, b.began, b.owner = set.Set, r.cfg.Clock.Now(), op.Name
	b.opened, b.account, b.reason, b.life = o, account, p.Reason, p.Life
	if r.sweepBreakGlassLocked(c); b.began.IsZero() {
		return nil, vault.ErrSealed // in the meantime
	}
	return r.breakGlassLocked(c), nil
}

// check checks the parameters, completes them, and returns the account.
func (p *BreakGlassParams) check(s *fsm.State) (fsm.Account, error) {
	if p.Reason = strings.TrimSpace(p.Reason); p.Reason == "" || len(p.Reason) > maxBreakGlassReason || !utf8.ValidString(p.Reason) || strings.ContainsFunc(p.Reason, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return 0, kmsapi.Errorf(kmsapi.ErrValidation, "The reason must be 1 to %d bytes of printable text.", maxBreakGlassReason)
	}
	if p.Life == 0 {
		p.Life = DefaultBreakGlassLife
	}
	if p.Life < minBreakGlassLife || p.Life > MaxBreakGlassLife {
		return 0, kmsapi.Errorf(kmsapi.ErrValidation, "A break-glass access key lasts from %v to %v.", minBreakGlassLife, MaxBreakGlassLife)
	}
	if p.Account == "" {
		return fsm.AccountOf(s), nil
	}
	account, ok := fsm.ParseAccount(p.Account)
	if !ok || !fsm.AccountExists(s, account) {
		return 0, kmsapi.Errorf(kmsapi.ErrValidation, "This cluster has no account with that number.")
	}
	return account, nil
}

// BreakGlass returns the status of the break-glass ceremony on this node, with the key that
// shares must be encrypted to. Errors: ErrUnavailable if the node is sealed.
func (r *Ceremonies) BreakGlass() (*BreakGlass, error) {
	c, _, err := r.unsealedCluster()
	if err != nil {
		return nil, err
	}
	r.glass.mu.Lock()
	defer r.glass.mu.Unlock()
	r.sweepBreakGlassLocked(c)
	return r.breakGlassLocked(c), nil
}

func (r *Ceremonies) breakGlassLocked(c *fsmpb.Cluster) *BreakGlass {
	b := r.glass
	st := &BreakGlass{NodeID: r.cfg.NodeID, ClusterID: [16]byte(c.Id), Threshold: int(c.Shares.GetThreshold())}
	if b.began.IsZero() {
		return st
	}
	st.Active, st.Nonce, st.PublicKey = true, b.nonce, b.receiver.Public()
	st.Owner, st.Account, st.Reason, st.Life = b.owner, b.account.String(), b.reason, b.life
	st.Began, st.Expires = b.began, b.began.Add(b.timeout)
	st.Custodians = slices.Sorted(maps.Keys(b.shares))
	return st
}

// SubmitBreakGlassShare accepts the share of one custodian for the ceremony with the given
// nonce, encrypted to its key. The share counts once its record is committed. The one that
// completes the threshold makes the access key, whose secret is returned encrypted to
// answerKey (see keymat.SealTo), and ends the ceremony, whatever the outcome: all shares are
// wiped, and if the record with the access key is not committed, there is none. A share that
// is refused leaves the progress as it is. Errors: ErrNoCeremony, ErrShare, ErrThrottling for
// an operator whose shares are refused repeatedly, ErrValidation for the answer key,
// ErrUnavailable.
func (r *Ceremonies) SubmitBreakGlassShare(ctx context.Context, op Operator, nonce, sealed, answerKey []byte) (*BreakGlass, *BreakGlassKey, error) {
	c, _, err := r.unsealedCluster()
	if err != nil {
		return nil, nil, err
	}
	if _, err := keymat.SealTo(answerKey, nil, nil); err != nil {
		return nil, nil, kmsapi.Errorf(kmsapi.ErrValidation, "The answer key must be an uncompressed point on P-256.")
	}
	b := r.glass
	if err := b.take(ctx); err != nil {
		return nil, nil, err
	}
	defer b.giveBack()
	s, err := r.addBreakGlassShare(op, c, nonce, sealed)
	if err != nil {
		if s != nil {
			r.note(ctx, s.step)
		}
		return nil, nil, err
	}
	defer s.unseal.Destroy()
	if _, err := r.cfg.Events.Record(ctx, s.step); err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.isLocked(nonce) {
			b.shares[s.index].Destroy()
			delete(b.shares, s.index)
		}
		s.step.RequestID, s.step.Err = [16]byte{}, err // the first attempt may still be recorded
		r.cfg.Events.Pending.Add(s.step)
		return nil, nil, err
	}
	var key *BreakGlassKey
	if s.unseal != nil {
		if key, err = r.makeBreakGlassKey(ctx, op, c, s, answerKey); err != nil {
			return nil, nil, err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if key == nil && !b.isLocked(nonce) {
		return nil, nil, errNoCeremony // it ended while the step was recorded
	}
	return r.breakGlassLocked(c), key, nil
}

var errNoCeremony = kmsapi.Errorf(ErrNoCeremony, "There is no break-glass ceremony with that nonce on this node. A ceremony ends when its time is over, when it is cancelled, and when its node restarts or is sealed.")

// glassShare is a share that was submitted, and the ceremony as it was then.
type glassShare struct {
	step    record.Event
	index   int
	unseal  *keymat.Secret // the unseal key, if the share completes the threshold
	opened  *vault.Opened
	account fsm.Account
	life    time.Duration
	fields  []*auditpb.Field // of the record of the ceremony's end
}

// addBreakGlassShare adds a share to the ceremony. If that completes the threshold, the
// ceremony is over, and the caller gets the unseal key, which it must destroy. The result has
// the step to record even if the share is refused; it is nil if there is nothing to record.
func (r *Ceremonies) addBreakGlassShare(op Operator, c *fsmpb.Cluster, nonce, sealed []byte) (*glassShare, error) {
	set, commitments, err := shareSet(c)
	if err != nil {
		return nil, err
	}
	b := r.glass
	b.mu.Lock()
	defer b.mu.Unlock()
	r.sweepBreakGlassLocked(c)
	now := r.cfg.Clock.Now()
	s := &glassShare{step: op.Event("SubmitBreakGlassShare", c), opened: b.opened, account: b.account, life: b.life}
	s.step.At = now
	if err := b.allowLocked(now, op.Name); err != nil {
		return nil, err
	}
	if !b.isLocked(nonce) {
		err = errNoCeremony
	} else {
		keymat.Scrub(func() {
			var given *keymat.Secret
			if given, err = b.openLocked([16]byte(c.Id), r.cfg.NodeID, nonce, sealed); err == nil {
				defer given.Destroy()
				s.index, s.unseal, err = b.addLocked(now, op.Name, set, commitments, given)
			}
			err = shareError(err)
		})
	}
	if errors.Is(err, ErrShare) || errors.Is(err, ErrNoCeremony) {
		b.refusedLocked(now, op.Name)
	}
	if s.index > 0 {
		s.step.Parameters = append(s.step.Parameters, auditfield.Number("custodian", s.index))
	}
	s.step.Parameters = append(s.step.Parameters, b.describeLocked()...)
	s.step.Err = err
	if s.unseal != nil {
		s.fields = append([]*auditpb.Field{b.indexes("custodians")}, b.describeLocked()...)
		b.endGlassLocked()
	}
	return s, err
}

// makeBreakGlassKey makes the access key of a ceremony whose threshold was reached. The key and
// the record of it are committed together: if this node fails before that, there is no key.
func (r *Ceremonies) makeBreakGlassKey(ctx context.Context, op Operator, c *fsmpb.Cluster, s *glassShare, answerKey []byte) (*BreakGlassKey, error) {
	key := new(BreakGlassKey)
	event := op.Event("CompleteBreakGlass", c)
	event.RequestID = [16]byte{} // the step of the last share has it
	event.Parameters = s.fields
	var err error
	keymat.Scrub(func() { err = r.cfg.Vault.Verify(c, s.opened, s.unseal) })
	var d fsm.Decision
	if err == nil {
		d, err = r.cfg.Events.CommitEvent(ctx, func(state *fsm.State) (record.Event, error) {
			ev := &request.Evaluation{Ctx: ctx, Services: r.cfg.Services, State: state, Caller: new(iam.Caller)}
			now := ev.Now()
			key.Expires = now.Add(s.life)
			ev.Within(now.Add(-breakGlassSkew).UnixNano(), 0)
			err := iamops.NewBreakGlassKey(ev, s.account, key.Expires.UnixNano(), func(made *fsmpb.Credential, secret []byte) (err error) {
				key.AccessKeyID, key.RootARN = made.Id, made.Principal
				key.SealedSecret, err = keymat.SealTo(answerKey, iam.SecretInfo(made.Id), secret)
				return err
			})
			done := event
			done.Response = []*auditpb.Field{
				auditfield.Text("accessKeyId", key.AccessKeyID), auditfield.Text("principal", key.RootARN), auditfield.Text("expiration", key.Expires.UTC().Format(time.RFC3339)),
			}
			done.Reads, done.Changes, done.NotBefore = ev.Reads, ev.Changes, ev.NotBefore
			return done, err
		})
	}
	if err == record.ErrConflict {
		err = kmsapi.Errorf(kmsapi.ErrUnavailable, "The access keys of the account keep changing, or this node's clock is ahead of the others. The shares were wiped: begin the ceremony again.")
	}
	if err != nil {
		r.cfg.Log.Error("the threshold of a break-glass ceremony was reached, but there is no access key", "operator", op.Name, "err", err)
		event.At, event.Err = r.cfg.Clock.Now(), err
		r.note(ctx, event)
		return nil, err
	}
	// Wait, so that the access key works on this node right away.
	if err := r.cfg.Replica.WaitApplied(ctx, d.Index); err != nil {
		r.cfg.Log.Warn("the break-glass access key is committed, but this node is behind", "err", err)
	}
	return key, nil
}

// CancelBreakGlass ends the ceremony with the given nonce and wipes its shares. Every operator
// may do that, and the record names both. Errors: ErrNoCeremony, ErrUnavailable if the node is
// sealed, which ends ceremonies by itself.
func (r *Ceremonies) CancelBreakGlass(ctx context.Context, op Operator, nonce []byte) error {
	c, _, err := r.unsealedCluster()
	if err != nil {
		return err
	}
	// It does not wait for its turn: a share whose record is being committed is wiped, too.
	b := r.glass
	b.mu.Lock()
	r.sweepBreakGlassLocked(c)
	step := op.Event("CancelBreakGlass", c)
	step.At = r.cfg.Clock.Now()
	if err := b.allowLocked(step.At, op.Name); err != nil {
		b.mu.Unlock()
		return err
	}
	if b.isLocked(nonce) {
		step.Parameters = append([]*auditpb.Field{b.indexes("custodians")}, b.describeLocked()...)
		b.endGlassLocked()
	} else {
		step.Err = errNoCeremony
		b.refusedLocked(step.At, op.Name)
	}
	b.mu.Unlock()
	r.note(ctx, step)
	if step.Err == nil {
		r.cfg.Log.Warn("a break-glass ceremony was cancelled", "operator", op.Name)
	}
	return step.Err
}

// sweepBreakGlassLocked ends a ceremony that has timed out, whose share set is no longer the
// cluster's, or that began before the node was sealed, and adds an event for it.
func (r *Ceremonies) sweepBreakGlassLocked(c *fsmpb.Cluster) {
	b := r.glass
	if b.began.IsZero() {
		return
	}
	why := "timeout"
	if o, err := r.cfg.Vault.Current(); err != nil || o != b.opened {
		why = "sealed"
	} else if age := r.cfg.Clock.Now().Sub(b.began); age >= 0 && age < b.timeout {
		if string(b.set[:]) == string(c.GetShares().GetId()) {
			return
		}
		why = "the share set was replaced"
	}
	ev := record.ServiceEvent("ExpireBreakGlass", r.cfg.Clock.Now())
	ev.Kind = record.KindOperator
	ev.Parameters = append([]*auditpb.Field{auditfield.Text("cause", why), b.indexes("custodians")}, b.describeLocked()...)
	r.cfg.Log.Warn("a break-glass ceremony has ended without an access key", "cause", why, "shares", len(b.shares))
	b.endGlassLocked()
	r.cfg.Events.Pending.Add(ev)
}

// note records a step, now or, if that takes too long, as soon as possible.
func (r *Ceremonies) note(ctx context.Context, step record.Event) {
	r.cfg.Events.Pending.Add(step)
	r.cfg.Events.RecordPendingWithin(ctx, stepPatience)
}
