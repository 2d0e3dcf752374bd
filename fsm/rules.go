package fsm

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/conclavekms/conclave/fsm/clustertime"
	"github.com/conclavekms/conclave/fsm/form"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/keymaterial"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/regionid"
	"github.com/conclavekms/conclave/fsm/wire"
)

// The rules in this file hold for every record, whichever node made it. Signatures keep out
// what no unsealed node proposed. The rules are the second line of defence: they limit the
// irreversible damage that an unsealed node can do if it has a bug or was taken over. So
// each of them forbids something that no operation does, whatever the proposer read.
//
// They depend on the state and the entry alone, since all nodes, including sealed
// ones, have to decide the same. Nothing can be decrypted here, so they cannot tell
// whether a MAC was made with the keyring or whether bytes are a wrapped key. Nor
// can they tell whether the caller of an operation was authorised. They accept
// whatever an operation could have done.
//
// A record that breaks a rule changes nothing, is not in the audit log, and is
// reported as a [Refusal].

// Refusal is a record that broke a rule.
type Refusal struct {
	Node      string   // the proposer
	RequestID [16]byte // zero if the record has no valid one
	Rule      string   // the rule that it broke, as a sentence for people
}

// refuse returns the answer to a change that breaks a rule.
func (a *applier) refuse(rule string) (pending, Verdict) {
	a.broken = rule
	return nil, Invalid
}

// Subject returns the object that a change puts or deletes, and false for a change
// that concerns no object. Objects that are deleted along with a key, and counts,
// are not subjects.
func Subject(c *fsmpb.Change) (fsmpb.Kind, []byte, bool) {
	does := changeOf(c)
	if does == nil || does.row == nil {
		return fsmpb.Kind_KIND_UNSPECIFIED, nil, false
	}
	id, _ := does.subject(c)
	return does.row.kind, id, true
}

// checkSubjects checks the changes of a record together: no two concern the same
// object, the record read everything that it replaces or deletes, and a change that
// must be the only one is.
func (a *applier) checkSubjects(r *wire.Record) (broken string) {
	type subject struct {
		kind fsmpb.Kind
		id   string
	}
	seen := make(map[subject]bool, len(a.edits))
	for _, e := range a.edits {
		if e.does == nil || e.does.row == nil {
			continue
		}
		if e.does.alone != "" && len(a.edits) > 1 {
			return e.does.alone
		}
		kind := e.does.row.kind
		if a.foreign(kind, e.id) {
			return "it names an account that does not exist"
		}
		one := subject{kind, string(e.id)}
		if seen[one] {
			return "it changes an object twice"
		}
		seen[one] = true
		read := func(r wire.Read) bool { return r.Kind == kind && bytes.Equal(r.ID, e.id) }
		if e.was != nil && !slices.ContainsFunc(r.Reads, read) {
			return "it changes what it did not read"
		}
	}
	return ""
}

// accountOf returns a cluster's account, encoded as at the beginning of the ids of its
// objects; nil if c is nil.
func accountOf(c *fsmpb.Cluster) []byte {
	a, ok := ParseAccount(c.GetAccount())
	if !ok {
		return nil
	}
	return AccountID(a)
}

// accountToBe returns the account of the cluster that a record initialises.
func accountToBe(r *wire.Record) []byte {
	for _, c := range r.Changes {
		if put := c.GetPutCluster(); put != nil {
			return accountOf(put)
		}
	}
	return nil
}

// foreign reports whether an id belongs to an account that does not exist, also after the
// record that is being applied.
func (a *applier) foreign(kind fsmpb.Kind, id []byte) bool {
	if registry[kind].whole || a.account != nil && bytes.HasPrefix(id, a.account) {
		return false
	}
	_, _, ok := CutAccount(id)
	return a.account == nil || !ok || !a.stands(fsmpb.Kind_KIND_ACCOUNT, id[:accountBytes])
}

// stands reports whether the object will exist once the record is applied, as
// objects can be stored together with their owner.
func (a *applier) stands(kind fsmpb.Kind, id []byte) bool {
	for _, e := range a.edits {
		if e.does != nil && e.does.row == registry[kind] && bytes.Equal(e.id, id) {
			return !e.does.deletes && e.valid
		}
	}
	return lookup(a.db, kind, id) != nil
}

// members counts the keys of id's multi-Region set in other Regions.
func (a *applier) members(id KeyID) (n int) {
	c := a.cluster()
	for _, r := range append([]string{c.GetRegion()}, c.GetMoreRegions()...) {
		o := KeyID{Account: id.Account, Region: r, ID: id.ID}
		if r != id.Region && lookup(a.db, fsmpb.Kind_KIND_KEY, o.Bytes()) != nil {
			n++
		}
	}
	return n
}

// generation reports whether the keyring has a generation. The record that
// initialises the cluster brings the keyring with it.
func (a *applier) generation(g uint32) bool {
	c := a.cluster()
	for _, e := range a.edits {
		if p := e.GetPutCluster(); p != nil && c == nil {
			c = p
		}
	}
	return slices.ContainsFunc(c.GetKeyring(), func(k *fsmpb.WrappedKEK) bool { return k.GetGeneration() == g })
}

const (
	// waitingSlack is how far the clock of the node that counted a waiting period may
	// be ahead of the leader's.
	waitingSlack = 60_000_000_000
)

// checkCluster: the cluster's record is complete when the cluster is initialised.
func (a *applier) checkCluster(was, n *fsmpb.Cluster) (broken string) {
	if len(n.Id) != 16 || accountOf(n) == nil || !regionid.Valid(n.Region) || n.Partition == "" || n.Shares == nil || len(n.Keyring) == 0 {
		return "a cluster's record is incomplete"
	}
	for i, r := range n.MoreRegions {
		if !regionid.Valid(r) || r == n.Region || i > 0 && r <= n.MoreRegions[i-1] {
			return "a cluster's Regions are not in order"
		}
	}
	if was == nil {
		return ""
	}
	return form.CheckCluster(was, n, a.state.level)
}

// checkKey checks the new version of a key, n, against the old one, which is nil for
// a new key.
func (a *applier) checkKey(was, n *fsmpb.Key) (broken string) {
	if n.Spec == "" || n.Usage == "" {
		return "a key has no valid id, Region, spec or usage"
	}
	// The id of a deleted key is never used again, except for a new replica of the
	// same multi-Region key.
	if a.grave(n) != nil && !a.replicated(n) {
		return "it reuses the id of a deleted key"
	}
	if was != nil && (was.Spec != n.Spec || was.Usage != n.Usage || was.Origin != n.Origin || was.MultiRegion != n.MultiRegion ||
		was.Created != n.Created || was.KeyStore != n.KeyStore || was.XksKey != n.XksKey) {
		return "it changes a key's spec, usage, origin, creation date or key store"
	}
	if n.MultiRegion != (n.PrimaryRegion != "") {
		return "only a multi-Region key has a primary Region, and each has"
	}
	if was == nil && n.MultiRegion && n.PrimaryRegion != n.Region && !a.replicated(n) {
		return "it creates a replica whose primary key does not exist or is not enabled"
	}
	if was != nil && was.PrimaryRegion != n.PrimaryRegion && (keymaterial.IsPrimary(was) || keymaterial.IsPrimary(n)) && (!keymaterial.IsEnabled(was) || !keymaterial.IsEnabled(n)) {
		return "it makes a key the primary, or no longer the primary, that is not enabled"
	}
	if broken := a.checkState(was, n); broken != "" {
		return broken
	}
	if broken := keymaterial.Tokens(was, n, a.state.time); broken != "" {
		return broken
	}
	return keymaterial.Check(was, n, a.generation)
}

// grave returns the tombstone of the key that had the id before.
func (a *applier) grave(k *fsmpb.Key) *object {
	return lookup(a.db, fsmpb.Kind_KIND_TOMBSTONE, IDOf(k).Bytes())
}

// replicated reports whether a key is a replica of an existing key that is in
// use. Only such a key may take the id of a deleted replica.
func (a *applier) replicated(n *fsmpb.Key) bool {
	id, ok := keyID(n.Account, n.PrimaryRegion, n.Id)
	if !n.MultiRegion || !ok || n.PrimaryRegion == n.Region {
		return false
	}
	o := lookup(a.db, fsmpb.Kind_KIND_KEY, id.Bytes())
	if o == nil {
		return false
	}
	k := o.value.(*fsmpb.Key)
	return keymaterial.IsPrimary(k) && keymaterial.IsEnabled(k) && k.Spec == n.Spec && k.Usage == n.Usage && k.Origin == n.Origin
}

// makingKey notes that key material is lost by replacing a key, and removes the
// tombstone that a new key replaces.
func (a *applier) makingKey(was, n *fsmpb.Key) {
	if keymaterial.Lost(was, n) {
		id := IDOf(n)
		a.events.Destroyed = append(a.events.Destroyed, id)
	}
	if grave := a.grave(n); grave != nil {
		a.remove(grave)
	}
}

// keyIsDue: a key is destroyed only when its deletion time has come by cluster time, so
// that no single clock that runs ahead can delete a key early.
func (a *applier) keyIsDue(k *fsmpb.Key) Verdict {
	switch {
	case k.State != fsmpb.KeyState_KEY_STATE_PENDING_DELETION:
		return Conflict
	case a.state.time < k.DeletionTime:
		return Early
	}
	return Accepted
}

// buryKey stores the tombstone of a key that was destroyed.
func (a *applier) buryKey(id []byte, k *fsmpb.Key) {
	key, _ := parseKeyID(id)
	a.f.uses.forget(key)
	a.put(fsmpb.Kind_KIND_TOMBSTONE, id, &fsmpb.Tombstone{Account: k.Account, Region: k.Region, Key: key.ID[:], Deleted: a.state.time})
	a.events.Destroyed = append(a.events.Destroyed, key)
}

// checkState checks the states of keys.
func (a *applier) checkState(was, n *fsmpb.Key) (broken string) {
	most := level.LimitsAt(a.state.level)
	return keymaterial.CheckState(was, n, keymaterial.Waiting{Now: a.state.time, Min: most.MinWaiting, Max: most.MaxWaiting}, func() bool { return a.members(IDOf(n)) > 0 })
}

// tooFar reports whether the deletion of a key is scheduled for later than the longest
// waiting period from now. That breaks no rule: the clock of the node that computed the
// date is ahead of cluster time, which may be behind after a pause of the cluster. The date
// is right once the request was evaluated again, at the latest by the leader.
func (a *applier) tooFar(was, n *fsmpb.Key) bool {
	return n.State == fsmpb.KeyState_KEY_STATE_PENDING_DELETION && was.GetState() != n.State &&
		n.DeletionTime > max(a.state.time, a.wall)+int64(level.LimitsAt(a.state.level).MaxWaiting)*clustertime.Day+waitingSlack
}

// maxBreakGlass is how far the end of a break-glass access key may be ahead, in nanoseconds:
// an hour, and a minute for the clock of the node that made it.
const maxBreakGlass = 61 * 60 * 1e9

// checkCredential: what belongs to the secret of a credential was made with the keyring.
// Whether its MAC was is checked when the credential is used.
func (a *applier) checkCredential(was, n *fsmpb.Credential) (broken string) {
	if broken := form.CheckCredential(was, n); broken != "" {
		return broken
	}
	switch {
	case n.Kind == fsmpb.CredentialKind_CREDENTIAL_KIND_ACCESS_KEY && !a.generation(n.Generation):
		return "an access key has no secret that is wrapped by the keyring"
	case !a.generation(n.MacGeneration):
		return "a credential has no MAC by the keyring"
	case was == nil && n.BreakGlassUntil > max(a.state.time, a.wall)+maxBreakGlass:
		return "a break-glass access key lasts too long"
	}
	return ""
}

// checkPolicy: a policy is a JSON object of a size that AWS accepts. It is not
// parsed as a policy here, since parsers differ between releases and apply must
// decide the same on nodes of all of them.
func (a *applier) checkPolicy(_, p *fsmpb.KeyPolicy) (broken string) {
	most := level.LimitsAt(a.state.level)
	if !form.IsPolicy(p.Document, most.Policy) {
		return fmt.Sprintf("a key policy is not a JSON object of at most %d bytes", most.Policy)
	}
	return form.CheckBindings(p.Bindings, most.Entities())
}

// storeIsEmpty: a custom key store can be deleted only when it has no keys.
func (a *applier) storeIsEmpty(n *fsmpb.KeyStore) Verdict {
	if a.count(fsmpb.Kind_KIND_STORE_KEYS, KeyStoreID(Account(n.Account), n.Id)) > 0 {
		return Conflict
	}
	return Accepted
}
