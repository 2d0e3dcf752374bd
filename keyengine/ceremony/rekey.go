package ceremony

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/keyengine/custodian"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/keymat"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/shamir"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// A KeyChange says which of the keys above the cluster's secrets a ceremony replaces.
type KeyChange int

const (
	// Rekey replaces the unseal key, and so the shares. A threshold of the new shares has to
	// be submitted before the old ones become worthless.
	Rekey KeyChange = iota + 1
	// RotateRoot replaces the root key. The shares stay.
	RotateRoot
	// RotateKeyring adds a generation to the keyring, by which everything is then wrapped
	// again; see package rewrap. Shares and root key stay.
	RotateKeyring
)

const (
	// rekeyLevel is the feature level that nodes must know to follow such a change.
	rekeyLevel = 2
	// settlePatience is how long a ceremony tries to find out whether its record was
	// committed, if the log did not say.
	settlePatience = 10 * time.Second
)

// changeNames has for each KeyChange what its events are named after, what its shares are
// encrypted for, and how it is called in messages.
var changeNames = map[KeyChange]struct{ event, purpose, text string }{
	Rekey:         {"Rekey", "conclave rekey share v1", "rekey"},
	RotateRoot:    {"RootRotation", "conclave root rotation share v1", "rotation of the root key"},
	RotateKeyring: {"KeyringRotation", "conclave keyring rotation share v1", "rotation of the keyring"},
}

// KeyChanges is the ceremony of a node that replaces keys. Like a break-glass ceremony, it is
// in the memory of one node: until its record is committed, nothing has changed anywhere,
// and its end, for whatever reason, leaves the cluster as it was.
//
// Ceremonies of two nodes may run at the same time. The first to be committed ends the other:
// each begins with the share set in its epoch, which a change of the shares or of the root key
// replaces. KeyChanges is safe for concurrent use.
type KeyChanges struct {
	slot // mu guards the fields below, too

	change KeyChange
	base   *fsmpb.ShareSet // the share set that it began with

	// Of a rekey: the set that is to be, without its id and commitments, and the keys of its
	// custodians if they were given.
	plan    *fsmpb.ShareSet
	keepers []custodian.Custodian
	// next has that set. It is nil until the threshold of the current shares is reached. The
	// shares are in encrypted if there are keepers, and otherwise in texts, until the first of
	// them comes back.
	next      *fsmpb.Cluster
	texts     *keymat.Secret
	encrypted []EncryptedShare
}

func newKeyChanges(r *Ceremonies, arena *keymat.Arena) *KeyChanges {
	k := new(KeyChanges)
	k.slot = newSlot(r, k, "", r.cfg.ShareTimeout, arena)
	return k
}

func (*KeyChanges) gone() error { return errNoKeyChange }

func (k *KeyChanges) eventLocked() string {
	if n, ok := changeNames[k.change]; ok {
		return n.event
	}
	return "KeyChange" // there is no ceremony
}

func (k *KeyChanges) forgetLocked() {
	k.texts.Destroy()
	k.change, k.base, k.plan, k.keepers, k.next, k.texts, k.encrypted = 0, nil, nil, nil, nil, nil, nil
}

func (k *KeyChanges) describeLocked() []*auditpb.Field {
	fields := []*auditpb.Field{auditfield.Text("shareSet", hex.EncodeToString(k.base.GetId())), auditfield.Number("epoch", int(k.base.GetEpoch()))}
	if k.change == Rekey {
		fields = append(fields, auditfield.Number("newShares", int(k.plan.Count)), auditfield.Number("newThreshold", int(k.plan.Threshold)))
	}
	if k.next != nil {
		fields = append(fields, auditfield.Text("newShareSet", hex.EncodeToString(k.next.Shares.Id)))
	}
	return fields
}

func (k *KeyChanges) submittedLocked() []*auditpb.Field {
	return []*auditpb.Field{auditfield.Flag("newSet", k.next != nil)}
}

func (k *KeyChanges) staleLocked(c *fsmpb.Cluster) string {
	if !sameSet(c.GetShares(), k.base) {
		return "the share set or the root key was replaced"
	}
	return ""
}

func (k *KeyChanges) setLocked(c *fsmpb.Cluster) (shamir.SetInfo, [][32]byte, error) {
	if k.next != nil {
		return shareSet(k.next)
	}
	return shareSet(c)
}

// KeyChangeParams are the parameters of a ceremony that replaces keys.
type KeyChangeParams struct {
	Kind KeyChange
	// Shares and Threshold are those of the new set of a rekey, with the same limits as in
	// InitParams. Shares may be 0 if Custodians are given, whose number it then is.
	Shares, Threshold int
	// Custodians keep the new shares of a rekey, in this order. Each share is encrypted to
	// the key of its custodian, and none is returned in another form.
	Custodians []CustodianKey
}

// KeyChangeStatus is the status of a ceremony that replaces keys.
type KeyChangeStatus struct {
	NodeID    string
	ClusterID [16]byte
	// ShareSet is the set in force.
	ShareSet *ShareSet
	// Generation is the newest one of the keyring, and Settled says whether everything is
	// wrapped by it.
	Generation uint32
	Settled    bool
	// Active is false if there is no ceremony on this node; the fields below are then empty.
	Active    bool
	Kind      KeyChange
	Nonce     [16]byte
	PublicKey []byte // the key that shares are encrypted to
	Owner     string // the operator who began it
	// Began is when the ceremony began to wait for the shares that it waits for now, and
	// Expires when it ends unless it has enough of them.
	Began, Expires time.Time
	// New is the set that a rekey makes, or nil. Proving says that the ceremony waits for
	// shares of that set; before that, New has no id, no epoch and no commitments.
	New     *ShareSet
	Proving bool
	// Custodians are the indexes of the shares that it has, and Missing those that may still
	// come, of the set that it waits for. Needed is how many more it needs.
	Custodians, Missing []int
	Needed              int
}

// plan returns the set that a rekey is to make, and the keys of its custodians, or an error if
// the ceremony cannot begin.
func (p *KeyChangeParams) plan(s *fsm.State, clock record.Clock) (set *fsmpb.ShareSet, keepers []custodian.Custodian, err error) {
	name, ok := changeNames[p.Kind]
	if !ok {
		return nil, nil, kmsapi.Errorf(kmsapi.ErrValidation, "Say which keys have to be replaced.")
	}
	if p.Kind == Rekey {
		var count int
		var bad []string
		keepers, count, bad = parseCustodians(p.Custodians, p.Shares, clock)
		if bad = append(bad, checkShares(count, p.Threshold)...); bad != nil {
			return nil, nil, kmsapi.Errorf(kmsapi.ErrValidation, "Cannot rekey: %s.", strings.Join(bad, "; "))
		}
		set = &fsmpb.ShareSet{Threshold: uint32(p.Threshold), Count: uint32(count)}
		for _, c := range keepers {
			set.Custodians = append(set.Custodians, &fsmpb.ShareCustodian{Name: c.Name, KeyFingerprint: c.Key.Fingerprint()})
		}
	} else if p.Shares != 0 || p.Threshold != 0 || p.Custodians != nil {
		return nil, nil, kmsapi.Errorf(kmsapi.ErrValidation, "A %s leaves the shares as they are.", name.text)
	}
	if err := level.Allows(s.Level(), rekeyLevel); err != nil {
		return nil, nil, kmsapi.Errorf(kmsapi.ErrUnsupported, "Cannot begin a %s: %v.", name.text, err)
	}
	return set, keepers, nil
}

// Begin begins a ceremony in which the custodians' threshold replaces keys. It is
// recorded before the ceremony begins. There is one such ceremony on a node at a time; it ends
// when its record is committed, when it is cancelled, when it has waited for ShareTimeout,
// when the node is sealed or restarts, and when another ceremony has replaced the share set
// or the root key. Errors: ErrValidation, ErrUnsupported before feature level 2, ErrOwner if
// there is a ceremony already, ErrUnavailable if the node is sealed or the log does not
// accept records.
func (k *KeyChanges) Begin(ctx context.Context, op Operator, p KeyChangeParams) (*KeyChangeStatus, error) {
	c, o, err := k.r.unsealedCluster()
	if err != nil {
		return nil, err
	}
	plan, keepers, err := p.plan(k.r.cfg.Replica.State(), k.r.cfg.Clock)
	if err != nil {
		return nil, err
	}
	set, _, err := shareSet(c)
	if err == nil && p.Kind == RotateKeyring {
		err = mayRotate(c)
	}
	if err != nil {
		return nil, err
	}
	if err := k.take(ctx); err != nil {
		return nil, err
	}
	defer k.giveBack()
	step := op.Event("Begin"+changeNames[p.Kind].event, c)
	if p.Kind == Rekey {
		step.Parameters = []*auditpb.Field{auditfield.Number("newShares", int(plan.Count)), auditfield.Number("newThreshold", int(plan.Threshold))}
		if keepers != nil {
			step.Parameters = append(step.Parameters, custodianFields(namedCustodians(plan))...)
		}
	}
	err = k.begin(ctx, op, c, o, step, "A ceremony that %s began is under way on this node. Complete it, or cancel it by its nonce, %x.", func() {
		k.r.cfg.Log.Warn("a ceremony that replaces keys has begun", "kind", changeNames[p.Kind].text, "operator", op.Name)
		k.purpose, k.set = changeNames[p.Kind].purpose, set.Set
		k.change, k.base, k.plan, k.keepers = p.Kind, c.Shares, plan, keepers
	})
	if err != nil {
		return nil, err
	}
	defer k.mu.Unlock()
	c, _ = k.r.cfg.Replica.State().Cluster()
	return k.statusLocked(c), nil
}

// Status returns the status of the ceremony on this node, and which share set is in force.
// Errors: ErrUnavailable if the node is sealed.
func (k *KeyChanges) Status() (*KeyChangeStatus, error) {
	c, _, err := k.r.unsealedCluster()
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sweepLocked(c)
	return k.statusLocked(c), nil
}

func (k *KeyChanges) statusLocked(c *fsmpb.Cluster) *KeyChangeStatus {
	st := &KeyChangeStatus{NodeID: k.r.cfg.NodeID, ClusterID: [16]byte(c.Id), ShareSet: publicSet(c.Id, c.Shares)}
	st.Generation, st.Settled = newestOf(c)
	if k.began.IsZero() {
		return st
	}
	st.Active, st.Kind, st.Nonce, st.PublicKey, st.Owner = true, k.change, k.nonce, k.receiver.Public(), k.owner
	st.Began, st.Expires = k.began, k.began.Add(k.timeout)
	set, _, _ := k.setLocked(c)
	switch st.Proving = k.next != nil; {
	case st.Proving:
		st.New = publicSet(c.Id, k.next.Shares)
	case k.plan != nil:
		st.New = publicSet(c.Id, k.plan)
	}
	st.Custodians = slices.Sorted(maps.Keys(k.shares))
	for i := 1; i <= set.Count; i++ {
		if k.shares[i] == nil {
			st.Missing = append(st.Missing, i)
		}
	}
	st.Needed = set.Threshold - len(st.Custodians)
	return st
}

// newestOf returns the newest generation of a cluster's keyring, and whether it is settled.
func newestOf(c *fsmpb.Cluster) (generation uint32, settled bool) {
	k := c.Keyring[len(c.Keyring)-1]
	return k.Generation, len(k.Handover) == 0
}

// mayRotate returns an error unless the keyring can get another generation.
func mayRotate(c *fsmpb.Cluster) error {
	if g, settled := newestOf(c); !settled {
		return kmsapi.Errorf(ErrNotSettled, "Generation %d of the keyring is not settled yet: wait until everything is wrapped by it, which `conclave operator rotate status` shows.", g)
	}
	return nil
}

var errNoKeyChange = kmsapi.Errorf(ErrNoCeremony, "There is no such ceremony on this node. A ceremony ends when its time is over, when it is cancelled, when another one has replaced the shares or the root key, and when its node restarts or is sealed.")

// changeStep is a share that was submitted, and the ceremony as it was then.
type changeStep struct {
	*submitted
	change  KeyChange
	plan    *fsmpb.ShareSet
	keepers []custodian.Custodian
	next    *fsmpb.Cluster // of a rekey whose new shares have come back
}

// Submit accepts the share of one custodian for the ceremony with the given
// nonce, encrypted to its key. The share counts once its record is committed. A share that is
// refused leaves the progress as it is.
//
// The one that completes the threshold of the current shares replaces the root key, or makes
// the new shares of a rekey, of which a threshold must then be submitted in the same way. The
// one that completes that puts the new shares into force: one record does that, and from
// there on the old shares are worthless. If this node fails before, the old ones stay valid.
// done reports that the change was made. Errors: ErrNoCeremony, ErrShare, ErrThrottling for an operator whose shares are
// refused repeatedly, ErrUnavailable.
func (k *KeyChanges) Submit(ctx context.Context, op Operator, nonce, sealed []byte) (st *KeyChangeStatus, done bool, err error) {
	c, _, err := k.r.unsealedCluster()
	if err != nil {
		return nil, false, err
	}
	if err := k.take(ctx); err != nil {
		return nil, false, err
	}
	defer k.giveBack()
	var s changeStep
	_, err = k.submit(ctx, op, c, nonce, sealed, func(given *submitted) {
		s = changeStep{given, k.change, k.plan, k.keepers, k.next}
		if k.next != nil {
			// Whoever has got them has them; they need not be here any longer.
			k.texts.Destroy()
			k.texts = nil
		}
	})
	if err != nil {
		return nil, false, err
	}
	defer s.unseal.Destroy()
	switch {
	case s.unseal == nil:
	case s.change == Rekey && s.next == nil:
		if err := k.dealAgain(ctx, op, c, s, nonce); err != nil {
			return nil, false, err
		}
	default:
		if err := k.complete(ctx, op, c, s, nonce); err != nil {
			return nil, false, err
		}
		done = true
		c, _ = k.r.cfg.Replica.State().Cluster()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !done && !k.isLocked(nonce) {
		return nil, false, errNoKeyChange // it ended while the step was recorded
	}
	return k.statusLocked(c), done, nil
}

// dealAgain makes the new shares of a rekey once the custodians' threshold has agreed.
// Nothing is committed but the record of it: until a threshold of the new shares has come
// back, only this node knows of them.
func (k *KeyChanges) dealAgain(ctx context.Context, op Operator, c *fsmpb.Cluster, s changeStep, nonce []byte) error {
	set := proto.CloneOf(s.plan)
	set.Id = make([]byte, 16)
	_, _ = rand.Read(set.Id) // never fails: crypto/rand ends the process instead
	var next *fsmpb.Cluster
	var texts *keymat.Secret
	var encrypted []EncryptedShare
	var err error
	keymat.Scrub(func() {
		var unseal *keymat.Secret
		if next, unseal, err = k.r.cfg.Vault.Rekey(c, s.opened, s.unseal, set); err != nil {
			return
		}
		defer unseal.Destroy()
		texts, err = deal(k.r.cfg.Vault.Arena(), unseal, next)
		if err == nil && s.keepers != nil {
			encrypted, err = encryptShares(texts, s.keepers)
			texts.Destroy() // nobody gets them in the clear
			texts = nil
		}
	})
	event := op.Event("AuthorizeRekey", c)
	event.RequestID = [16]byte{} // the step of the last share has it
	event.Parameters = s.fields
	if err == nil {
		event.Response = []*auditpb.Field{auditfield.Text("newShareSet", hex.EncodeToString(set.Id))}
		_, err = k.r.cfg.Events.Record(ctx, event)
	} else {
		k.r.cfg.Log.Error("the shares of a rekey are valid, but there are no new ones", "err", err)
		event.At, event.Err = k.r.cfg.Clock.Now(), err
		k.r.note(ctx, event)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil && !k.isLocked(nonce) {
		err = errNoKeyChange // it was cancelled meanwhile
	}
	if err != nil {
		texts.Destroy()
		if k.isLocked(nonce) {
			k.endLocked()
		}
		return err
	}
	for _, share := range k.shares {
		share.Destroy()
	}
	clear(k.shares)
	k.next, k.texts, k.encrypted, k.set = next, texts, encrypted, [16]byte(set.Id)
	k.began = k.r.cfg.Clock.Now() // the new custodians have as much time as the old ones had
	return nil
}

// complete commits what the ceremony has decided, in one record, and ends the
// ceremony. Which share set and which root key are in force after a failure depends only on
// whether that record was committed.
func (k *KeyChanges) complete(ctx context.Context, op Operator, c *fsmpb.Cluster, s changeStep, nonce []byte) error {
	k.mu.Lock()
	if !k.isLocked(nonce) {
		k.mu.Unlock()
		return errNoKeyChange // it was cancelled while the last step was recorded
	}
	base := k.base
	k.endLocked()
	k.mu.Unlock()

	event := op.Event("Complete"+changeNames[s.change].event, c)
	event.RequestID = [16]byte{} // the step of the last share has it
	event.Parameters = s.fields
	var next *fsmpb.Cluster
	d, err := k.r.cfg.Events.CommitEvent(ctx, func(state *fsm.State) (ev record.Event, err error) {
		was, version := state.Cluster()
		if !sameSet(was.GetShares(), base) {
			return ev, errNoKeyChange
		}
		keymat.Scrub(func() { next, err = k.changed(was, s) })
		if err != nil {
			return ev, err
		}
		ev = event
		ev.ReplaceCluster(version, next)
		g, _ := newestOf(next)
		ev.Response = []*auditpb.Field{
			auditfield.Text("shareSet", hex.EncodeToString(next.Shares.Id)), auditfield.Number("epoch", int(next.Shares.Epoch)), auditfield.Number("generation", int(g)),
		}
		return ev, nil
	})
	if err == record.ErrConflict {
		err = kmsapi.Errorf(kmsapi.ErrUnavailable, "The cluster's keys were changed at the same time. The shares were wiped: begin the ceremony again.")
	} else if err != nil && next != nil {
		err = k.isChanged(ctx, next, err)
	}
	if err != nil {
		k.r.cfg.Log.Error("the threshold of a ceremony was reached, but it has replaced no keys", "kind", changeNames[s.change].text, "operator", op.Name, "err", err)
		event.At, event.Err = k.r.cfg.Clock.Now(), err
		k.r.note(ctx, event)
		return err
	}
	k.r.cfg.Log.Warn("a ceremony has replaced keys", "kind", changeNames[s.change].text, "operator", op.Name, "share_set", hex.EncodeToString(next.Shares.Id), "epoch", next.Shares.Epoch)
	// Wait, so that this node's answers say what is in force.
	if err := k.r.cfg.Replica.WaitApplied(ctx, d.Index); err != nil {
		k.r.cfg.Log.Warn("the keys are replaced, but this node is behind", "err", err)
	}
	return nil
}

// changed returns the cluster's record as it is to be.
func (k *KeyChanges) changed(c *fsmpb.Cluster, s changeStep) (*fsmpb.Cluster, error) {
	switch s.change {
	case RotateRoot:
		return k.r.cfg.Vault.RotateRoot(c, s.opened, s.unseal)
	case RotateKeyring:
		if err := mayRotate(c); err != nil {
			return nil, err
		}
		now := record.Now(k.r.cfg.Replica.State(), k.r.cfg.Clock).UnixNano()
		return k.r.cfg.Vault.RotateKeyring(c, s.opened, s.unseal, now)
	}
	n := proto.CloneOf(c)
	n.Shares, n.WrappedRoot = s.next.Shares, s.next.WrappedRoot
	// The unseal key was combined from the new shares: they do open the cluster.
	return n, k.r.cfg.Vault.Verify(n, s.opened, s.unseal)
}

// isChanged determines whether the cluster's record was replaced by next, after the log did
// not say so. failed is the error of the attempt.
func (k *KeyChanges) isChanged(ctx context.Context, next *fsmpb.Cluster, failed error) error {
	until := time.After(settlePatience)
	for {
		if s, err := k.r.cfg.Fresh(ctx); err == nil {
			switch c, _ := s.Cluster(); {
			case k.made(c, next):
				return nil
			case c.GetShares().GetEpoch() > next.Shares.Epoch, c.GetShares().GetEpoch() == next.Shares.Epoch && string(c.WrappedRoot) != string(next.WrappedRoot):
				return errNoKeyChange
			}
		}
		select {
		case <-ctx.Done():
		case <-until:
		case <-time.After(100 * time.Millisecond):
			continue
		}
		// The record may still be in flight.
		return kmsapi.Errorf(kmsapi.ErrUnavailable, "Whether the change was made is not known yet (%v). It was if the cluster's epoch is %d and its keyring has %d generations, which `conclave operator rotate status` shows. Keep the old shares until then.", failed, next.Shares.Epoch, len(next.Keyring))
	}
}

// made reports whether a cluster's record has the keys of next.
func (*KeyChanges) made(c, next *fsmpb.Cluster) bool {
	if string(c.GetWrappedRoot()) != string(next.WrappedRoot) || len(c.Keyring) < len(next.Keyring) {
		return false
	}
	last := len(next.Keyring) - 1
	return string(c.Keyring[last].Wrapped) == string(next.Keyring[last].Wrapped)
}

// NewShares returns the shares of a rekey's new set. If its custodians' keys were given, that
// is each share, encrypted to the key of its custodian. Otherwise it is a kmspb.InitSecrets,
// encrypted to answerKey as the secrets of Init are, and only until the first of the new shares
// is submitted. Only the operator who began the ceremony gets them, and it is recorded each
// time. Errors: ErrNoCeremony, ErrOwner for another operator, ErrValidation for the answer key,
// ErrUnavailable.
func (k *KeyChanges) NewShares(ctx context.Context, op Operator, nonce, answerKey []byte) (sealed []byte, encrypted []EncryptedShare, err error) {
	c, _, err := k.r.unsealedCluster()
	if err != nil {
		return nil, nil, err
	}
	if err := iam.CheckAnswerKey(answerKey); err != nil {
		return nil, nil, err
	}
	if err := k.take(ctx); err != nil {
		return nil, nil, err
	}
	defer k.giveBack()
	k.mu.Lock()
	k.sweepLocked(c)
	step := op.Event("IssueRekeyShares", c)
	step.At = k.r.cfg.Clock.Now()
	if err := k.allowLocked(step.At, op.Name); err != nil {
		k.mu.Unlock()
		return nil, nil, err
	}
	step.Parameters = k.fieldsLocked()
	switch {
	case !k.isLocked(nonce):
		step.Err = errNoKeyChange
	case k.owner != op.Name:
		step.Err = kmsapi.Errorf(ErrOwner, "Only %s, who began the ceremony, gets the new shares.", k.owner)
	case k.encrypted != nil:
		encrypted = k.encrypted
		step.Response = custodianFields(namedCustodians(k.plan))
	case k.texts == nil:
		step.Err = kmsapi.Errorf(ErrNoCeremony, "The ceremony has no shares to hand out: the custodians have not agreed yet, or one of the new shares has come back already.")
	default:
		keymat.Scrub(func() {
			sealed, step.Err = sealSecrets(k.arena, k.texts, nil, answerKey, slices.Concat([]byte("conclave rekey v1\x00"), nonce))
		})
	}
	if errors.Is(step.Err, ErrNoCeremony) || errors.Is(step.Err, ErrOwner) {
		k.refusedLocked(step.At, op.Name)
	}
	k.mu.Unlock()
	if step.Err != nil {
		k.r.note(ctx, step)
		return nil, nil, step.Err
	}
	if _, err := k.r.cfg.Events.Record(ctx, step); err != nil {
		return nil, nil, err
	}
	return sealed, encrypted, nil
}

// Cancel ends the ceremony with the given nonce and wipes its shares. Every operator
// may do that, and the record names both. Errors: ErrNoCeremony, ErrUnavailable if the node is
// sealed, which ends ceremonies by itself.
func (k *KeyChanges) Cancel(ctx context.Context, op Operator, nonce []byte) error {
	return k.cancel(ctx, op, nonce)
}

// sameSet reports whether two share sets are the same, in the same epoch.
func sameSet(a, b *fsmpb.ShareSet) bool {
	return string(a.GetId()) == string(b.GetId()) && a.GetEpoch() == b.GetEpoch()
}
