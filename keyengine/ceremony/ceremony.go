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
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Outcomes of the operators' calls.
var (
	ErrInitialised    = &kmsapi.Error{Code: "AlreadyInitialisedException"}
	ErrNotInitialised = &kmsapi.Error{Code: "NotInitialisedException"}
	// ErrNotReady: not every node that is to be part of the new cluster is there.
	ErrNotReady = &kmsapi.Error{Code: "ClusterNotReadyException"}
	// ErrShare: a share was refused; the message says what is wrong with it.
	ErrShare = &kmsapi.Error{Code: "InvalidShareException"}
	// ErrUnsealed: the node needs no shares.
	ErrUnsealed = &kmsapi.Error{Code: "AlreadyUnsealedException"}
	// ErrChallenge: a share was encrypted for a ceremony that has ended. Nothing
	// came of it; the operator asks for the challenge again.
	ErrChallenge = &kmsapi.Error{Code: "InvalidChallengeException"}
	// ErrOwner: the ceremony under way is another operator's.
	ErrOwner = &kmsapi.Error{Code: "CeremonyInProgressException"}
)

// Ceremonies are what operators do with one node's seal: they initialise the cluster,
// unseal the node and seal it. They are safe for concurrent use.
type Ceremonies struct {
	cfg Config
	// initialising is held by Init.
	initialising sync.Mutex
	unsealing    *unsealing
}

// Config is what Ceremonies work with.
type Config struct {
	NodeID  string
	Vault   *vault.Vault
	Replica Replica
	Clock   record.Clock
	Log     *slog.Logger
	Events  *record.Recorder
	// Fresh is a state that has everything that was committed before the call.
	Fresh func(context.Context) (*fsm.State, error)
	// ShareTimeout is how long shares of an unfinished unsealing are kept; 0 for
	// fifteen minutes.
	ShareTimeout time.Duration
}

// Replica is what ceremonies need of the replicated log.
type Replica interface {
	record.Log
	// Barrier waits until State has everything that was committed before.
	Barrier(ctx context.Context) error
}

// New returns the ceremonies of a node.
func New(cfg Config) *Ceremonies {
	return &Ceremonies{cfg: cfg, unsealing: newUnsealing(cfg.ShareTimeout, cfg.Vault.Arena())}
}

var errNotInitialised = kmsapi.Errorf(ErrNotInitialised, "The cluster is not initialised.")

// Operator is who runs this node, as the transport authenticated it.
type Operator struct {
	// Name is the identity URI of the client certificate, or "root".
	Name      string
	SourceIP  string
	RequestID iam.RequestID
}

func (op Operator) identity(c *fsmpb.Cluster) *auditpb.Identity {
	return &auditpb.Identity{Type: record.OperatorType, PrincipalId: op.Name, AccountId: c.GetAccount(), Certificate: op.Name}
}

// Event is a record of something that the operator did.
func (op Operator) Event(name string, c *fsmpb.Cluster) record.Event {
	return record.Event{
		Name: name, Kind: record.KindOperator, RequestID: op.RequestID, Identity: op.identity(c), SourceIP: op.SourceIP, Transport: "grpc",
	}
}

// SealStatus is what anybody may know of a node's seal.
type SealStatus struct {
	Initialised bool
	Sealed      bool
	NodeID      string
	// ClusterID in hex; empty, like what follows, before Init.
	ClusterID string
	Account   string
	Region    string
	// MoreRegions that the cluster serves, ascending.
	MoreRegions []string
	Partition   string
	// Threshold of Shares open the node; Progress were given so far.
	Threshold int
	Shares    int
	Progress  int
	// Custodians are the indexes of the shares given so far, ascending.
	Custodians []int
	// Ceremony is the one under way: nil until a first share is held.
	Ceremony *Status
	// VerifierKey checks the audit log's checkpoints; see verify.Dir in auditlog/verify.
	VerifierKey string
	// MemoryLocked says that keys cannot be swapped out.
	MemoryLocked bool
}

// Status is what operators may know of an unsealing under way.
type Status struct {
	// Nonce names the ceremony, on this node.
	Nonce [16]byte
	// Owner is the operator who gave the first share.
	Owner          string
	Began, Expires time.Time
}

// Sealed reports whether the node is sealed.
func (r *Ceremonies) Sealed() bool { return r.cfg.Vault.Sealed() }

// SealStatus tells how this node's seal stands.
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
	if st.Sealed {
		st.Custodians, st.Ceremony = r.unsealing.status(r.cfg.Clock.Now(), c)
		st.Progress = len(st.Custodians)
	}
	return st
}

// shareSet tells what the shares of a cluster have to be.
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

// Challenge is what a share for a sealed node is encrypted to.
type Challenge struct {
	NodeID    string
	ClusterID [16]byte
	// Nonce names the ceremony that shares are for.
	Nonce [16]byte
	// PublicKey is a point on P-256, see keymat.Receiver. Its private half is in
	// locked memory, and is wiped when the ceremony ends.
	PublicKey []byte
}

// shareInfo binds an encrypted share to the node and the ceremony.
func shareInfo(cluster, nonce [16]byte, node string) []byte {
	return slices.Concat([]byte("conclave share v1\x00"), cluster[:], nonce[:], []byte(node))
}

// sealedCluster is the cluster that this node may be unsealed for.
func (r *Ceremonies) sealedCluster(ctx context.Context) (*fsmpb.Cluster, error) {
	c, _ := r.cfg.Replica.State().Cluster()
	if c == nil {
		// A node that has just started may not have heard of it yet.
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

// Challenge gives the key that this node's shares have to be encrypted to, so that
// none of the buffers that they come through has one in the clear. It begins no
// ceremony: the first share does.
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

// SubmitSealedShare takes one custodian's share, encrypted to the challenge with
// that nonce. The one that completes the threshold unseals the node; all shares
// are wiped then. A share that is refused, with ErrShare and a message that names
// the fault, leaves the progress of the others as it is; an operator whose shares
// are refused again and again gets ErrThrottling. Shares are wiped ShareTimeout
// after the first of them.
//
// A sealed node can record nothing, so each step is kept in memory and recorded
// right after the node is unsealed.
func (r *Ceremonies) SubmitSealedShare(ctx context.Context, op Operator, nonce, sealed []byte) (SealStatus, error) {
	err := r.submitShare(ctx, op, func(c *fsmpb.Cluster) (*keymat.Secret, error) {
		return r.unsealing.openLocked([16]byte(c.Id), r.cfg.NodeID, nonce, sealed)
	})
	return r.SealStatus(), err
}

// SubmitShare takes a share in the clear, as SubmitSealedShare does otherwise: for
// who runs the node in its own process and has the shares there.
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
			err = shareFault(err)
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
	// Enough shares. Whatever comes of it, they have served.
	done := op.Event("Unseal", c)
	done.RequestID = [16]byte{} // the last share's step has it
	done.At = r.cfg.Clock.Now()
	done.Parameters = append([]*auditpb.Field{r.unsealing.indexes("custodians")}, r.unsealing.fieldsLocked()...)
	r.unsealing.endLocked()
	keymat.Scrub(func() { done.Err = r.cfg.Vault.Open(c, unseal) })
	r.cfg.Events.Pending.Add(done)
	if done.Err != nil {
		r.cfg.Log.Error("the shares are right but do not open the cluster's root key", "err", done.Err)
	} else {
		r.cfg.Log.Info("node unsealed", "operator", op.Name)
	}
	return done.Err
}

// abandonLocked wipes what an unfinished ceremony left, if it is time.
func (r *Ceremonies) abandonLocked(c *fsmpb.Cluster) {
	fields := r.unsealing.fieldsLocked()
	n := r.unsealing.expireLocked(r.cfg.Clock.Now(), c)
	if n == 0 {
		return
	}
	r.cfg.Log.Info("shares of an unfinished unsealing were wiped", "shares", n)
	r.cfg.Events.Pending.Add(record.Event{
		Name: "AbandonShares", Kind: record.KindOperator, At: r.cfg.Clock.Now(),
		Identity:   &auditpb.Identity{Type: "AWSService", InvokedBy: "Conclave"},
		Parameters: append([]*auditpb.Field{auditfield.Number("shares", n)}, fields...),
	})
}

// Expire drops an abandoned ceremony. It is to be called every second.
func (r *Ceremonies) Expire() {
	c, _ := r.cfg.Replica.State().Cluster()
	r.unsealing.mu.Lock()
	defer r.unsealing.mu.Unlock()
	r.abandonLocked(c)
}

// ResetShares wipes the shares that were given so far. The ceremony of another
// operator is reset only by force, which is that ceremony's nonce: a lost
// certificate must not be able to keep the cluster closed for long by beginning
// ceremonies, and one that is used to undo those of others has to say so, in a
// record that names both.
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

// sealPatience is how long Seal waits for its record before it seals without.
const sealPatience = 10 * time.Second

// Seal records that the operator seals this node, and seals it: the keyring and
// every key under it are wiped, requests under way finish or are refused. A node
// whose log takes no records is sealed all the same, since to seal is what one
// does when something is wrong; the record is then made up for after the next
// unsealing. To seal a sealed node resets the ceremony under way, as ResetShares
// does without force. Every operator may seal.
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
	r.cfg.Events.RecordPendingWithin(ctx, sealPatience/2) // what happened before it
	ctx, cancel := context.WithTimeout(ctx, sealPatience)
	defer cancel()
	_, err := r.cfg.Events.Record(ctx, ev)
	r.cfg.Vault.Seal()
	r.cfg.Log.Info("node sealed", "operator", op.Name)
	if err != nil {
		r.cfg.Log.Warn("the record of sealing has to wait for the next unsealing", "err", err)
		ev.RequestID = [16]byte{} // the first may be recorded after all
		r.cfg.Events.Pending.Add(ev)
	}
	return nil
}

// ConfirmTime is an operator's word that cluster time may step by more than a
// day, up to an hour from this node's clock; a majority of the nodes' clocks has
// to agree as well. It is needed after the whole cluster was down for long.
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

// CRLEvent is what came of a certificate revocation list that an operator gave this
// node.
type CRLEvent struct {
	Issuer  string
	Number  uint64
	Revoked int
	// Closed is how many connections were ended.
	Closed int
	Err    error
}

// RecordCRL records that an operator gave this node a certificate revocation list:
// now, if the node is unsealed and the log takes records, and else once it does.
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
