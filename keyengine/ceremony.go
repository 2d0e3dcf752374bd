package keyengine

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
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

// event is a record of something that the operator did.
func (op Operator) event(name string, c *fsmpb.Cluster) record.Event {
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
	Ceremony *CeremonyStatus
	// VerifierKey checks the audit log's checkpoints; see verify.Dir in auditlog/verify.
	VerifierKey string
	// MemoryLocked says that keys cannot be swapped out.
	MemoryLocked bool
}

// CeremonyStatus is what operators may know of an unsealing under way.
type CeremonyStatus struct {
	// Nonce names the ceremony, on this node.
	Nonce [16]byte
	// Owner is the operator who gave the first share.
	Owner          string
	Began, Expires time.Time
}

// Sealed reports whether the node is sealed.
func (e *Engine) Sealed() bool { return e.vault.Sealed() }

// SealStatus tells how this node's seal stands.
func (e *Engine) SealStatus() SealStatus {
	st := SealStatus{Sealed: e.vault.Sealed(), NodeID: e.cfg.NodeID, MemoryLocked: e.vault.Arena().Locked()}
	c, _ := e.replica.State().Cluster()
	if c == nil {
		return st
	}
	st.Initialised = true
	st.ClusterID, st.Account, st.Region, st.Partition = clusterID(c), c.Account, c.Region, c.Partition
	st.MoreRegions = slices.Clone(c.MoreRegions)
	st.Threshold, st.Shares = int(c.Shares.Threshold), int(c.Shares.Count)
	st.VerifierKey = verifierKey(c)
	if st.Sealed {
		st.Custodians, st.Ceremony = e.ceremony.status(e.clock.Now(), c)
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
func (e *Engine) sealedCluster(ctx context.Context) (*fsmpb.Cluster, error) {
	c, _ := e.replica.State().Cluster()
	if c == nil {
		// A node that has just started may not have heard of it yet.
		s, err := e.FreshState(ctx)
		if err != nil {
			return nil, err
		}
		if c, _ = s.Cluster(); c == nil {
			return nil, errNotInitialised
		}
	}
	if !e.vault.Sealed() {
		return nil, kmsapi.Errorf(ErrUnsealed, "This node is unsealed already.")
	}
	return c, nil
}

// Challenge gives the key that this node's shares have to be encrypted to, so that
// none of the buffers that they come through has one in the clear. It begins no
// ceremony: the first share does.
func (e *Engine) Challenge(ctx context.Context) (*Challenge, error) {
	c, err := e.sealedCluster(ctx)
	if err != nil {
		return nil, err
	}
	set, _, err := shareSet(c)
	if err != nil {
		return nil, err
	}
	e.ceremony.mu.Lock()
	defer e.ceremony.mu.Unlock()
	e.abandonLocked(c)
	key, err := e.ceremony.receiverLocked(e.clock.Now())
	if err != nil {
		return nil, err
	}
	return &Challenge{NodeID: e.cfg.NodeID, ClusterID: set.Cluster, Nonce: e.ceremony.nonce, PublicKey: key}, nil
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
func (e *Engine) SubmitSealedShare(ctx context.Context, op Operator, nonce, sealed []byte) (SealStatus, error) {
	err := e.submitShare(ctx, op, func(c *fsmpb.Cluster) (*keymat.Secret, error) {
		return e.ceremony.openLocked([16]byte(c.Id), e.cfg.NodeID, nonce, sealed)
	})
	return e.SealStatus(), err
}

// SubmitShare takes a share in the clear, as SubmitSealedShare does otherwise: for
// who runs the node in its own process and has the shares there.
func (e *Engine) SubmitShare(ctx context.Context, op Operator, share string) (SealStatus, error) {
	err := e.submitShare(ctx, op, func(*fsmpb.Cluster) (*keymat.Secret, error) {
		return e.vault.Arena().Store([]byte(share))
	})
	return e.SealStatus(), err
}

func (e *Engine) submitShare(ctx context.Context, op Operator, open func(*fsmpb.Cluster) (*keymat.Secret, error)) error {
	c, err := e.sealedCluster(ctx)
	if err != nil {
		return err
	}
	set, commitments, err := shareSet(c)
	if err != nil {
		return err
	}
	e.ceremony.mu.Lock()
	defer e.ceremony.mu.Unlock()
	e.abandonLocked(c)
	var index int
	var unseal *keymat.Secret
	err = e.ceremony.allowLocked(e.clock.Now(), op.Name)
	if err == nil {
		keymat.Scrub(func() {
			var given *keymat.Secret
			if given, err = open(c); err == nil {
				defer given.Destroy()
				index, unseal, err = e.ceremony.addLocked(e.clock.Now(), op.Name, set, commitments, given)
			}
			err = shareFault(err)
		})
		if errors.Is(err, ErrShare) {
			e.ceremony.refusedLocked(e.clock.Now(), op.Name)
		}
	}
	step := op.event("SubmitShare", c)
	step.At = e.clock.Now()
	if index > 0 {
		step.Parameters = append(step.Parameters, auditfield.Number("custodian", index))
	}
	step.Parameters = append(step.Parameters, auditfield.Text("shareSet", hex.EncodeToString(set.Set[:])))
	step.Parameters = append(step.Parameters, e.ceremony.fieldsLocked()...)
	step.Err = err
	e.events.Pending.Add(step)
	if err != nil {
		return err
	}
	if unseal == nil {
		return nil
	}
	// Enough shares. Whatever comes of it, they have served.
	done := op.event("Unseal", c)
	done.RequestID = [16]byte{} // the last share's step has it
	done.At = e.clock.Now()
	done.Parameters = append([]*auditpb.Field{e.ceremony.indexes("custodians")}, e.ceremony.fieldsLocked()...)
	e.ceremony.endLocked()
	keymat.Scrub(func() { done.Err = e.vault.Open(c, unseal) })
	e.events.Pending.Add(done)
	if done.Err != nil {
		e.log.Error("the shares are right but do not open the cluster's root key", "err", done.Err)
	} else {
		e.log.Info("node unsealed", "operator", op.Name)
	}
	return done.Err
}

// abandonLocked wipes what an unfinished ceremony left, if it is time.
func (e *Engine) abandonLocked(c *fsmpb.Cluster) {
	fields := e.ceremony.fieldsLocked()
	n := e.ceremony.expireLocked(e.clock.Now(), c)
	if n == 0 {
		return
	}
	e.log.Info("shares of an unfinished unsealing were wiped", "shares", n)
	e.events.Pending.Add(record.Event{
		Name: "AbandonShares", Kind: record.KindOperator, At: e.clock.Now(),
		Identity:   &auditpb.Identity{Type: "AWSService", InvokedBy: "Conclave"},
		Parameters: append([]*auditpb.Field{auditfield.Number("shares", n)}, fields...),
	})
}

// expireShares drops an abandoned ceremony. Run calls it every second.
func (e *Engine) expireShares() {
	c, _ := e.replica.State().Cluster()
	e.ceremony.mu.Lock()
	defer e.ceremony.mu.Unlock()
	e.abandonLocked(c)
}

// ResetShares wipes the shares that were given so far. The ceremony of another
// operator is reset only by force, which is that ceremony's nonce: a lost
// certificate must not be able to keep the cluster closed for long by beginning
// ceremonies, and one that is used to undo those of others has to say so, in a
// record that names both.
func (e *Engine) ResetShares(_ context.Context, op Operator, force []byte) error {
	c, _ := e.replica.State().Cluster()
	if c == nil {
		return errNotInitialised
	}
	e.ceremony.mu.Lock()
	defer e.ceremony.mu.Unlock()
	e.abandonLocked(c)
	if len(e.ceremony.shares) == 0 {
		return nil
	}
	step := op.event("ResetShares", c)
	step.At = e.clock.Now()
	step.Parameters = append([]*auditpb.Field{e.ceremony.indexes("custodians")}, e.ceremony.fieldsLocked()...)
	if owner := e.ceremony.owner; owner != op.Name {
		if !slices.Equal(force, e.ceremony.nonce[:]) {
			step.Err = kmsapi.Errorf(ErrOwner, "The ceremony under way was begun by %s, and holds %d shares. Only that operator may reset it, or whoever "+
				"forces it, naming ceremony %x; it is recorded.", owner, len(e.ceremony.shares), e.ceremony.nonce)
			e.events.Pending.Add(step)
			return step.Err
		}
		step.Parameters = append(step.Parameters, auditfield.Flag("forced", true))
		e.log.Warn("the ceremony of another operator is reset by force", "operator", op.Name, "owner", owner)
	}
	e.ceremony.endLocked()
	e.events.Pending.Add(step)
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
func (e *Engine) Seal(ctx context.Context, op Operator) error {
	c, _ := e.replica.State().Cluster()
	if c == nil {
		return errNotInitialised
	}
	if e.vault.Sealed() {
		return e.ResetShares(ctx, op, nil)
	}
	ev := op.event("Seal", c)
	ev.At = e.clock.Now()
	e.events.RecordPendingWithin(ctx, sealPatience/2) // what happened before it
	ctx, cancel := context.WithTimeout(ctx, sealPatience)
	defer cancel()
	_, err := e.events.Commit(ctx, ev)
	e.vault.Seal()
	e.log.Info("node sealed", "operator", op.Name)
	if err != nil {
		e.log.Warn("the record of sealing has to wait for the next unsealing", "err", err)
		ev.RequestID = [16]byte{} // the first may be recorded after all
		e.events.Pending.Add(ev)
	}
	return nil
}

// ConfirmTime is an operator's word that cluster time may step by more than a
// day, up to an hour from this node's clock; a majority of the nodes' clocks has
// to agree as well. It is needed after the whole cluster was down for long.
func (e *Engine) ConfirmTime(ctx context.Context, op Operator) error {
	c, _ := e.replica.State().Cluster()
	if c == nil {
		return errNotInitialised
	}
	until := e.clock.Now().Add(time.Hour)
	ev := op.event("ConfirmTime", c)
	ev.Parameters = []*auditpb.Field{auditfield.Text("until", until.UTC().Format(time.RFC3339Nano))}
	ev.Changes = []*fsmpb.Change{{Change: &fsmpb.Change_ConfirmTime{ConfirmTime: &fsmpb.ConfirmTime{Until: until.UnixNano()}}}}
	d, err := e.events.Commit(ctx, ev)
	return record.Accepted(ev.Name, d, err)
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
func (e *Engine) RecordCRL(ctx context.Context, op Operator, r CRLEvent) {
	c, _ := e.replica.State().Cluster()
	ev := op.event("InstallCRL", c)
	ev.At, ev.Err = e.clock.Now(), r.Err
	if r.Issuer != "" {
		ev.Parameters = []*auditpb.Field{
			auditfield.Text("issuer", r.Issuer), auditfield.Text("number", strconv.FormatUint(r.Number, 10)), auditfield.Number("revoked", r.Revoked), auditfield.Number("connectionsClosed", r.Closed),
		}
	}
	e.events.Pending.Add(ev)
	e.events.RecordPendingWithin(ctx, sealPatience/2)
}
