package ceremony

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Errors of the operators' calls.
var (
	ErrInitialised    = &kmsapi.Error{Code: "AlreadyInitialisedException"}
	ErrNotInitialised = &kmsapi.Error{Code: "NotInitialisedException"}
	// ErrNotReady is returned by Init while nodes of the new cluster are missing.
	ErrNotReady = &kmsapi.Error{Code: "ClusterNotReadyException"}
	// ErrShare is returned for a share that was refused. The message gives the reason.
	ErrShare = &kmsapi.Error{Code: "InvalidShareException"}
	// ErrUnsealed is returned for a share when the node is unsealed already.
	ErrUnsealed = &kmsapi.Error{Code: "AlreadyUnsealedException"}
	// ErrChallenge is returned for a share that was encrypted for a ceremony that has
	// ended. The share has no effect; the operator must request a new challenge.
	ErrChallenge = &kmsapi.Error{Code: "InvalidChallengeException"}
	// ErrNotUpgraded is returned by FinalizeUpgrade if a node does not run the new release.
	// The message says which.
	ErrNotUpgraded = &kmsapi.Error{Code: "NotUpgradedException"}
	// ErrNotSettled is returned for a new generation of the keyring while not everything is
	// wrapped by the newest one yet.
	ErrNotSettled = &kmsapi.Error{Code: "RotationInProgressException"}
	// ErrOwner is returned when the ceremony in progress belongs to another operator.
	ErrOwner = &kmsapi.Error{Code: "CeremonyInProgressException"}
	// ErrNoCeremony is returned when there is no ceremony with the given nonce.
	ErrNoCeremony = &kmsapi.Error{Code: "NoCeremonyException"}
)

// Ceremonies lets operators initialise the cluster, unseal the node and seal it. It is safe
// for concurrent use.
type Ceremonies struct {
	cfg Config
	// initialising is held during Init.
	initialising sync.Mutex
	unsealing    *custody
	glass        *breakGlass
	// KeyChanges are the ceremonies that replace the shares or the cluster's own keys.
	KeyChanges *KeyChanges
}

// Config configures Ceremonies.
type Config struct {
	NodeID  string
	Vault   *vault.Vault
	Replica Replica
	Clock   record.Clock
	Log     *slog.Logger
	Events  *record.Recorder
	// Fresh returns a state with everything that was committed before the call.
	Fresh func(context.Context) (*fsm.State, error)
	// ShareTimeout is how long the shares of an unfinished ceremony are kept. The default
	// is fifteen minutes.
	ShareTimeout time.Duration
	// Services evaluate the record that makes a break-glass access key.
	Services *request.Services
	// Sealing, if not nil, is called when an operator seals the node, before that is
	// recorded. add adds to the record, for a state, what has to change with it. done is called
	// when the node is sealed.
	Sealing func() (add func(*fsm.State, *record.Event), done func())
	// Waiting, if not nil, says what a sealed node waits for; see SealStatus.Waiting.
	Waiting func() string
	// Opened, if not nil, is called when the custodians have unsealed the node, with the root
	// key, which it must not keep.
	Opened func(c *fsmpb.Cluster, root *keymat.Secret)
}

// Replica is the part of the replicated log that ceremonies use.
type Replica interface {
	record.Log
	// Barrier waits until State has everything that was committed before the call.
	Barrier(ctx context.Context) error
}

// New returns the ceremonies of a node.
func New(cfg Config) *Ceremonies {
	arena := cfg.Vault.Arena()
	r := &Ceremonies{
		cfg: cfg, unsealing: newCustody(unsealPurpose, cfg.ShareTimeout, arena),
	}
	r.glass, r.KeyChanges = newBreakGlass(r, arena), newKeyChanges(r, arena)
	return r
}

var errNotInitialised = kmsapi.Errorf(ErrNotInitialised, "The cluster is not initialised.")

// Operator is an operator as authenticated by the transport.
type Operator struct {
	// Name is the identity URI of the client certificate, or "root".
	Name      string
	SourceIP  string
	RequestID iam.RequestID
}

func (op Operator) identity(c *fsmpb.Cluster) *auditpb.Identity {
	return &auditpb.Identity{Type: record.OperatorType, PrincipalId: op.Name, AccountId: c.GetAccount(), Certificate: op.Name}
}

// Event returns the event that records an action of the operator.
func (op Operator) Event(name string, c *fsmpb.Cluster) record.Event {
	return record.Event{
		Name: name, Kind: record.KindOperator, RequestID: op.RequestID, Identity: op.identity(c), SourceIP: op.SourceIP, Transport: "grpc",
	}
}

// SealStatus is the status of a node that is shown to everyone, without authentication.
type SealStatus struct {
	Initialised bool
	Sealed      bool
	NodeID      string
	// ClusterID is in hexadecimal. It and the fields below it are empty before Init.
	ClusterID string
	Account   string
	Region    string
	// MoreRegions are the other Regions of the cluster, in ascending order.
	MoreRegions []string
	Partition   string
	// Threshold of the Shares are needed to unseal the node; Progress is the number
	// submitted so far.
	Threshold int
	Shares    int
	Progress  int
	// Custodians are the indexes of the shares submitted so far, in ascending order.
	Custodians []int
	// Ceremony is the ceremony in progress, or nil if no share has been accepted yet.
	Ceremony *Status
	// Waiting says what the node waits for while its peers or a seal are to unseal it; "" if
	// they are not.
	Waiting string
	// VerifierKey verifies the audit log's checkpoints; see verify.Dir in auditlog/verify.
	VerifierKey string
	// MemoryLocked is true if keys are in memory that is never swapped out.
	MemoryLocked bool
	// AnyRegion reports whether requests for any Region are accepted.
	AnyRegion bool
	// ShareSet is nil before Init. It is for operators only.
	ShareSet *ShareSet
}

// Status is the status of an unsealing in progress.
type Status struct {
	// Nonce identifies the ceremony on this node.
	Nonce [16]byte
	// Owner is the operator who submitted the first share.
	Owner          string
	Began, Expires time.Time
}

// Sealed reports whether the node is sealed.
func (r *Ceremonies) Sealed() bool { return r.cfg.Vault.Sealed() }

// SealStatus returns the seal status of this node.
func (r *Ceremonies) SealStatus() SealStatus {
	st := SealStatus{Sealed: r.cfg.Vault.Sealed(), NodeID: r.cfg.NodeID, MemoryLocked: r.cfg.Vault.Arena().Locked()}
	c, _ := r.cfg.Replica.State().Cluster()
	if c == nil {
		return st
	}
	st.Initialised = true
	st.ClusterID, st.Account, st.Region, st.Partition = record.ClusterID(c), c.Account, c.Region, c.Partition
	st.MoreRegions = slices.Clone(c.MoreRegions)
	st.Threshold, st.Shares = int(c.Shares.Threshold), int(c.Shares.Count)
	st.VerifierKey = record.VerifierKey(c)
	st.AnyRegion, st.ShareSet = c.AnyRegion, publicSet(c.Id, c.Shares)
	if st.Sealed {
		st.Custodians, st.Ceremony = r.unsealing.status(r.cfg.Clock.Now(), c)
		st.Progress = len(st.Custodians)
		if r.cfg.Waiting != nil {
			st.Waiting = r.cfg.Waiting()
		}
	}
	return st
}

// shareSet returns the parameters of the cluster's share set and the commitments to its
// shares.
func shareSet(c *fsmpb.Cluster) (shamir.SetInfo, [][32]byte, error) {
	sh := c.GetShares()
	if len(c.GetId()) != 16 || len(sh.GetId()) != 16 {
		return shamir.SetInfo{}, nil, errors.New("the state's share set is malformed")
	}
	set := shamir.SetInfo{Cluster: [16]byte(c.Id), Set: [16]byte(sh.Id), Threshold: int(sh.Threshold), Count: int(sh.Count)}
	commitments := make([][32]byte, len(sh.Commitments))
	for i, b := range sh.Commitments {
		if len(b) != len(commitments[i]) {
			return shamir.SetInfo{}, nil, errors.New("the state's share set is malformed")
		}
		commitments[i] = [32]byte(b)
	}
	return set, commitments, nil
}

// Challenge is what an operator needs to encrypt a share for a sealed node.
type Challenge struct {
	NodeID    string
	ClusterID [16]byte
	// Nonce identifies the ceremony that the shares are for.
	Nonce [16]byte
	// PublicKey is a point on P-256; see keymat.Receiver. The private key is in locked
	// memory and is wiped when the ceremony ends.
	PublicKey []byte
}

// unsealPurpose is the purpose of shares that unseal a node.
const unsealPurpose = "conclave share v1"

// shareInfo binds an encrypted share to its purpose, the node and the ceremony.
func shareInfo(purpose string, cluster, nonce [16]byte, node string) []byte {
	return slices.Concat([]byte(purpose), []byte{0}, cluster[:], nonce[:], []byte(node))
}

// sealedCluster returns the cluster's record, or an error if the cluster is not initialised
// or this node is already unsealed.
func (r *Ceremonies) sealedCluster(ctx context.Context) (*fsmpb.Cluster, error) {
	c, _ := r.cfg.Replica.State().Cluster()
	if c == nil {
		// A node that has just started may not have applied the initialisation yet.
		s, err := r.cfg.Fresh(ctx)
		if err != nil {
			return nil, err
		}
		if c, _ = s.Cluster(); c == nil {
			return nil, errNotInitialised
		}
	}
	if !r.cfg.Vault.Sealed() {
		return nil, kmsapi.Errorf(ErrUnsealed, "This node is unsealed already.")
	}
	return c, nil
}

// Challenge returns the public key that shares for this node must be encrypted to, so that
// the buffers on their way never hold one in the clear. It does not begin a ceremony: the
// first share does.
func (r *Ceremonies) Challenge(ctx context.Context) (*Challenge, error) {
	c, err := r.sealedCluster(ctx)
	if err != nil {
		return nil, err
	}
	set, _, err := shareSet(c)
	if err != nil {
		return nil, err
	}
	r.unsealing.mu.Lock()
	defer r.unsealing.mu.Unlock()
	r.abandonLocked(c)
	key, err := r.unsealing.receiverLocked(r.cfg.Clock.Now())
	if err != nil {
		return nil, err
	}
	return &Challenge{NodeID: r.cfg.NodeID, ClusterID: set.Cluster, Nonce: r.unsealing.nonce, PublicKey: key}, nil
}

// SubmitSealedShare accepts the share of one custodian, encrypted to the challenge with the
// given nonce. The share that completes the threshold unseals the node, and all shares are
// then wiped. A share that is refused leaves the progress as it is; the error is ErrShare,
// with the reason in its message. An operator whose shares are refused repeatedly gets
// ErrThrottling. Shares are wiped ShareTimeout after the first of them.
//
// A sealed node cannot record anything, so each step is kept in memory and recorded once
// the node is unsealed.
func (r *Ceremonies) SubmitSealedShare(ctx context.Context, op Operator, nonce, sealed []byte) (SealStatus, error) {
	err := r.submitShare(ctx, op, func(c *fsmpb.Cluster) (*keymat.Secret, error) {
		return r.unsealing.openLocked([16]byte(c.Id), r.cfg.NodeID, nonce, sealed)
	})
	return r.SealStatus(), err
}

// SubmitShare is SubmitSealedShare for a share in the clear. It is for programs that run
// the node in their own process and have the shares.
func (r *Ceremonies) SubmitShare(ctx context.Context, op Operator, share string) (SealStatus, error) {
	err := r.submitShare(ctx, op, func(*fsmpb.Cluster) (*keymat.Secret, error) {
		return r.cfg.Vault.Arena().Store([]byte(share))
	})
	return r.SealStatus(), err
}

func (r *Ceremonies) submitShare(ctx context.Context, op Operator, open func(*fsmpb.Cluster) (*keymat.Secret, error)) error {
	c, err := r.sealedCluster(ctx)
	if err != nil {
		return err
	}
	set, commitments, err := shareSet(c)
	if err != nil {
		return err
	}
	r.unsealing.mu.Lock()
	defer r.unsealing.mu.Unlock()
	r.abandonLocked(c)
	var index int
	var unseal *keymat.Secret
	err = r.unsealing.allowLocked(r.cfg.Clock.Now(), op.Name)
	if err == nil {
		keymat.Scrub(func() {
			var given *keymat.Secret
			if given, err = open(c); err == nil {
				defer given.Destroy()
				index, unseal, err = r.unsealing.addLocked(r.cfg.Clock.Now(), op.Name, set, commitments, given)
			}
			err = shareError(err)
		})
		if errors.Is(err, ErrShare) {
			r.unsealing.refusedLocked(r.cfg.Clock.Now(), op.Name)
		}
	}
	step := op.Event("SubmitShare", c)
	step.At = r.cfg.Clock.Now()
	if index > 0 {
		step.Parameters = append(step.Parameters, auditfield.Number("custodian", index))
	}
	step.Parameters = append(step.Parameters, auditfield.Text("shareSet", hex.EncodeToString(set.Set[:])))
	step.Parameters = append(step.Parameters, r.unsealing.fieldsLocked()...)
	step.Err = err
	r.cfg.Events.Pending.Add(step)
	if err != nil {
		return err
	}
	if unseal == nil {
		return nil
	}
	// The shares are no longer needed, whether the unsealing succeeds or not.
	done := op.Event("Unseal", c)
	done.RequestID = [16]byte{} // the step of the last share has it
	done.At = r.cfg.Clock.Now()
	done.Parameters = append([]*auditpb.Field{r.unsealing.indexes("custodians")}, r.unsealing.fieldsLocked()...)
	r.unsealing.endLocked()
	keymat.Scrub(func() { done.Err = r.cfg.Vault.OpenWith(c, unseal, r.cfg.Opened) })
	if done.Err == nil {
		now, _ := r.cfg.Replica.State().Cluster() // the keyring may have grown meanwhile
		_ = r.Adopt(now)                          // Expire tries again
	}
	r.cfg.Events.Pending.Add(done)
	if done.Err != nil {
		r.cfg.Log.Error("the shares are valid, but the unseal key does not unwrap the root key", "err", done.Err)
	} else {
		r.cfg.Log.Info("node unsealed", "operator", op.Name)
	}
	return done.Err
}

// Adopt keeps the keyring of this node in step with the cluster's record, which is that of the
// newest state. A node that cannot follow, because it was too far behind when the keyring got
// another generation, is sealed: whatever it did would rest on old keys, and it says so. Adopt
// does not block. It returns an error if it has to be called again, for lack of memory.
func (r *Ceremonies) Adopt(c *fsmpb.Cluster) error {
	err := r.cfg.Vault.Adopt(c)
	if !errors.Is(err, vault.ErrNotHandedOver) {
		return err
	}
	if r.cfg.Vault.Seal() {
		r.cfg.Log.Error("this node was sealed", "err", err)
		ev := record.ServiceEvent("SealOutdated", r.cfg.Clock.Now(), auditfield.Text("node", r.cfg.NodeID), auditfield.Text("cause", err.Error()))
		ev.Kind = record.KindOperator
		r.cfg.Events.Pending.Add(ev)
	}
	return nil
}

// abandonLocked wipes the shares of a ceremony that has expired, and adds an event for it.
func (r *Ceremonies) abandonLocked(c *fsmpb.Cluster) {
	fields := r.unsealing.fieldsLocked()
	n, why := r.unsealing.expireLocked(r.cfg.Clock.Now(), c)
	if n == 0 {
		return
	}
	r.cfg.Log.Info("shares of an unfinished unsealing were wiped", "shares", n, "cause", why)
	r.cfg.Events.Pending.Add(record.Event{
		Name: "AbandonShares", Kind: record.KindOperator, At: r.cfg.Clock.Now(),
		Identity:   &auditpb.Identity{Type: "AWSService", InvokedBy: "Conclave"},
		Parameters: append([]*auditpb.Field{auditfield.Number("shares", n), auditfield.Text("cause", why)}, fields...),
	})
}

// Expire drops abandoned ceremonies. It must be called about every second.
func (r *Ceremonies) Expire() {
	c, _ := r.cfg.Replica.State().Cluster()
	if err := r.Adopt(c); err != nil && !r.cfg.Vault.Sealed() {
		r.cfg.Log.Warn("adding a generation to the keyring failed and will be retried", "err", err)
	}
	r.unsealing.mu.Lock()
	r.abandonLocked(c)
	r.unsealing.mu.Unlock()
	r.sweep(c)
}

// sweep ends the ceremonies of an unsealed node that must not go on.
func (r *Ceremonies) sweep(c *fsmpb.Cluster) {
	r.glass.mu.Lock()
	r.glass.sweepLocked(c)
	r.glass.mu.Unlock()
	r.KeyChanges.mu.Lock()
	r.KeyChanges.sweepLocked(c)
	r.KeyChanges.mu.Unlock()
}

// ResetShares wipes the shares that were submitted so far. Resetting the ceremony of
// another operator requires force to be the nonce of that ceremony. Without force, the
// holder of a stolen certificate could not be stopped from keeping the cluster sealed by
// beginning ceremonies. The nonce makes an override deliberate, and its record names both
// operators.
func (r *Ceremonies) ResetShares(_ context.Context, op Operator, force []byte) error {
	c, _ := r.cfg.Replica.State().Cluster()
	if c == nil {
		return errNotInitialised
	}
	r.unsealing.mu.Lock()
	defer r.unsealing.mu.Unlock()
	r.abandonLocked(c)
	if len(r.unsealing.shares) == 0 {
		return nil
	}
	step := op.Event("ResetShares", c)
	step.At = r.cfg.Clock.Now()
	step.Parameters = append([]*auditpb.Field{r.unsealing.indexes("custodians")}, r.unsealing.fieldsLocked()...)
	if owner := r.unsealing.owner; owner != op.Name {
		if !slices.Equal(force, r.unsealing.nonce[:]) {
			step.Err = kmsapi.Errorf(ErrOwner, "The ceremony under way was begun by %s, and holds %d shares. Only that operator may reset it, or whoever "+
				"forces it, naming ceremony %x; it is recorded.", owner, len(r.unsealing.shares), r.unsealing.nonce)
			r.cfg.Events.Pending.Add(step)
			return step.Err
		}
		step.Parameters = append(step.Parameters, auditfield.Flag("forced", true))
		r.cfg.Log.Warn("the ceremony of another operator is reset by force", "operator", op.Name, "owner", owner)
	}
	r.unsealing.endLocked()
	r.cfg.Events.Pending.Add(step)
	return nil
}

// sealPatience is how long Seal waits for its record before it seals without one.
const sealPatience = 10 * time.Second

// Seal records that the operator seals this node, and seals it: the keyring and every key
// under it are wiped, and requests in flight finish or are refused. The node is sealed even
// if its record cannot be committed, because operators seal when something is wrong; the
// record is then made after the next unsealing. Sealing a sealed node resets the ceremony
// in progress, like ResetShares without force. The ceremonies of an unsealed node end when it
// is sealed. Every operator may seal.
func (r *Ceremonies) Seal(ctx context.Context, op Operator) error {
	c, _ := r.cfg.Replica.State().Cluster()
	if c == nil {
		return errNotInitialised
	}
	if r.cfg.Vault.Sealed() {
		return r.ResetShares(ctx, op, nil)
	}
	ev := op.Event("Seal", c)
	ev.At = r.cfg.Clock.Now()
	add := func(*fsm.State, *record.Event) {}
	if r.cfg.Sealing != nil {
		var done func()
		add, done = r.cfg.Sealing()
		defer done()
	}
	r.cfg.Events.RecordPendingWithin(ctx, sealPatience/2) // record earlier events first
	ctx, cancel := context.WithTimeout(ctx, sealPatience)
	defer cancel()
	_, err := r.cfg.Events.CommitEvent(ctx, func(s *fsm.State) (record.Event, error) {
		now := ev
		add(s, &now)
		return now, nil
	})
	r.cfg.Vault.Seal()
	r.sweep(c)
	r.cfg.Log.Info("node sealed", "operator", op.Name)
	if err != nil {
		r.cfg.Log.Warn("the node was sealed without a record, which will be made after the next unsealing", "err", err)
		ev.RequestID = [16]byte{} // the first attempt may still be recorded
		r.cfg.Events.Pending.Add(ev)
	}
	return nil
}

// ConfirmTime confirms that cluster time may advance by more than a day, up to an hour from
// this node's clock. A majority of the nodes' clocks has to agree as well. This is needed
// after the whole cluster was down for a long time.
func (r *Ceremonies) ConfirmTime(ctx context.Context, op Operator) error {
	c, _ := r.cfg.Replica.State().Cluster()
	if c == nil {
		return errNotInitialised
	}
	until := r.cfg.Clock.Now().Add(time.Hour)
	ev := op.Event("ConfirmTime", c)
	ev.Parameters = []*auditpb.Field{auditfield.Text("until", until.UTC().Format(time.RFC3339Nano))}
	ev.Changes = []*fsmpb.Change{{Change: &fsmpb.Change_ConfirmTime{ConfirmTime: &fsmpb.ConfirmTime{Until: until.UnixNano()}}}}
	_, err := r.cfg.Events.Record(ctx, ev)
	return err
}

// CRLEvent describes a certificate revocation list that an operator gave to this node, and
// the result.
type CRLEvent struct {
	Issuer  string
	Number  uint64
	Revoked int
	// Closed is the number of connections that were closed.
	Closed int
	Err    error
}

// RecordCRL records that an operator gave this node a certificate revocation list. If the
// node is sealed or the log does not accept records, the event is recorded later.
func (r *Ceremonies) RecordCRL(ctx context.Context, op Operator, l CRLEvent) {
	c, _ := r.cfg.Replica.State().Cluster()
	ev := op.Event("InstallCRL", c)
	ev.At, ev.Err = r.cfg.Clock.Now(), l.Err
	if l.Issuer != "" {
		ev.Parameters = []*auditpb.Field{
			auditfield.Text("issuer", l.Issuer), auditfield.Text("number", strconv.FormatUint(l.Number, 10)), auditfield.Number("revoked", l.Revoked), auditfield.Number("connectionsClosed", l.Closed),
		}
	}
	r.cfg.Events.Pending.Add(ev)
	r.cfg.Events.RecordPendingWithin(ctx, sealPatience/2)
}
