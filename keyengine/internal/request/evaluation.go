package request

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// Evaluation is one evaluation of a request on one state. Its getters are the only way
// that an operation reads the state, and note each item with its version: that
// is the read set, which apply checks again. An operation that reaches past them
// breaks the promise that no answer rests on outdated authority.
type Evaluation struct {
	Ctx context.Context
	*Services
	State  *fsm.State
	Caller *iam.Caller
	Op     *Operation

	clusterRecord *fsmpb.Cluster // once it was asked for
	lastKey       keyBytes       // of the key that was looked at last
	Reads         []*fsmpb.Read
	freeReads     []fsmpb.Read // see draft
	freeUses      []fsmpb.Use
	Changes       []*fsmpb.Change
	uses          []*fsmpb.Use
	NotBefore     int64
	NotAfter      int64
	resources     []resource
	decisions     []decision
	materials     []*fsmpb.Material // that the key material of the answer came from
	Source        *Target           // the key of the ciphertext that was given, once known
	Recipient     *auditpb.Field    // what the record says of the enclave that the answer is for
	GrantID       string            // of the grant that the request is about, for the record
	secrets       [][]byte
	// later, for lists, runs after the record is committed, on a state that
	// contains it, and gives the answer.
	Later func(*fsm.State) (any, error)
}

// keyBytes is a key's id as read sets have it.
type keyBytes struct {
	ID    fsm.KeyID
	bytes []byte
}

// bytesOf is id.Bytes, made once for as long as it is about the same key.
func bytesOf(ev *Evaluation, id fsm.KeyID) []byte {
	if ev.lastKey.bytes == nil || ev.lastKey.ID != id {
		ev.lastKey = keyBytes{id, id.Bytes()}
	}
	return ev.lastKey.bytes
}

// resource is what a record names as acted upon.
type resource struct {
	kind string // "AWS::KMS::Key", "AWS::KMS::Alias"
	ARN  string
}

func (ev *Evaluation) Resource(kind, arn string) {
	r := resource{kind, arn}
	if !slices.Contains(ev.resources, r) {
		ev.resources = append(ev.resources, r)
	}
}

// Note adds an item to the read set, once.
func (ev *Evaluation) Note(kind fsmpb.Kind, id []byte, v fsm.Version) {
	for _, r := range ev.Reads {
		if r.Kind == kind && bytes.Equal(r.Id, id) {
			return
		}
	}
	r := take(&ev.freeReads)
	r.Kind, r.Id, r.Version = kind, id, v
	ev.Reads = append(ev.Reads, r)
}

func (ev *Evaluation) Cluster() *fsmpb.Cluster {
	// Not noted: what an answer can depend on of it never changes after init.
	if ev.clusterRecord == nil {
		ev.clusterRecord = ev.ClusterOf(ev.State)
	}
	return ev.clusterRecord
}

// AccountOf is the cluster's only one, whose objects all requests are about.
func AccountOf(ev *Evaluation) fsm.Account {
	a, _ := fsm.ParseAccount(ev.Cluster().GetAccount())
	return a
}

func (ev *Evaluation) Key(id fsm.KeyID) *fsmpb.Key {
	k, v := ev.State.Key(id)
	ev.Note(fsmpb.Kind_KIND_KEY, bytesOf(ev, id), v)
	return asOf(ev, k)
}

func (ev *Evaluation) KeyPolicy(id fsm.KeyID) (*fsmpb.KeyPolicy, fsm.Version) {
	p, v := ev.State.KeyPolicy(id)
	ev.Note(fsmpb.Kind_KIND_KEY_POLICY, bytesOf(ev, id), v)
	return p, v
}

func (ev *Evaluation) KeyTags(id fsm.KeyID) *fsmpb.KeyTags {
	t, v := ev.State.KeyTags(id)
	ev.Note(fsmpb.Kind_KIND_KEY_TAGS, bytesOf(ev, id), v)
	return t
}

func (ev *Evaluation) Alias(region, name string) *fsmpb.Alias {
	a, v := ev.State.Alias(AccountOf(ev), region, name)
	ev.Note(fsmpb.Kind_KIND_ALIAS, fsm.AliasID(AccountOf(ev), region, name), v)
	return a
}

func (ev *Evaluation) KeyAliases(id fsm.KeyID) *fsmpb.KeyAliases {
	n, v := ev.State.KeyAliases(id)
	ev.Note(fsmpb.Kind_KIND_KEY_ALIASES, bytesOf(ev, id), v)
	return n
}

func (ev *Evaluation) Credential(id string) *fsmpb.Credential {
	c, v := ev.State.Credential(AccountOf(ev), id)
	ev.Note(fsmpb.Kind_KIND_CREDENTIAL, fsm.CredentialID(AccountOf(ev), id), v)
	return c
}

func (ev *Evaluation) Tombstone(id fsm.KeyID) *fsmpb.Tombstone {
	t, v := ev.State.Tombstone(id)
	ev.Note(fsmpb.Kind_KIND_TOMBSTONE, bytesOf(ev, id), v)
	return t
}

// Grant is one grant on a key, by its id.
func (ev *Evaluation) Grant(key fsm.KeyID, id []byte) *fsmpb.Grant {
	g, v := ev.State.Grant(key, id)
	ev.Note(fsmpb.Kind_KIND_GRANT, fsm.GrantID(key, id), v)
	return g
}

// GrantTo is a grant on the key to one of the principals that match takes. An
// answer that rests on it depends on that grant alone. That there is none depends
// on the whole set, which is then noted.
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

// KeyGrants notes the whole set of a key's grants.
func (ev *Evaluation) KeyGrants(id fsm.KeyID) *fsmpb.KeyGrants {
	n, v := ev.State.KeyGrants(id)
	ev.Note(fsmpb.Kind_KIND_KEY_GRANTS, bytesOf(ev, id), v)
	return n
}

func (ev *Evaluation) KeyStore(id string) *fsmpb.KeyStore {
	k, v := ev.State.KeyStore(AccountOf(ev), id)
	ev.Note(fsmpb.Kind_KIND_KEY_STORE, fsm.KeyStoreID(AccountOf(ev), id), v)
	return k
}

// keyStores notes the whole set of custom key stores.
func (ev *Evaluation) keyStores() *fsmpb.KeyStores {
	n, v := ev.State.KeyStores(AccountOf(ev))
	ev.Note(fsmpb.Kind_KIND_KEY_STORES, fsm.AccountID(AccountOf(ev)), v)
	return n
}

// StoreKeys notes the set of a custom key store's keys.
func (ev *Evaluation) StoreKeys(store string) *fsmpb.StoreKeys {
	n, v := ev.State.StoreKeys(AccountOf(ev), store)
	ev.Note(fsmpb.Kind_KIND_STORE_KEYS, fsm.KeyStoreID(AccountOf(ev), store), v)
	return n
}

// Used says that the answer is made with a material of a key: the record names it,
// and it counts as a use of the key if the request succeeds.
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

// Change adds to what the record does once accepted.
func (ev *Evaluation) Change(c *fsmpb.Change) { ev.Changes = append(ev.Changes, c) }

// Within narrows the cluster time in which the outcome holds to [from, to); 0
// leaves a side open.
func (ev *Evaluation) Within(from, to int64) {
	if from != 0 {
		ev.NotBefore = max(ev.NotBefore, from)
	}
	if to != 0 && (ev.NotAfter == 0 || to < ev.NotAfter) {
		ev.NotAfter = to
	}
}

// Secret marks bytes of the answer that are wiped if it may not be given.
func (ev *Evaluation) Secret(b []byte) []byte {
	ev.secrets = append(ev.secrets, b)
	return b
}

func (ev *Evaluation) Wipe() {
	for _, s := range ev.secrets {
		clear(s)
	}
}

// Now is the time to stamp on what the evaluation makes: this node's clock, but
// never before cluster time.
func (ev *Evaluation) Now() time.Time {
	return record.Now(ev.State, ev.Clock)
}
