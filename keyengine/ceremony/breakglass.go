package ceremony

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/iamops"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
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
)

// breakGlass is the break-glass ceremony of a node. It implements slotKind.
type breakGlass struct {
	slot // mu guards the fields below, too

	account fsm.Account
	reason  string
	life    time.Duration // of the access key
}

func newBreakGlass(r *Ceremonies, arena *keymat.Arena) *breakGlass {
	b := new(breakGlass)
	b.slot = newSlot(r, b, breakGlassPurpose, r.cfg.ShareTimeout, arena)
	return b
}

func (*breakGlass) eventLocked() string               { return "BreakGlass" }
func (*breakGlass) submittedLocked() []*auditpb.Field { return nil }
func (*breakGlass) gone() error                       { return errNoCeremony }
func (b *breakGlass) forgetLocked()                   { b.account, b.reason, b.life = 0, "", 0 }
func (b *breakGlass) describeLocked() []*auditpb.Field {
	return glassFields(b.reason, b.account, b.life)
}

func (*breakGlass) setLocked(c *fsmpb.Cluster) (shamir.SetInfo, [][32]byte, error) {
	return shareSet(c)
}

func glassFields(reason string, account fsm.Account, life time.Duration) []*auditpb.Field {
	return []*auditpb.Field{
		auditfield.Text("reason", reason), auditfield.Text("account", account.String()), auditfield.Number("durationSeconds", int(life/time.Second)),
	}
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
	// ShareSet has the names of the custodians, if they are known.
	ShareSet *ShareSet
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
	step := op.Event("BeginBreakGlass", c)
	step.Parameters = glassFields(p.Reason, account, p.Life)
	err = b.begin(ctx, op, c, o, step, "A break-glass ceremony that %s began is under way on this node. Complete it, or cancel it by its nonce, %x.", func() {
		r.cfg.Log.Warn("a break-glass ceremony has begun", "operator", op.Name, "account", account.String(), "reason", p.Reason)
		b.set, b.account, b.reason, b.life = set.Set, account, p.Reason, p.Life
	})
	if err != nil {
		return nil, err
	}
	defer b.mu.Unlock()
	return r.breakGlassLocked(c), nil
}

// check checks the parameters, completes them, and returns the account.
func (p *BreakGlassParams) check(s *fsm.State) (fsm.Account, error) {
	if p.Reason = strings.TrimSpace(p.Reason); p.Reason == "" || len(p.Reason) > maxBreakGlassReason || !printable(p.Reason) {
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
	r.glass.sweepLocked(c)
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
	st.ShareSet = publicSet(c.Id, c.Shares)
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
	if err := iam.CheckAnswerKey(answerKey); err != nil {
		return nil, nil, err
	}
	b := r.glass
	if err := b.take(ctx); err != nil {
		return nil, nil, err
	}
	defer b.giveBack()
	var made glassOutcome
	s, err := b.submit(ctx, op, c, nonce, sealed, func(s *submitted) {
		if s.unseal != nil { // the ceremony is over, whatever comes of it
			made = glassOutcome{s, b.account, b.life}
			b.endLocked()
		}
	})
	if err != nil {
		return nil, nil, err
	}
	defer s.unseal.Destroy()
	var key *BreakGlassKey
	if s.unseal != nil {
		if key, err = r.makeBreakGlassKey(ctx, op, c, made, answerKey); err != nil {
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

// glassOutcome is a ceremony whose threshold was reached.
type glassOutcome struct {
	*submitted
	account fsm.Account
	life    time.Duration
}

// makeBreakGlassKey makes the access key of a ceremony whose threshold was reached. The key and
// the record of it are committed together: if this node fails before that, there is no key.
func (r *Ceremonies) makeBreakGlassKey(ctx context.Context, op Operator, c *fsmpb.Cluster, s glassOutcome, answerKey []byte) (*BreakGlassKey, error) {
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
	return r.glass.cancel(ctx, op, nonce)
}
