package request

import (
	"bytes"
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

// Evaluation is one evaluation of a request on one state. Operations must read the state
// through its methods only: they note each object with its version in the read set, which
// apply checks again. An operation that bypasses them could give an answer that rests on
// outdated authority.
type Evaluation struct {
	Ctx context.Context
	*Services
	State  *fsm.State
	Caller *iam.Caller
	Op     *Operation
	Input  any // of the operation

	// Proved is what Operation.Prove leaves for the operation.
	Proved any

	who      iam.Entity // the caller in State; see Admit
	ownRules *ownRules  // cached by ownRulesOf

	clusterRecord *fsmpb.Cluster // cached by Cluster
	lastKey       keyBytes       // cache of bytesOf
	Reads         []*fsmpb.Read
	freeReads     []fsmpb.Read // see readSet
	freeUses      []fsmpb.Use
	Changes       []*fsmpb.Change
	uses          []*fsmpb.Use
	NotBefore     int64
	NotAfter      int64
	resources     []resource
	decisions     []decision
	denied        *kmsapi.Error     // the error for the last of them, if it is a denial
	materials     []*fsmpb.Material // materials that the answer was made with
	Source        *Target           // key of the given ciphertext, once known
	attestation   attestation       // see the function Attested
	Recipient     *auditpb.Field    // for the record: the enclave that the answer is encrypted to
	GrantID       string            // for the record: the grant that the request is about
	secrets       [][]byte
	// Later produces the answer of a list, after the record is committed, on a state that
	// includes it.
	Later func(*fsm.State) (any, error)
}

// keyBytes is a key id with its encoding in read sets.
type keyBytes struct {
	ID    fsm.KeyID
	bytes []byte
}

// bytesOf returns id.Bytes, caching the last result.
func bytesOf(ev *Evaluation, id fsm.KeyID) []byte {
	if ev.lastKey.bytes == nil || ev.lastKey.ID != id {
		ev.lastKey = keyBytes{id, id.Bytes()}
	}
	return ev.lastKey.bytes
}

// resource is a resource named in the record.
type resource struct {
	kind string // "AWS::KMS::Key", "AWS::KMS::Alias"
	ARN  string
}

// Resource adds a resource to the record.
func (ev *Evaluation) Resource(kind, arn string) {
	r := resource{kind, arn}
	if !slices.Contains(ev.resources, r) {
		ev.resources = append(ev.resources, r)
	}
}

// Note adds an object with its version to the read set, unless it is there already.
func (ev *Evaluation) Note(kind fsmpb.Kind, id []byte, v fsm.Version) {
	kind, id, v = ev.State.Readable(kind, id, v)
	for _, r := range ev.Reads {
		if r.Kind == kind && bytes.Equal(r.Id, id) {
			return
		}
	}
	r := take(&ev.freeReads)
	r.Kind, r.Id, r.Version = kind, id, v
	ev.Reads = append(ev.Reads, r)
}

// Cluster returns the cluster's record.
func (ev *Evaluation) Cluster() *fsmpb.Cluster {
	// It is not added to the read set, because the parts that answers depend on never
	// change after Init.
	if ev.clusterRecord == nil {
		ev.clusterRecord = ev.ClusterOf(ev.State)
	}
	return ev.clusterRecord
}

// AccountOf returns the account of the caller, to which everything belongs that it creates
// or names without an account. For what the service does itself, that is the account that
// the cluster was initialised with.
func AccountOf(ev *Evaluation) fsm.Account {
	if ev.who.Kind != policy.KindNone {
		return ev.who.Account
	}
	return fsm.AccountOf(ev.State)
}

// Who returns the caller, as the evaluated state has it.
func (ev *Evaluation) Who() *iam.Entity { return &ev.who }

// Principal returns the principal of the caller, as the evaluated state has it.
func (ev *Evaluation) Principal() policy.Principal { return ev.who.Principal }

// Read returns an object of the evaluated state, or nil, and adds it to the read set.
func Read[M interface {
	comparable
	proto.Message
}](ev *Evaluation, id []byte) M {
	m, v := fsm.Object[M](ev.State, id)
	ev.Note(fsm.KindOf[M](), id, v)
	return m
}

// Count returns the number of objects in a set, and adds the set to the read set.
func Count(ev *Evaluation, kind fsmpb.Kind, id []byte) int {
	n, v := fsm.Count(ev.State, kind, id)
	ev.Note(kind, id, v)
	return n
}

// Key returns a key, or nil.
func (ev *Evaluation) Key(id fsm.KeyID) *fsmpb.Key {
	k, v := ev.State.Key(id)
	ev.Note(fsmpb.Kind_KIND_KEY, bytesOf(ev, id), v)
	return asOf(ev, k)
}

// KeyPolicy returns a key's policy and its version.
func (ev *Evaluation) KeyPolicy(id fsm.KeyID) (*fsmpb.KeyPolicy, fsm.Version) {
	p, v := ev.State.KeyPolicy(id)
	ev.Note(fsmpb.Kind_KIND_KEY_POLICY, bytesOf(ev, id), v)
	return p, v
}

// KeyTags returns a key's tags.
func (ev *Evaluation) KeyTags(id fsm.KeyID) *fsmpb.KeyTags {
	t, v := ev.State.KeyTags(id)
	ev.Note(fsmpb.Kind_KIND_KEY_TAGS, bytesOf(ev, id), v)
	return t
}

// Alias returns an alias of an account in a Region, or nil.
func (ev *Evaluation) Alias(account fsm.Account, region, name string) *fsmpb.Alias {
	a, v := ev.State.Alias(account, region, name)
	ev.Note(fsmpb.Kind_KIND_ALIAS, fsm.AliasID(account, region, name), v)
	return a
}

// KeyAliases returns the aliases of a key.
func (ev *Evaluation) KeyAliases(id fsm.KeyID) *fsmpb.KeyAliases {
	n, v := ev.State.KeyAliases(id)
	ev.Note(fsmpb.Kind_KIND_KEY_ALIASES, bytesOf(ev, id), v)
	return n
}

// Credential returns a credential of an account, or nil.
func (ev *Evaluation) Credential(account fsm.Account, id string) *fsmpb.Credential {
	c, v := ev.State.Credential(account, id)
	ev.Note(fsmpb.Kind_KIND_CREDENTIAL, fsm.CredentialID(account, id), v)
	return c
}

// Tombstone returns the tombstone of a deleted key, or nil.
func (ev *Evaluation) Tombstone(id fsm.KeyID) *fsmpb.Tombstone {
	t, v := ev.State.Tombstone(id)
	ev.Note(fsmpb.Kind_KIND_TOMBSTONE, bytesOf(ev, id), v)
	return t
}

// Grant returns a grant on a key by its id, or nil.
func (ev *Evaluation) Grant(key fsm.KeyID, id []byte) *fsmpb.Grant {
	g, v := ev.State.Grant(key, id)
	ev.Note(fsmpb.Kind_KIND_GRANT, fsm.GrantID(key, id), v)
	return g
}

// GrantTo returns a grant on the key to one of the principals for which match is true, or
// nil. An answer that rests on a grant depends on that grant only. Finding none depends on
// the whole set, which is then added to the read set.
func (ev *Evaluation) GrantTo(key fsm.KeyID, principals []string, match func(*fsmpb.Grant) bool) *fsmpb.Grant {
	for _, p := range principals {
		for g := range ev.State.GrantsTo(key, p, nil) {
			if match(g) {
				return ev.Grant(key, g.Id)
			}
		}
	}
	ev.KeyGrants(key)
	return nil
}

// KeyGrants returns the set of a key's grants.
func (ev *Evaluation) KeyGrants(id fsm.KeyID) *fsmpb.KeyGrants {
	n, v := ev.State.KeyGrants(id)
	ev.Note(fsmpb.Kind_KIND_KEY_GRANTS, bytesOf(ev, id), v)
	return n
}

// KeyStore returns a custom key store, or nil.
func (ev *Evaluation) KeyStore(id string) *fsmpb.KeyStore {
	k, v := ev.State.KeyStore(AccountOf(ev), id)
	ev.Note(fsmpb.Kind_KIND_KEY_STORE, fsm.KeyStoreID(AccountOf(ev), id), v)
	return k
}

// keyStores returns the set of custom key stores.
func keyStores(ev *Evaluation) *fsmpb.KeyStores {
	n, v := ev.State.KeyStores(AccountOf(ev))
	ev.Note(fsmpb.Kind_KIND_KEY_STORES, fsm.AccountID(AccountOf(ev)), v)
	return n
}

// StoreKeys returns the set of keys in a custom key store.
func (ev *Evaluation) StoreKeys(store string) *fsmpb.StoreKeys {
	n, v := ev.State.StoreKeys(AccountOf(ev), store)
	ev.Note(fsmpb.Kind_KIND_STORE_KEYS, fsm.KeyStoreID(AccountOf(ev), store), v)
	return n
}

// Used notes that the answer was made with a material of a key. The record contains its id,
// and if the request succeeds it counts as a use of the key.
func (ev *Evaluation) Used(t *Target, m *fsmpb.Material) {
	ev.materials = append(ev.materials, m)
	number := UseNumber[ev.Op.Name]
	if number == 0 {
		return
	}
	id := bytesOf(ev, t.ID)
	for i, r := range ev.Reads {
		if r.Kind == fsmpb.Kind_KIND_KEY && bytes.Equal(r.Id, id) {
			u := take(&ev.freeUses)
			u.Read, u.Operation = uint32(i), number
			ev.uses = append(ev.uses, u)
		}
	}
}

// Change adds a change to the record.
func (ev *Evaluation) Change(c *fsmpb.Change) { ev.Changes = append(ev.Changes, c) }

// Within limits the cluster time of the record to [from, to); 0 means no limit.
func (ev *Evaluation) Within(from, to int64) {
	if from != 0 {
		ev.NotBefore = max(ev.NotBefore, from)
	}
	if to != 0 && (ev.NotAfter == 0 || to < ev.NotAfter) {
		ev.NotAfter = to
	}
}

// Secret marks part of the answer to be wiped by Wipe, and returns it.
func (ev *Evaluation) Secret(b []byte) []byte {
	ev.secrets = append(ev.secrets, b)
	return b
}

// Wipe clears the secrets of an answer that will not be released.
func (ev *Evaluation) Wipe() {
	for _, s := range ev.secrets {
		clear(s)
	}
}

// Now returns the time for new objects: this node's clock, or cluster time if that is
// later.
func (ev *Evaluation) Now() time.Time {
	return record.Now(ev.State, ev.Clock)
}
