package fsm

import (
	"bytes"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/google/btree"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/clustertime"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
)

// Version says when an object last changed: it is the index of the Raft entry
// that changed it. An object that does not exist has version 0.
type Version = uint64

// State is one immutable version of everything that is replicated. It is safe
// for concurrent use. What its getters return is shared and must not be written
// to: copy it, change the copy, and propose that.
type State struct {
	db    *table // read-only
	index uint64
	time  int64
	// evidence is that of the entries for the time. What this node observed is a part of it
	// that may differ between nodes: neither the state hash nor an attestation covers it,
	// and apply decides nothing by it.
	evidence  clustertime.Evidence
	confirmed int64
	level     uint32
	known     level.Range // by the release that has this state
	hash      [32]byte
	frontier  auditlog.Frontier
	roots     []auditlog.Hash // of sealed audit segments; appended to, never written
	voters    []string
	uses      *uses // shared by all states
}

// Index returns the Raft index of the newest command or configuration that the
// state contains.
func (s *State) Index() uint64 { return s.index }

// Time returns cluster time, in Unix nanoseconds. It never runs backwards.
func (s *State) Time() int64 { return s.time }

// ConfirmedTime returns the cluster time up to which an operator allowed a step
// of more than a day.
func (s *State) ConfirmedTime() int64 { return s.confirmed }

// Evidence returns what entries have shown about the time. What it says that this node
// observed is not part of the state that nodes agree on.
func (s *State) Evidence() clustertime.Evidence { return s.evidence }

// Level returns the cluster's feature level: the schema of what may be written.
func (s *State) Level() uint32 { return s.level }

// Allows returns a [level.TooNewError] if the cluster's level does not allow a change yet.
func (s *State) Allows(c *fsmpb.Change) error { return level.Allows(s.level, level.Of(c)) }

// readable returns ErrUnreadable for a schema that this release does not know.
func (s *State) readable(schema uint32) error {
	if err := s.known.Check(schema); err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return nil
}

// Hash returns the rolling hash of everything applied so far. Nodes at the same
// index have the same hash.
func (s *State) Hash() [32]byte { return s.hash }

// Audit returns the frontier of the audit tree and the roots of its full segments.
func (s *State) Audit() (auditlog.Frontier, []auditlog.Hash) { return s.frontier, s.roots }

// Objects returns a number that two states of this process share only if they have the same
// objects in the same versions. Most entries change none, so what was found in one state often
// holds for many. The newest uses of keys and credentials are not among the objects.
func (s *State) Objects() uint64 { return s.db.serial }

// Voters returns the ids of the voters in the newest applied Raft
// configuration, in ascending order.
func (s *State) Voters() []string { return s.voters }

// VersionOf returns the version of any object that a read set can name.
func (s *State) VersionOf(kind fsmpb.Kind, id []byte) Version {
	if kind == fsmpb.Kind_KIND_KEY_USE {
		return s.uses.version(id)
	}
	return versionOf(s.db, kind, id)
}

// Readable returns what a read set names for an object: the object itself, or, if the
// cluster's level does not allow its kind yet, the cluster's record. There is no such object
// then, and the record gets a new version when there may be one, as the level rises.
func (s *State) Readable(kind fsmpb.Kind, id []byte, v Version) (fsmpb.Kind, []byte, Version) {
	if level.OfKind(kind) <= s.level {
		return kind, id, v
	}
	_, v = s.Cluster()
	return fsmpb.Kind_KIND_CLUSTER, nil, v
}

func get[M proto.Message](s *State, kind fsmpb.Kind, id []byte) (M, Version) {
	o := lookup(s.db, kind, id)
	if o == nil {
		var none M
		return none, 0
	}
	return o.message().(M), o.version
}

// Object returns an object with its version; nil and 0 if it does not exist. M is the
// message of the kind.
func Object[M message](s *State, id []byte) (M, Version) { return get[M](s, KindOf[M](), id) }

// Objects returns the objects of a kind whose ids begin with prefix, in the order of
// their ids, beginning after the id that consists of prefix and after.
func Objects[M message](s *State, prefix []byte, after string) iter.Seq[M] {
	from := prefix
	if after != "" {
		from = append(append(slices.Clip(prefix), after...), 0)
	}
	return scan[M](s, KindOf[M](), prefix, from)
}

// Having returns the users, groups, roles or credentials of an account, as M says, that have a
// text: the ARN of an attached policy, the unique id of a user's group, [BoundedBy], or the ARN of
// the principal of a credential. They are in the order of their ids, beginning after the id of the
// name after, or with the first for "".
func Having[M message](s *State, a Account, text, after string) iter.Seq[M] {
	return func(yield func(M) bool) {
		prefix := rowID(KindOf[M](), AccountID(a))
		from := append(slices.Clip(prefix), after...)
		if after != "" {
			from = append(from, 0)
		}
		for o := range s.db.texts.All(text, &object{id: from}) {
			if !bytes.HasPrefix(o.id, prefix) || !yield(o.value.(M)) {
				return
			}
		}
	}
}

// BoundedBy is the text by which [Having] finds the users and roles with a permissions boundary.
func BoundedBy(boundary string) string { return "boundary " + boundary }

func foundBy(policies []string, boundary string, groups []string) []string {
	texts := slices.Concat(policies, groups)
	if boundary != "" {
		texts = append(texts, BoundedBy(boundary))
	}
	return texts
}

// rootOf returns the principal of a credential if that is an ARN. The credentials of users, who
// have unique ids instead, are listed in the users.
func rootOf(c *fsmpb.Credential) []string {
	if !strings.HasPrefix(c.GetPrincipal(), "arn:") {
		return nil
	}
	return []string{c.Principal}
}

// Count returns the number of objects in a set, and the set's version.
func Count(s *State, kind fsmpb.Kind, id []byte) (int, Version) {
	o := lookup(s.db, kind, id)
	if o == nil {
		return 0, 0
	}
	return int(o.value.(uint32)), o.version
}

// UserByID returns the user with a unique id, or nil.
func UserByID(s *State, a Account, id string) *fsmpb.User {
	return users.byID(s.db, uint64(a), id)
}

// GroupByID returns the group with a unique id, or nil.
func GroupByID(s *State, a Account, id string) *fsmpb.Group {
	return groups.byID(s.db, uint64(a), id)
}

// RoleByID returns the role with a unique id, or nil.
func RoleByID(s *State, a Account, id string) *fsmpb.Role {
	return roles.byID(s.db, uint64(a), id)
}

// Cluster returns the cluster's record; nil before init.
func (s *State) Cluster() (*fsmpb.Cluster, Version) {
	return get[*fsmpb.Cluster](s, fsmpb.Kind_KIND_CLUSTER, nil)
}

// AccountOf returns the account that the cluster was initialised with; 0 before init. It
// never changes, so it need not be in read sets.
func AccountOf(s *State) Account {
	c, _ := s.Cluster()
	a, _ := ParseAccount(c.GetAccount())
	return a
}

// Accounts returns the accounts of the cluster, the one that it was initialised with first.
func Accounts(s *State) iter.Seq[Account] {
	return func(yield func(Account) bool) {
		c, _ := s.Cluster()
		first, ok := ParseAccount(c.GetAccount())
		if !ok || !yield(first) {
			return
		}
		for m := range Objects[*fsmpb.Account](s, nil, "") {
			if Account(m.Account) != first && !yield(Account(m.Account)) {
				return
			}
		}
	}
}

// AccountExists reports whether the cluster has an account.
func AccountExists(s *State, a Account) bool {
	if m, _ := Object[*fsmpb.Account](s, AccountID(a)); m != nil {
		return true
	}
	c, _ := s.Cluster()
	first, ok := ParseAccount(c.GetAccount())
	return ok && a == first
}

// Key returns the key with that id; nil if there is none.
func (s *State) Key(id KeyID) (*fsmpb.Key, Version) {
	return get[*fsmpb.Key](s, fsmpb.Kind_KIND_KEY, id.Bytes())
}

// KeyPolicy returns the policy of the key with that id.
func (s *State) KeyPolicy(id KeyID) (*fsmpb.KeyPolicy, Version) {
	return get[*fsmpb.KeyPolicy](s, fsmpb.Kind_KIND_KEY_POLICY, id.Bytes())
}

// KeyTags returns the tags of the key with that id; nil and 0 if none were ever set.
func (s *State) KeyTags(id KeyID) (*fsmpb.KeyTags, Version) {
	return get[*fsmpb.KeyTags](s, fsmpb.Kind_KIND_KEY_TAGS, id.Bytes())
}

// Alias returns the alias of that name, which begins with "alias/".
func (s *State) Alias(a Account, region, name string) (*fsmpb.Alias, Version) {
	return get[*fsmpb.Alias](s, fsmpb.Kind_KIND_ALIAS, AliasID(a, region, name))
}

// KeyAliases returns the count of the key's aliases; its version changes with the set.
func (s *State) KeyAliases(id KeyID) (*fsmpb.KeyAliases, Version) {
	return get[*fsmpb.KeyAliases](s, fsmpb.Kind_KIND_KEY_ALIASES, id.Bytes())
}

// Credential returns the credential with that id: an access key id, or the URI
// of a client certificate.
func (s *State) Credential(a Account, id string) (*fsmpb.Credential, Version) {
	return get[*fsmpb.Credential](s, fsmpb.Kind_KIND_CREDENTIAL, CredentialID(a, id))
}

// Tombstone returns what is left of a deleted key.
func (s *State) Tombstone(id KeyID) (*fsmpb.Tombstone, Version) {
	return get[*fsmpb.Tombstone](s, fsmpb.Kind_KIND_TOMBSTONE, id.Bytes())
}

// Grant returns the grant with that id on a key.
func (s *State) Grant(key KeyID, id []byte) (*fsmpb.Grant, Version) {
	return get[*fsmpb.Grant](s, fsmpb.Kind_KIND_GRANT, GrantID(key, id))
}

// KeyGrants returns the count of the key's grants; its version changes with the set.
func (s *State) KeyGrants(id KeyID) (*fsmpb.KeyGrants, Version) {
	return get[*fsmpb.KeyGrants](s, fsmpb.Kind_KIND_KEY_GRANTS, id.Bytes())
}

// Grants returns the key's grants by id, beginning after the given id, or at
// the first for nil.
func (s *State) Grants(key KeyID, after []byte) iter.Seq[*fsmpb.Grant] {
	prefix := key.Bytes()
	from := prefix
	if len(after) > 0 {
		from = append(GrantID(key, after), 0)
	}
	return scan[*fsmpb.Grant](s, fsmpb.Kind_KIND_GRANT, prefix, from)
}

// GrantsTo returns the grants on the key whose grantee is principal, by id,
// beginning after the given id, or at the first for nil.
func (s *State) GrantsTo(key KeyID, principal string, after []byte) iter.Seq[*fsmpb.Grant] {
	from := &fsmpb.Grant{Account: uint64(key.Account), Region: key.Region, Key: key.ID[:], Grantee: principal, Id: after}
	return grantsBy(byGrantee.in(s.db), from, func(g *fsmpb.Grant) bool {
		return g.Grantee == principal && Account(g.Account) == key.Account && g.Region == key.Region && bytes.Equal(g.Key, key.ID[:])
	})
}

// GrantsRetiredBy returns the grants on an account's keys in a Region whose retiring principal is
// principal, by key and then by id, beginning after the given GrantID, or at the first for nil.
func (s *State) GrantsRetiredBy(a Account, region, principal string, after []byte) iter.Seq[*fsmpb.Grant] {
	from := &fsmpb.Grant{Account: uint64(a), Region: region, Retiring: principal}
	if prefix := regional(a, region, 0); bytes.HasPrefix(after, prefix) {
		ids := after[len(prefix):]
		n := min(len(ids), len(KeyID{}.ID))
		from.Key, from.Id = ids[:n], ids[n:]
	}
	return grantsBy(byRetiring.in(s.db), from, func(g *fsmpb.Grant) bool {
		return g.Retiring == principal && Account(g.Account) == a && g.Region == region
	})
}

// grantsBy walks an index from after a grant for as long as belong holds. A key
// may have 50,000 grants, so they are not collected first.
func grantsBy(index *btree.BTreeG[*fsmpb.Grant], after *fsmpb.Grant, belong func(*fsmpb.Grant) bool) iter.Seq[*fsmpb.Grant] {
	return func(yield func(*fsmpb.Grant) bool) {
		index.AscendGreaterOrEqual(after, func(g *fsmpb.Grant) bool {
			return bytes.Equal(g.Id, after.Id) && bytes.Equal(g.Key, after.Key) || belong(g) && yield(g)
		})
	}
}

// KeyStore returns the custom key store with that id.
func (s *State) KeyStore(a Account, id string) (*fsmpb.KeyStore, Version) {
	return get[*fsmpb.KeyStore](s, fsmpb.Kind_KIND_KEY_STORE, KeyStoreID(a, id))
}

// KeyStores returns the count of the account's custom key stores; its version changes
// when one is created, deleted or changed.
func (s *State) KeyStores(a Account) (*fsmpb.KeyStores, Version) {
	return get[*fsmpb.KeyStores](s, fsmpb.Kind_KIND_KEY_STORES, AccountID(a))
}

// AllKeyStores returns the account's custom key stores, by id.
func (s *State) AllKeyStores(a Account) iter.Seq[*fsmpb.KeyStore] {
	return scan[*fsmpb.KeyStore](s, fsmpb.Kind_KIND_KEY_STORE, AccountID(a), AccountID(a))
}

// StoreKeys returns the count of the keys of a custom key store; its version
// changes with the set.
func (s *State) StoreKeys(a Account, store string) (*fsmpb.StoreKeys, Version) {
	return get[*fsmpb.StoreKeys](s, fsmpb.Kind_KIND_STORE_KEYS, KeyStoreID(a, store))
}

// KeyUse returns the newest use of a key; nil if it was never used. It may be
// newer than the state.
func (s *State) KeyUse(id KeyID) *fsmpb.KeyUse { return s.uses.get(id) }

// LastUse returns the cluster time of a key's newest use, which is also its version in read
// sets; 0 if the key was never used. It may be newer than the state.
func LastUse(s *State, id KeyID) int64 { return int64(s.uses.version(id.Bytes())) }

// CredentialUse returns the newest use of a credential; nil if there was none. It may be newer
// than the state.
func CredentialUse(s *State, a Account, id string) *fsmpb.CredentialUse {
	return s.uses.ofCredential(CredentialID(a, id))
}

// Node returns the registration of the node with that id.
func (s *State) Node(id string) (*fsmpb.RegisterNode, Version) {
	return get[*fsmpb.RegisterNode](s, fsmpb.Kind_KIND_NODE, []byte(id))
}

// Nodes returns all registered nodes, by id.
func (s *State) Nodes() iter.Seq[*fsmpb.RegisterNode] {
	return scan[*fsmpb.RegisterNode](s, fsmpb.Kind_KIND_NODE, nil, nil)
}

// Keys returns the keys of an account in a Region by id, beginning after the given id, or at
// the first if its last part is zero.
func (s *State) Keys(after KeyID) iter.Seq[*fsmpb.Key] {
	prefix := regional(after.Account, after.Region, 0)
	from := prefix
	if after.ID != [16]byte{} {
		from = append(after.Bytes(), 0) // the least id greater than after
	}
	return scan[*fsmpb.Key](s, fsmpb.Kind_KIND_KEY, prefix, from)
}

// AllKeys returns the keys of all accounts and Regions.
func (s *State) AllKeys() iter.Seq[*fsmpb.Key] {
	return scan[*fsmpb.Key](s, fsmpb.Kind_KIND_KEY, nil, nil)
}

// Aliases returns the aliases of an account in a Region by name, beginning after the given
// name, or at the first for "".
func (s *State) Aliases(a Account, region, after string) iter.Seq[*fsmpb.Alias] {
	prefix := regional(a, region, 0)
	from := prefix
	if after != "" {
		from = append(AliasID(a, region, after), 0)
	}
	return scan[*fsmpb.Alias](s, fsmpb.Kind_KIND_ALIAS, prefix, from)
}

// AliasesOf returns the key's aliases, by name.
func (s *State) AliasesOf(id KeyID) iter.Seq[*fsmpb.Alias] {
	return func(yield func(*fsmpb.Alias) bool) {
		byTarget.in(s.db).AscendGreaterOrEqual(&fsmpb.Alias{Account: uint64(id.Account), Region: id.Region, Key: id.ID[:]}, func(a *fsmpb.Alias) bool {
			return Account(a.Account) == id.Account && a.Region == id.Region && bytes.Equal(a.Key, id.ID[:]) && yield(a)
		})
	}
}

// scan walks the objects of a kind whose ids begin with prefix, beginning at the id from.
func scan[M proto.Message](s *State, kind fsmpb.Kind, prefix, from []byte) iter.Seq[M] {
	return func(yield func(M) bool) {
		s.db.rows.AscendGreaterOrEqual(&object{id: rowID(kind, from)}, func(o *object) bool {
			return o.kind() == kind && bytes.HasPrefix(o.name(), prefix) && yield(o.message().(M))
		})
	}
}
