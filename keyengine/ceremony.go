package keyengine

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
)

// Outcomes of the operators' calls.
var (
	ErrInitialised    = &Error{Code: "AlreadyInitialisedException"}
	ErrNotInitialised = &Error{Code: "NotInitialisedException"}
	// ErrNotReady: not every node that is to be part of the new cluster is there.
	ErrNotReady = &Error{Code: "ClusterNotReadyException"}
	// ErrShare: a share was refused; the message says what is wrong with it.
	ErrShare = &Error{Code: "InvalidShareException"}
	// ErrUnsealed: the node needs no shares.
	ErrUnsealed = &Error{Code: "AlreadyUnsealedException"}
)

var errNotInitialised = fault(ErrNotInitialised, "The cluster is not initialised.")

const defaultShareTimeout = 15 * time.Minute

// Operator is who runs this node, as the transport authenticated it.
type Operator struct {
	// Name is the identity URI of the client certificate, or "root".
	Name      string
	SourceIP  string
	RequestID RequestID
}

func (op Operator) identity(c *fsmpb.Cluster) *auditpb.Identity {
	return &auditpb.Identity{Type: "ConclaveOperator", PrincipalId: op.Name, AccountId: c.GetAccount(), Certificate: op.Name}
}

// event is a record of something that the operator did.
func (op Operator) event(name string, c *fsmpb.Cluster) event {
	return event{
		name: name, kind: eventOperator, requestID: op.RequestID, identity: op.identity(c), sourceIP: op.SourceIP, transport: "grpc",
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
	// VerifierKey checks the audit log's checkpoints; see auditlog.Verify.
	VerifierKey string
	// MemoryLocked says that keys cannot be swapped out.
	MemoryLocked bool
}

// Sealed reports whether the node is sealed.
func (e *Engine) Sealed() bool { return e.vault.sealed() }

// SealStatus tells how this node's seal stands.
func (e *Engine) SealStatus() SealStatus {
	st := SealStatus{Sealed: e.vault.sealed(), NodeID: e.cfg.NodeID, MemoryLocked: e.vault.arena.Locked()}
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
		st.Custodians = e.ceremony.custodians(e.clock.Now(), c)
		st.Progress = len(st.Custodians)
	}
	return st
}

// ceremony holds the shares of an unfinished unsealing, as the text that their
// custodians gave, in locked memory. It prints as [redacted].
type ceremony struct {
	arena   *keymat.Arena
	timeout time.Duration

	mu     sync.Mutex
	set    [16]byte // that the shares are of
	shares map[int]*keymat.Secret
	began  time.Time
}

func newCeremony(cfg Config, arena *keymat.Arena) *ceremony {
	timeout := cfg.ShareTimeout
	if timeout <= 0 {
		timeout = defaultShareTimeout
	}
	return &ceremony{arena: arena, timeout: timeout, shares: make(map[int]*keymat.Secret)}
}

func (c *ceremony) resetLocked() {
	for _, s := range c.shares {
		s.Destroy()
	}
	clear(c.shares)
	c.began = time.Time{}
}

// expireLocked wipes shares that have been kept for too long, counted from the
// first, and shares of a set that is no longer the cluster's. It reports how
// many were.
func (c *ceremony) expireLocked(now time.Time, cluster *fsmpb.Cluster) int {
	n := len(c.shares)
	if n == 0 {
		return 0
	}
	age := now.Sub(c.began)
	if age >= 0 && age < c.timeout && string(c.set[:]) == string(cluster.GetShares().GetId()) {
		return 0
	}
	c.resetLocked()
	return n
}

func (c *ceremony) custodians(now time.Time, cluster *fsmpb.Cluster) []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expireLocked(now, cluster)
	return slices.Sorted(maps.Keys(c.shares))
}

// indexes lists the shares' indexes for a record.
func (c *ceremony) indexes(name string) *auditpb.Field {
	var indexes []string
	for _, i := range slices.Sorted(maps.Keys(c.shares)) {
		indexes = append(indexes, strconv.Itoa(i))
	}
	return textList(name, indexes)
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

// SubmitShare takes one custodian's share. The one that completes the threshold
// unseals the node; all shares are wiped then. A share that is refused, with
// ErrShare and a message that names the fault, leaves the progress of the others
// as it is. Shares are wiped ShareTimeout after the first of them.
//
// A sealed node can record nothing, so each step is kept in memory and recorded
// right after the node is unsealed.
func (e *Engine) SubmitShare(ctx context.Context, op Operator, share string) (SealStatus, error) {
	err := e.submitShare(ctx, op, share)
	return e.SealStatus(), err
}

func (e *Engine) submitShare(ctx context.Context, op Operator, share string) error {
	c, _ := e.replica.State().Cluster()
	if c == nil {
		// A node that has just started may not have heard of it yet.
		s, err := e.freshState(ctx)
		if err != nil {
			return err
		}
		if c, _ = s.Cluster(); c == nil {
			return errNotInitialised
		}
	}
	if !e.vault.sealed() {
		return fault(ErrUnsealed, "This node is unsealed already.")
	}
	set, commitments, err := shareSet(c)
	if err != nil {
		return err
	}
	e.ceremony.mu.Lock()
	defer e.ceremony.mu.Unlock()
	e.abandonLocked(c)
	index, secret, err := e.ceremony.add(e.clock.Now(), set, commitments, []byte(share))
	step := op.event("SubmitShare", c)
	step.at = e.clock.Now()
	if index > 0 {
		step.parameters = append(step.parameters, number("custodian", index))
	}
	step.parameters = append(step.parameters, text("shareSet", hex.EncodeToString(set.Set[:])))
	step.err = err
	e.pending.add(step)
	if err != nil {
		return err
	}
	if secret == nil {
		return nil
	}
	// Enough shares. Whatever comes of it, they have served.
	done := op.event("Unseal", c)
	done.requestID = RequestID{} // the last share's step has it
	done.at = e.clock.Now()
	done.parameters = []*auditpb.Field{e.ceremony.indexes("custodians")}
	e.ceremony.resetLocked()
	done.err = e.open(c, secret)
	e.pending.add(done)
	if done.err != nil {
		e.log.Error("the shares are right but do not open the cluster's root key", "err", done.err)
	} else {
		e.log.Info("node unsealed", "operator", op.Name)
	}
	return done.err
}

// add takes a share and keeps it. When there are enough, it combines them to the
// unseal key. index is 0 for text that is no share at all.
func (c *ceremony) add(now time.Time, set shamir.SetInfo, commitments [][32]byte, given []byte) (index int, secret *keymat.Secret, err error) {
	defer clear(given)
	s, err := shamir.ParseShare(given)
	if err != nil {
		return 0, nil, fault(ErrShare, "%v.", err)
	}
	defer s.Wipe()
	all, err := shamir.NewCollector(set, commitments)
	if err != nil {
		return 0, nil, err
	}
	defer all.Reset()
	for _, kept := range c.shares {
		if err := kept.With(func(b []byte) error { return collect(all, b) }); err != nil {
			return 0, nil, fmt.Errorf("a share kept from before: %w", err)
		}
	}
	have, need, err := all.Add(s)
	if err != nil {
		if s.Set().Cluster != set.Cluster || s.Set() != set {
			return 0, nil, fault(ErrShare, "%v.", err) // its index is another set's
		}
		return s.Index(), nil, fault(ErrShare, "%v.", err)
	}
	if len(c.shares) == 0 {
		c.set, c.began = set.Set, now
	}
	kept, err := c.arena.Store(trim(given))
	if err != nil {
		return s.Index(), nil, err
	}
	c.shares[s.Index()] = kept
	if have < need {
		return s.Index(), nil, nil
	}
	key, err := all.Secret()
	if err != nil {
		return s.Index(), nil, err
	}
	secret, err = c.arena.Store(key) // wipes key
	return s.Index(), secret, err
}

// collect parses text that was parsed before.
func collect(all *shamir.Collector, share []byte) error {
	s, err := shamir.ParseShare(share)
	if err != nil {
		return err
	}
	defer s.Wipe()
	_, _, err = all.Add(s)
	return err
}

// trim leaves white space out, in place.
func trim(b []byte) []byte {
	out := b[:0]
	for _, c := range b {
		if c > ' ' {
			out = append(out, c)
		}
	}
	return out
}

// open opens the vault with the unseal key, which it destroys.
func (e *Engine) open(c *fsmpb.Cluster, unseal *keymat.Secret) error {
	defer unseal.Destroy()
	cluster, set := [16]byte(c.Id), [16]byte(c.Shares.Id)
	root, err := keymat.UnwrapRoot(e.vault.arena, unseal, cluster, set, c.Shares.Epoch, c.WrappedRoot)
	if err != nil {
		return fmt.Errorf("root key: %w", err)
	}
	defer root.Destroy()
	ring := keymat.NewKeyring(e.vault.arena, cluster)
	for _, k := range c.Keyring {
		if err := ring.Load(root, k.Generation, k.Wrapped); err != nil {
			ring.Wipe()
			return err
		}
	}
	o := newOpened(cluster, ring)
	if !e.vault.install(o) {
		o.wipe() // opened by somebody else meanwhile, which is as good
	}
	return nil
}

// abandonLocked wipes what an unfinished ceremony left, if it is time.
func (e *Engine) abandonLocked(c *fsmpb.Cluster) {
	n := e.ceremony.expireLocked(e.clock.Now(), c)
	if n == 0 {
		return
	}
	e.log.Info("shares of an unfinished unsealing were wiped", "shares", n)
	e.pending.add(event{
		name: "AbandonShares", kind: eventOperator, at: e.clock.Now(),
		identity:   &auditpb.Identity{Type: "AWSService", InvokedBy: "Conclave"},
		parameters: []*auditpb.Field{number("shares", n)},
	})
}

// expireShares drops an abandoned ceremony. Run calls it every second.
func (e *Engine) expireShares() {
	c, _ := e.replica.State().Cluster()
	e.ceremony.mu.Lock()
	defer e.ceremony.mu.Unlock()
	e.abandonLocked(c)
}

// ResetShares wipes the shares that were given so far.
func (e *Engine) ResetShares(_ context.Context, op Operator) error {
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
	step.at = e.clock.Now()
	step.parameters = []*auditpb.Field{e.ceremony.indexes("custodians")}
	e.ceremony.resetLocked()
	e.pending.add(step)
	return nil
}

// sealPatience is how long Seal waits for its record before it seals without.
const sealPatience = 10 * time.Second

// Seal records that the operator seals this node, and seals it: the keyring and
// every key under it are wiped, requests under way finish or are refused. A node
// whose log takes no records is sealed all the same, since to seal is what one
// does when something is wrong; the record is then made up for after the next
// unsealing. To seal a sealed node wipes the shares given so far.
func (e *Engine) Seal(ctx context.Context, op Operator) error {
	c, _ := e.replica.State().Cluster()
	if c == nil {
		return errNotInitialised
	}
	if e.vault.sealed() {
		return e.ResetShares(ctx, op)
	}
	ev := op.event("Seal", c)
	ev.at = e.clock.Now()
	e.recordPendingBriefly(ctx) // what happened before it
	ctx, cancel := context.WithTimeout(ctx, sealPatience)
	defer cancel()
	_, err := e.commitEvent(ctx, ev)
	e.vault.seal()
	e.log.Info("node sealed", "operator", op.Name)
	if err != nil {
		e.log.Warn("the record of sealing has to wait for the next unsealing", "err", err)
		ev.requestID = RequestID{} // the first may be recorded after all
		e.pending.add(ev)
	}
	return nil
}

func (e *Engine) recordPendingBriefly(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, sealPatience/2)
	defer cancel()
	e.recordPending(ctx)
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
	ev.parameters = []*auditpb.Field{text("until", until.UTC().Format(time.RFC3339Nano))}
	ev.changes = []*fsmpb.Change{{Change: &fsmpb.Change_ConfirmTime{ConfirmTime: &fsmpb.ConfirmTime{Until: until.UnixNano()}}}}
	d, err := e.commitEvent(ctx, ev)
	return accepted(ev.name, d, err)
}

// String and the like give "[redacted]".
func (*ceremony) String() string             { return redacted }
func (*ceremony) GoString() string           { return redacted }
func (*ceremony) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }
func (*ceremony) LogValue() slog.Value       { return slog.StringValue(redacted) }
