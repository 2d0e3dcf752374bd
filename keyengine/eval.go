package keyengine

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// eval is one evaluation of a request on one state. Its getters are the only way
// that an operation reads the state, and note each item with its version: that
// is the read set, which apply checks again. An operation that reaches past them
// breaks the promise that no answer rests on outdated authority.
type eval struct {
	ctx context.Context
	*Services
	state  *fsm.State
	caller *Caller
	op     *Operation

	clusterRecord *fsmpb.Cluster // once it was asked for
	lastKey       keyBytes       // of the key that was looked at last
	reads         []*fsmpb.Read
	freeReads     []fsmpb.Read // see draft
	freeUses      []fsmpb.Use
	changes       []*fsmpb.Change
	uses          []*fsmpb.Use
	notBefore     int64
	notAfter      int64
	resources     []resource
	decisions     []decision
	materials     []*fsmpb.Material // that the key material of the answer came from
	source        *target           // the key of the ciphertext that was given, once known
	recipient     *auditpb.Field    // what the record says of the enclave that the answer is for
	grantID       string            // of the grant that the request is about, for the record
	secrets       [][]byte
	// later, for lists, runs after the record is committed, on a state that
	// contains it, and gives the answer.
	later func(*fsm.State) (any, error)
}

// keyBytes is a key's id as read sets have it.
type keyBytes struct {
	id    fsm.KeyID
	bytes []byte
}

// bytesOf is id.Bytes, made once for as long as it is about the same key.
func bytesOf(ev *eval, id fsm.KeyID) []byte {
	if ev.lastKey.bytes == nil || ev.lastKey.id != id {
		ev.lastKey = keyBytes{id, id.Bytes()}
	}
	return ev.lastKey.bytes
}

// resource is what a record names as acted upon.
type resource struct {
	kind string // "AWS::KMS::Key", "AWS::KMS::Alias"
	arn  string
}

func (ev *eval) resource(kind, arn string) {
	r := resource{kind, arn}
	if !slices.Contains(ev.resources, r) {
		ev.resources = append(ev.resources, r)
	}
}

// note adds an item to the read set, once.
func (ev *eval) note(kind fsmpb.Kind, id []byte, v fsm.Version) {
	for _, r := range ev.reads {
		if r.Kind == kind && bytes.Equal(r.Id, id) {
			return
		}
	}
	r := take(&ev.freeReads)
	r.Kind, r.Id, r.Version = kind, id, v
	ev.reads = append(ev.reads, r)
}

func (ev *eval) cluster() *fsmpb.Cluster {
	// Not noted: what an answer can depend on of it never changes after init.
	if ev.clusterRecord == nil {
		ev.clusterRecord = ev.ClusterOf(ev.state)
	}
	return ev.clusterRecord
}

// accountOf is the cluster's only one, whose objects all requests are about.
func accountOf(ev *eval) fsm.Account {
	a, _ := fsm.ParseAccount(ev.cluster().GetAccount())
	return a
}

func (ev *eval) key(id fsm.KeyID) *fsmpb.Key {
	k, v := ev.state.Key(id)
	ev.note(fsmpb.Kind_KIND_KEY, bytesOf(ev, id), v)
	return asOf(ev, k)
}

func (ev *eval) keyPolicy(id fsm.KeyID) (*fsmpb.KeyPolicy, fsm.Version) {
	p, v := ev.state.KeyPolicy(id)
	ev.note(fsmpb.Kind_KIND_KEY_POLICY, bytesOf(ev, id), v)
	return p, v
}

func (ev *eval) keyTags(id fsm.KeyID) *fsmpb.KeyTags {
	t, v := ev.state.KeyTags(id)
	ev.note(fsmpb.Kind_KIND_KEY_TAGS, bytesOf(ev, id), v)
	return t
}

func (ev *eval) alias(region, name string) *fsmpb.Alias {
	a, v := ev.state.Alias(accountOf(ev), region, name)
	ev.note(fsmpb.Kind_KIND_ALIAS, fsm.AliasID(accountOf(ev), region, name), v)
	return a
}

func (ev *eval) keyAliases(id fsm.KeyID) *fsmpb.KeyAliases {
	n, v := ev.state.KeyAliases(id)
	ev.note(fsmpb.Kind_KIND_KEY_ALIASES, bytesOf(ev, id), v)
	return n
}

func (ev *eval) credential(id string) *fsmpb.Credential {
	c, v := ev.state.Credential(accountOf(ev), id)
	ev.note(fsmpb.Kind_KIND_CREDENTIAL, fsm.CredentialID(accountOf(ev), id), v)
	return c
}

func (ev *eval) tombstone(id fsm.KeyID) *fsmpb.Tombstone {
	t, v := ev.state.Tombstone(id)
	ev.note(fsmpb.Kind_KIND_TOMBSTONE, bytesOf(ev, id), v)
	return t
}

// grant is one grant on a key, by its id.
func (ev *eval) grant(key fsm.KeyID, id []byte) *fsmpb.Grant {
	g, v := ev.state.Grant(key, id)
	ev.note(fsmpb.Kind_KIND_GRANT, fsm.GrantID(key, id), v)
	return g
}

// grantTo is a grant on the key to one of the principals that match takes. An
// answer that rests on it depends on that grant alone. That there is none depends
// on the whole set, which is then noted.
func (ev *eval) grantTo(key fsm.KeyID, principals []string, match func(*fsmpb.Grant) bool) *fsmpb.Grant {
	for _, p := range principals {
		for g := range ev.state.GrantsTo(key, p, nil) {
			if match(g) {
				return ev.grant(key, g.Id)
			}
		}
	}
	ev.keyGrants(key)
	return nil
}

// keyGrants notes the whole set of a key's grants.
func (ev *eval) keyGrants(id fsm.KeyID) *fsmpb.KeyGrants {
	n, v := ev.state.KeyGrants(id)
	ev.note(fsmpb.Kind_KIND_KEY_GRANTS, bytesOf(ev, id), v)
	return n
}

func (ev *eval) keyStore(id string) *fsmpb.KeyStore {
	k, v := ev.state.KeyStore(accountOf(ev), id)
	ev.note(fsmpb.Kind_KIND_KEY_STORE, fsm.KeyStoreID(accountOf(ev), id), v)
	return k
}

// keyStores notes the whole set of custom key stores.
func (ev *eval) keyStores() *fsmpb.KeyStores {
	n, v := ev.state.KeyStores(accountOf(ev))
	ev.note(fsmpb.Kind_KIND_KEY_STORES, fsm.AccountID(accountOf(ev)), v)
	return n
}

// storeKeys notes the set of a custom key store's keys.
func (ev *eval) storeKeys(store string) *fsmpb.StoreKeys {
	n, v := ev.state.StoreKeys(accountOf(ev), store)
	ev.note(fsmpb.Kind_KIND_STORE_KEYS, fsm.KeyStoreID(accountOf(ev), store), v)
	return n
}

// used says that the answer is made with a material of a key: the record names it,
// and it counts as a use of the key if the request succeeds.
func (ev *eval) used(t *target, m *fsmpb.Material) {
	ev.materials = append(ev.materials, m)
	number := useNumber[ev.op.Name]
	if number == 0 {
		return
	}
	id := bytesOf(ev, t.id)
	for i, r := range ev.reads {
		if r.Kind == fsmpb.Kind_KIND_KEY && bytes.Equal(r.Id, id) {
			u := take(&ev.freeUses)
			u.Read, u.Operation = uint32(i), number
			ev.uses = append(ev.uses, u)
		}
	}
}

// change adds to what the record does once accepted.
func (ev *eval) change(c *fsmpb.Change) { ev.changes = append(ev.changes, c) }

// within narrows the cluster time in which the outcome holds to [from, to); 0
// leaves a side open.
func (ev *eval) within(from, to int64) {
	if from != 0 {
		ev.notBefore = max(ev.notBefore, from)
	}
	if to != 0 && (ev.notAfter == 0 || to < ev.notAfter) {
		ev.notAfter = to
	}
}

// secret marks bytes of the answer that are wiped if it may not be given.
func (ev *eval) secret(b []byte) []byte {
	ev.secrets = append(ev.secrets, b)
	return b
}

func (ev *eval) wipe() {
	for _, s := range ev.secrets {
		clear(s)
	}
}

// now is the time to stamp on what the evaluation makes: this node's clock, but
// never before cluster time.
func (ev *eval) now() time.Time {
	return nowIn(ev.state, ev.Clock)
}
