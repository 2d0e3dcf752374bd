package fsm

import (
	"fmt"
	"maps"
	"math"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

const week = 7 * day

// Keys of the world that hostile records meet.
var (
	ownKey      = testKey(1) // rotated once
	importedKey = testKey(2) // with current material, material that waits for a rotation, and a used token
	primaryKey  = testKey(3) // of a set with replicaKey
	doomedKey   = testKey(4) // to be deleted
	waitingKey  = testKey(5) // a primary whose deletion waits for its replica
	goneKey     = testKey(6) // deleted
	emptyKey    = testKey(7) // waits for its first import
	loneKey     = testKey(8) // a primary without replicas
	storeKey    = testKey(9)
	noKey       = testKey(99)

	replicaKey   = KeyID{Account: account, Region: "us-test-1", ID: primaryKey.ID}
	strangersKey = KeyID{Account: account + 1, Region: region, ID: ownKey.ID}
	waitingFor   = KeyID{Account: account, Region: "us-test-1", ID: waitingKey.ID}
)

const usedURI = "spiffe://test/ann"

func material(n byte) *fsmpb.Material {
	m := &fsmpb.Material{
		Id: make([]byte, 16), MaterialId: make([]byte, 32), Generation: 1, Wrapped: []byte{n, n}, Created: start,
		PublicKey: []byte{n}, Description: "d",
	}
	m.Id[0], m.MaterialId[0] = n, n
	return m
}

func tagsOf(id KeyID) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutKeyTags{PutKeyTags: &fsmpb.KeyTags{Account: uint64(id.Account), Key: id.ID[:], Region: id.Region}}}
}

func deleteAlias(name string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeleteAlias{DeleteAlias: &fsmpb.AliasName{Account: uint64(account), Name: name, Region: region}}}
}

// world is a state with something that each rule protects.
type world struct {
	*machine
}

func newWorld(t *testing.T) *world {
	w := &world{newMachine(t)}
	multi := func(id KeyID) *fsmpb.Key {
		k := keyOf(id)
		k.MultiRegion, k.PrimaryRegion, k.Materials = true, region, []*fsmpb.Material{material(1)}
		return k
	}
	imported := keyOf(importedKey)
	imported.Origin = "EXTERNAL"
	next := material(2)
	next.Pending = true
	imported.Materials = []*fsmpb.Material{material(1), next}
	imported.UsedTokens = []*fsmpb.UsedToken{{Id: make([]byte, 16), Expires: start + day}, {Id: []byte("sixteen bytes id"), Expires: start + 2*day}}
	empty := keyOf(emptyKey)
	empty.Origin, empty.State = "EXTERNAL", fsmpb.KeyState_KEY_STATE_PENDING_IMPORT
	certificate := &fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: &fsmpb.Credential{
		Account: uint64(account), Id: usedURI, Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_CERTIFICATE, Principal: "arn:aws:iam::000000000000:user/ann", Active: true,
		Mac: make([]byte, 32), MacGeneration: 1, SessionEpoch: 3,
	}}}
	own := keyOf(ownKey)
	own.Materials = []*fsmpb.Material{material(1), material(2)}
	own.Materials[1].Rotated = start
	wantVerdicts(t, w.propose(
		record(putKey(keyOf(goneKey))), record(putKey(keyOf(goneKey), func(k *fsmpb.Key) { schedule(k, start+week) })),
	), Accepted, Accepted)
	w.pass(7)
	wantVerdicts(t, w.propose(record(deleteKey(goneKey))), Accepted)
	for _, u := range imported.UsedTokens {
		u.Expires += week
	}
	wantVerdicts(t, w.propose(
		record(putKey(own), putPolicy(ownKey, "{}"), tagsOf(ownKey), putAlias(ownKey, "alias/a"), putGrant(ownKey, 1)),
		record(putKey(imported), putKey(empty), credential("AKIAONE"), certificate),
		record(putKey(multi(primaryKey)), putKey(multi(waitingKey)), putKey(multi(loneKey)), putKey(keyOf(doomedKey)), putStore("cks-1")),
		record(putKey(inStore(storeKey, "cks-1"))),
		record(putKey(multi(primaryKey), in("us-test-1")), putKey(multi(waitingKey), in("us-test-1"))),
		record(putKey(keyOf(doomedKey), func(k *fsmpb.Key) { schedule(k, w.wall+week) }),
			putKey(multi(waitingKey), func(k *fsmpb.Key) {
				k.State, k.DeletionDays = fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION, 9
			})),
	), Accepted, Accepted, Accepted, Accepted, Accepted, Accepted)
	w.addIAM(t)
	return w
}

func in(region string) func(*fsmpb.Key) { return func(k *fsmpb.Key) { k.Region = region } }

func schedule(k *fsmpb.Key, at int64) {
	k.State, k.DeletionTime = fsmpb.KeyState_KEY_STATE_PENDING_DELETION, at
}

// key returns a change that edits an existing key.
func (w *world) key(id KeyID, edit func(*fsmpb.Key)) *fsmpb.Change {
	k, _ := w.fsm.Current().Key(id)
	return putKey(proto.CloneOf(k), edit)
}

// cred returns a change that edits an existing credential.
func (w *world) cred(id string, edit func(*fsmpb.Credential)) *fsmpb.Change {
	c, _ := w.fsm.Current().Credential(account, id)
	c = proto.CloneOf(c)
	edit(c)
	return &fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: c}}
}

// newKey returns a change that creates a key.
func newKey(edit func(*fsmpb.Key)) func(*world) *fsmpb.Record {
	return func(*world) *fsmpb.Record { return record(putKey(keyOf(noKey), edit)) }
}

func ofKey(id KeyID, edit func(*fsmpb.Key)) func(*world) *fsmpb.Record {
	return func(w *world) *fsmpb.Record { return record(w.key(id, edit)) }
}

func ofCred(id string, edit func(*fsmpb.Credential)) func(*world) *fsmpb.Record {
	return func(w *world) *fsmpb.Record { return record(w.cred(id, edit)) }
}

func newCred(edit func(*fsmpb.Credential)) func(*world) *fsmpb.Record {
	return func(*world) *fsmpb.Record {
		c := credential("AKIATWO")
		edit(c.GetPutCredential())
		return record(c)
	}
}

func ofCluster(edit func(*fsmpb.Cluster)) func(*world) *fsmpb.Record {
	return func(w *world) *fsmpb.Record {
		c, _ := w.fsm.Current().Cluster()
		c = proto.CloneOf(c)
		edit(c)
		return record(&fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: c}})
	}
}

func changing(changes ...*fsmpb.Change) func(*world) *fsmpb.Record {
	return func(*world) *fsmpb.Record { return record(changes...) }
}

func edited[M proto.Message](c *fsmpb.Change, of func(*fsmpb.Change) M, edit func(M)) *fsmpb.Change {
	c = proto.CloneOf(c)
	edit(of(c))
	return c
}

const (
	enabled          = fsmpb.KeyState_KEY_STATE_ENABLED
	disabled         = fsmpb.KeyState_KEY_STATE_DISABLED
	waitsForImport   = fsmpb.KeyState_KEY_STATE_PENDING_IMPORT
	waitsForReplicas = fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION
)

func state(s fsmpb.KeyState) func(*fsmpb.Key) {
	return func(k *fsmpb.Key) { k.State, k.DeletionTime, k.DeletionDays = s, 0, 0 }
}

func after(w *world, d int64) int64 { return w.wall + d }

// ruleCase is a rule, with a record that breaks it and the most similar one that is
// legal.
type ruleCase struct {
	rule, name string
	hostile    func(*world) *fsmpb.Record
	legal      func(*world) *fsmpb.Record // nil if there is none
}

var ruleCases = []ruleCase{
	{"the record is malformed", "no salt", func(*world) *fsmpb.Record { r := record(); r.Salt = nil; return r }, changing()},
	{"a change is empty", "", changing(&fsmpb.Change{}), changing()},

	// Records as a whole.
	{"it deletes a key and changes something else", "", func(w *world) *fsmpb.Record { w.pass(7); return record(deleteKey(doomedKey), tagsOf(ownKey)) },
		changing(deleteKey(doomedKey))},
	{"it changes an object twice", "a new alias", changing(putAlias(ownKey, "alias/b"), putAlias(ownKey, "alias/b")), changing(putAlias(ownKey, "alias/b"), putAlias(ownKey, "alias/c"))},
	{"it changes an object twice", "put and deleted", changing(putAlias(ownKey, "alias/a"), deleteAlias("alias/a")), changing(deleteAlias("alias/a"))},
	{"it changes an object twice", "a grant that ends twice", changing(deleteGrant(ownKey, 1), deleteGrant(ownKey, 1)), changing(deleteGrant(ownKey, 1))},

	// Settings.
	{"a setting has no valid name", "", finalized(putSetting("a b", "")), finalized(putSetting("ab", ""))},
	{"a setting has no valid name", "deleted", finalized(deleteSetting("a b")), nil},
	{"a setting has too large a value", "", finalized(putSetting("a", strings.Repeat("x", 4097))), finalized(putSetting("a", strings.Repeat("x", 4096)))},
	{"there are too many settings", "", func(w *world) *fsmpb.Record {
		w.finalize()
		for i := range 256 {
			wantVerdicts(w.t, w.propose(record(putSetting(fmt.Sprint(i), ""))), Accepted)
		}
		return record(putSetting("one-more", ""))
	}, func(*world) *fsmpb.Record { return record(putSetting("255", "again")) }},

	// The feature level; see TestRaiseLevel.
	{"it sets the feature level to one that is lower than before, or newer than its entry", "", func(*world) *fsmpb.Record { return raised(2) }, nil},
	{"it raises the feature level, and a voter has not registered a release that knows it", "", func(*world) *fsmpb.Record { return raised(1) }, nil},

	// The account.
	{"it names an account that does not exist", "changed", changing(putAlias(strangersKey, "alias/x")), changing(putAlias(ownKey, "alias/x"))},
	{"it names an account that does not exist", "deleted", changing(deleteKey(strangersKey)), nil},
	{"it names an account that does not exist", "credential", ofCred("AKIAONE", func(c *fsmpb.Credential) { c.Account++ }), ofCred("AKIAONE", func(c *fsmpb.Credential) { c.Active = false })},
	{"it names an account that does not exist", "key store", changing(deleteStoreOf(account+1, "cks-1")), nil},
	{"it names an account that does not exist", "no account", changing(deleteKey(KeyID{Region: region, ID: ownKey.ID})), nil},
	{"it names an account that does not exist", "read", func(*world) *fsmpb.Record { return reads(record(), fsmpb.Kind_KIND_KEY, strangersKey.Bytes(), 1) },
		func(*world) *fsmpb.Record { return reads(record(), fsmpb.Kind_KIND_KEY, strangersKey.Bytes(), 0) }},
	{"it names an account that does not exist", "read of nothing", func(*world) *fsmpb.Record { return reads(record(), fsmpb.Kind_KIND_KEY_STORES, nil, 1) },
		func(*world) *fsmpb.Record { return reads(record(), fsmpb.Kind_KIND_NODE, nil, 0) }},

	// The cluster.
	{"a cluster's record is incomplete", "", ofCluster(func(c *fsmpb.Cluster) { c.Keyring = nil }), ofCluster(func(c *fsmpb.Cluster) { c.AnyRegion = true })},
	{"a cluster's record is incomplete", "account", ofCluster(func(c *fsmpb.Cluster) { c.Account = "11112222333" }), nil},
	{"a cluster's Regions are not in order", "", ofCluster(func(c *fsmpb.Cluster) { slices.Reverse(c.MoreRegions) }), nil},
	{"it changes the cluster's record", "root key", ofCluster(func(c *fsmpb.Cluster) { c.WrappedRoot = []byte("noise") }), nil},
	{"it changes the cluster's record", "shares", ofCluster(func(c *fsmpb.Cluster) { c.Shares.Threshold++ }), nil},
	{"it changes the cluster's record", "keyring", ofCluster(func(c *fsmpb.Cluster) { c.Keyring[0].Wrapped = []byte("noise") }), nil},
	{"it changes the cluster's record", "origin keys", ofCluster(func(c *fsmpb.Cluster) { c.OriginKeys = nil }), nil},
	{"it changes the cluster's record", "audit key", ofCluster(func(c *fsmpb.Cluster) { c.AuditPublicKey = []byte("noise") }), nil},
	{"it changes the cluster's record", "wrapped audit key", ofCluster(func(c *fsmpb.Cluster) { c.WrappedAuditKey = []byte("noise") }), nil},
	{"it changes the cluster's record", "account", ofCluster(func(c *fsmpb.Cluster) { c.Account = "111111111111" }), nil},

	// What a key is.
	{"a key has no valid id, Region, spec or usage", "", newKey(func(k *fsmpb.Key) { k.Spec = "" }), newKey(nil)},
	{"a key has no valid id or Region", "", changing(deleteKey(KeyID{Account: account, Region: "EU", ID: ownKey.ID})), nil},
	{"it reuses the id of a deleted key", "", changing(putKey(keyOf(goneKey))), newKey(nil)},
	{"it changes a key's spec, usage, origin, creation date or key store", "spec", ofKey(ownKey, func(k *fsmpb.Key) { k.Spec = "HMAC_256" }), ofKey(ownKey, func(k *fsmpb.Key) { k.Description = "x" })},
	{"it changes a key's spec, usage, origin, creation date or key store", "origin", ofKey(ownKey, func(k *fsmpb.Key) { k.Origin = "EXTERNAL" }), nil},
	{"it changes a key's spec, usage, origin, creation date or key store", "store", ofKey(storeKey, func(k *fsmpb.Key) { k.KeyStore = "" }), nil},
	{"only a multi-Region key has a primary Region, and each has", "none", newKey(func(k *fsmpb.Key) { k.MultiRegion = true }),
		newKey(func(k *fsmpb.Key) { k.MultiRegion, k.PrimaryRegion = true, region })},
	{"only a multi-Region key has a primary Region, and each has", "single-Region", ofKey(ownKey, func(k *fsmpb.Key) { k.PrimaryRegion = region }), nil},
	{"it creates a replica whose primary key does not exist or is not enabled", "none", newKey(func(k *fsmpb.Key) { k.MultiRegion, k.PrimaryRegion = true, "us-test-1" }),
		ofKey(loneKey, in("us-test-1"))},
	{"it creates a replica whose primary key does not exist or is not enabled", "pending deletion", ofKey(waitingKey, func(k *fsmpb.Key) { k.Region = "eu-test-2"; state(enabled)(k) }),
		ofKey(primaryKey, in("eu-test-2"))},
	{"it makes a key the primary, or no longer the primary, that is not enabled", "the old one", ofKey(waitingKey, func(k *fsmpb.Key) { state(disabled)(k); k.PrimaryRegion = "us-test-1" }),
		func(w *world) *fsmpb.Record {
			to := func(k *fsmpb.Key) { k.PrimaryRegion = "us-test-1" }
			return record(w.key(primaryKey, to), w.key(replicaKey, to))
		}},

	// States and dates.
	{"a key has no state, or an unknown one", "", ofKey(ownKey, state(0)), ofKey(ownKey, state(disabled))},
	{"it creates a key that is pending deletion", "", func(w *world) *fsmpb.Record { return newKey(func(k *fsmpb.Key) { schedule(k, after(w, week)) })(w) }, newKey(state(disabled))},
	{"it creates a key that is pending deletion", "of its replicas", newKey(func(k *fsmpb.Key) {
		k.MultiRegion, k.PrimaryRegion, k.State, k.DeletionDays = true, region, waitsForReplicas, 7
	}), nil},
	{"it enables a key that is pending deletion", "", ofKey(doomedKey, state(enabled)), ofKey(doomedKey, state(disabled))},
	{"it enables a key that is pending deletion", "of its replicas", ofKey(waitingKey, state(enabled)), ofKey(waitingKey, state(disabled))},
	{"it schedules a deletion too soon", "now", func(w *world) *fsmpb.Record {
		return record(w.key(ownKey, func(k *fsmpb.Key) { schedule(k, after(w, 0)) }))
	}, nil},
	{"it schedules a deletion too soon", "in seven days but for an instant", func(w *world) *fsmpb.Record {
		return record(w.key(ownKey, func(k *fsmpb.Key) { schedule(k, after(w, week)-1) }))
	}, func(w *world) *fsmpb.Record {
		return record(w.key(ownKey, func(k *fsmpb.Key) { schedule(k, after(w, week)) }))
	}},
	{"it schedules a deletion too soon", "before the period that was asked for", func(w *world) *fsmpb.Record {
		w.dropReplica()
		return record(w.key(waitingKey, func(k *fsmpb.Key) { state(disabled)(k); schedule(k, after(w, 9*day)-1) }))
	}, func(w *world) *fsmpb.Record {
		return record(w.key(waitingKey, func(k *fsmpb.Key) { state(disabled)(k); schedule(k, after(w, 9*day)) }))
	}},
	{"it changes the date of a scheduled deletion", "earlier", ofKey(doomedKey, func(k *fsmpb.Key) { k.DeletionTime-- }), ofKey(doomedKey, func(k *fsmpb.Key) { k.Description = "x" })},
	{"it changes the date of a scheduled deletion", "later", ofKey(doomedKey, func(k *fsmpb.Key) { k.DeletionTime++ }), nil},
	{"it schedules the deletion of a primary key that has replicas", "", func(w *world) *fsmpb.Record {
		return record(w.key(primaryKey, func(k *fsmpb.Key) { schedule(k, after(w, week)) }))
	}, func(w *world) *fsmpb.Record {
		return record(w.key(replicaKey, func(k *fsmpb.Key) { schedule(k, after(w, week)) }))
	}},
	{"it schedules the deletion of a primary key that has replicas", "that waits for them", func(w *world) *fsmpb.Record {
		return record(w.key(waitingKey, func(k *fsmpb.Key) { state(disabled)(k); schedule(k, after(w, 9*day)) }))
	}, nil},
	{"only a multi-Region primary key waits for its replicas to be deleted", "replica", ofKey(replicaKey, func(k *fsmpb.Key) { k.State, k.DeletionDays = waitsForReplicas, 7 }),
		ofKey(primaryKey, func(k *fsmpb.Key) { k.State, k.DeletionDays = waitsForReplicas, 7 })},
	{"only a multi-Region primary key waits for its replicas to be deleted", "single-Region", ofKey(ownKey, func(k *fsmpb.Key) { k.State, k.DeletionDays = waitsForReplicas, 7 }), nil},
	{"it removes the date of a scheduled deletion", "", func(w *world) *fsmpb.Record {
		at := after(w, week)
		wantVerdicts(w.t.(*testing.T), w.propose(record(w.key(loneKey, func(k *fsmpb.Key) { schedule(k, at) }))), Accepted)
		return record(w.key(loneKey, func(k *fsmpb.Key) { state(waitsForReplicas)(k); k.DeletionDays = 30 }))
	}, ofKey(loneKey, state(disabled))},
	{"it changes the waiting period of a scheduled deletion", "", ofKey(waitingKey, func(k *fsmpb.Key) { k.DeletionDays = 8 }), ofKey(waitingKey, func(k *fsmpb.Key) { k.Description = "x" })},
	{"the waiting period of a deletion is not 7 to 30 days", "six", ofKey(primaryKey, func(k *fsmpb.Key) { k.State, k.DeletionDays = waitsForReplicas, 6 }),
		ofKey(primaryKey, func(k *fsmpb.Key) { k.State, k.DeletionDays = waitsForReplicas, 30 })},
	{"the waiting period of a deletion is not 7 to 30 days", "31", ofKey(primaryKey, func(k *fsmpb.Key) { k.State, k.DeletionDays = waitsForReplicas, 31 }), nil},
	{"only a key that is pending deletion has a date or a waiting period", "date", ofKey(doomedKey, func(k *fsmpb.Key) { k.State = disabled }), nil},
	{"only a key that is pending deletion has a date or a waiting period", "period", ofKey(doomedKey, func(k *fsmpb.Key) { k.DeletionDays = 7 }), nil},

	// Material.
	{"only a key with imported material is pending import", "", ofKey(ownKey, state(waitsForImport)), ofKey(importedKey, state(waitsForImport))},
	{"it enables or disables a key that lacks imported material", "never imported", ofKey(emptyKey, state(enabled)), ofKey(emptyKey, func(k *fsmpb.Key) {
		k.Materials, k.State = []*fsmpb.Material{material(1)}, enabled
	})},
	{"it enables or disables a key that lacks imported material", "deleted", ofKey(importedKey, func(k *fsmpb.Key) { destroyed(k.Materials[0]) }),
		ofKey(importedKey, func(k *fsmpb.Key) { destroyed(k.Materials[0]); state(waitsForImport)(k) })},
	{"it removes key material", "all", ofKey(ownKey, func(k *fsmpb.Key) { k.Materials = nil }), nil},
	{"it removes key material", "an older version", ofKey(ownKey, func(k *fsmpb.Key) { k.Materials = k.Materials[1:] }), nil},
	{"it removes key material", "the newest", ofKey(ownKey, func(k *fsmpb.Key) { k.Materials = k.Materials[:1] }),
		ofKey(ownKey, func(k *fsmpb.Key) { k.Materials = append(k.Materials, material(3)) })},
	{"it removes key material", "another in its place", ofKey(ownKey, func(k *fsmpb.Key) { k.Materials[1] = material(3) }), nil},
	{"it removes key material", "imported, which was current", ofKey(importedKey, func(k *fsmpb.Key) { k.Materials = k.Materials[1:]; state(waitsForImport)(k) }),
		ofKey(importedKey, func(k *fsmpb.Key) { k.Materials = k.Materials[:1] })},
	{"it changes generated key material", "noise", ofKey(ownKey, func(k *fsmpb.Key) { k.Materials[0].Wrapped = []byte("noise") }), nil},
	{"it changes generated key material", "shredded", ofKey(ownKey, func(k *fsmpb.Key) { k.Materials[0].Wrapped = nil }), nil},
	{"it changes generated key material", "to expire", ofKey(ownKey, func(k *fsmpb.Key) { k.Materials[0].ValidTo = start }), nil},
	{"it replaces imported key material", "", ofKey(importedKey, func(k *fsmpb.Key) { k.Materials[0].Wrapped = []byte("noise") }),
		ofKey(importedKey, func(k *fsmpb.Key) { k.Materials[0].ValidTo, k.Materials[0].Description = after2030, "e" })},
	{"it deletes imported key material, but not all of it", "", ofKey(importedKey, func(k *fsmpb.Key) { k.Materials[0].Wrapped = nil; state(waitsForImport)(k) }),
		ofKey(importedKey, func(k *fsmpb.Key) { destroyed(k.Materials[0]); state(waitsForImport)(k) })},
	{"it changes the identity of key material", "material id", ofKey(importedKey, func(k *fsmpb.Key) { k.Materials[0].MaterialId[1]++ }), nil},
	{"it changes the identity of key material", "public key", ofKey(ownKey, func(k *fsmpb.Key) { k.Materials[0].PublicKey = []byte("thief's") }), nil},
	{"it changes when key material became current", "back", ofKey(importedKey, func(k *fsmpb.Key) { k.Materials[0].Pending = true; state(waitsForImport)(k) }), ofKey(importedKey, func(k *fsmpb.Key) {
		k.Materials[1].Pending, k.Materials[1].Rotated, k.Materials[1].OnDemand = false, start, true
	})},
	{"it changes when key material became current", "date", ofKey(ownKey, func(k *fsmpb.Key) { k.Materials[1].Rotated++ }), nil},
	{"key material has no id, or the id of other material", "none", ofKey(ownKey, func(k *fsmpb.Key) {
		k.Materials = append(k.Materials, &fsmpb.Material{Wrapped: []byte("x"), Generation: 1})
	}), nil},
	{"key material has no id, or the id of other material", "another's", ofKey(ownKey, func(k *fsmpb.Key) { k.Materials = append(k.Materials, material(1)) }), nil},
	{"it adds generated key material without the material", "", ofKey(ownKey, func(k *fsmpb.Key) { k.Materials = append(k.Materials, destroyed(material(3))) }),
		ofKey(importedKey, func(k *fsmpb.Key) {
			m := destroyed(material(3))
			m.Pending = true
			k.Materials = append(k.Materials[:1], m)
		})},
	{"key material is not wrapped by a generation of the keyring", "new", ofKey(ownKey, func(k *fsmpb.Key) {
		k.Materials = append(k.Materials, material(3))
		k.Materials[2].Generation = 2
	}), nil},
	{"key material is not wrapped by a generation of the keyring", "imported again", func(w *world) *fsmpb.Record {
		wantVerdicts(w.t.(*testing.T), w.propose(record(w.key(importedKey, func(k *fsmpb.Key) { destroyed(k.Materials[0]); state(waitsForImport)(k) }))), Accepted)
		return record(w.key(importedKey, func(k *fsmpb.Key) {
			k.Materials[0].Wrapped, k.Materials[0].Generation = []byte("again"), 2
			state(enabled)(k)
		}))
	}, ofKey(importedKey, func(k *fsmpb.Key) {
		k.Materials[0].Wrapped, k.Materials[0].Generation = []byte("again"), 1
		state(enabled)(k)
	})},
	{"it removes a used import token that has not expired", "all", ofKey(importedKey, func(k *fsmpb.Key) { k.UsedTokens = nil }), nil},
	{"it removes a used import token that has not expired", "one that is to expire sooner", ofKey(importedKey, func(k *fsmpb.Key) { k.UsedTokens[0].Expires-- }), nil},
	{"it removes a used import token that has not expired", "one of two", func(w *world) *fsmpb.Record {
		w.pass(1)
		return record(w.key(importedKey, func(k *fsmpb.Key) { k.UsedTokens = k.UsedTokens[:1] }))
	}, ofKey(importedKey, func(k *fsmpb.Key) {
		k.UsedTokens = append(k.UsedTokens[1:], &fsmpb.UsedToken{Id: make([]byte, 16), Expires: after2030})
	})},

	// What belongs to keys.
	{"a key policy is not a JSON object of at most 32768 bytes", "noise", changing(putPolicy(ownKey, "noise")), changing(putPolicy(ownKey, ` {"Version":"2012-10-17"}`))},
	{"a key policy is not a JSON object of at most 32768 bytes", "list", changing(putPolicy(ownKey, "[]")), nil},
	{"a key policy is not a JSON object of at most 32768 bytes", "nothing", changing(putPolicy(ownKey, "")), nil},
	{"a key policy is not a JSON object of at most 32768 bytes", "cut short", changing(putPolicy(ownKey, `{"Version":"2012-10-17"`)), nil},
	{"a key policy is not a JSON object of at most 32768 bytes", "long", changing(putPolicy(ownKey, `{"Id":"`+strings.Repeat("x", 32768-8)+`"}`)), changing(putPolicy(ownKey, `{"Id":"`+strings.Repeat("x", 32768-9)+`"}`))},
	{"the bindings of a policy are not in order, or too many", "", changing(putBound(ownKey, "b", "AIDA345678901234", "a", "AIDA345678901234")), changing(putBound(ownKey, "a", "AIDA345678901234", "b", "AIDA345678901234"))},
	{"the bindings of a policy are not in order, or too many", "twice", changing(putBound(ownKey, "a", "AIDA345678901234", "a", "AIDA345678901235")), nil},
	{"a binding of a policy has no valid name or unique id", "no name", changing(putBound(ownKey, "", "AIDA345678901234")), nil},
	{"a binding of a policy has no valid name or unique id", "long name", changing(putBound(ownKey, strings.Repeat("x", 769), "AIDA345678901234")), changing(putBound(ownKey, strings.Repeat("x", 768), "AIDA345678901234"))},
	{"a binding of a policy has no valid name or unique id", "no id", changing(putBound(ownKey, "a", "")), nil},
	{"a binding of a policy has no valid name or unique id", "id", changing(putBound(ownKey, "a", "AIDA34567890123:")), changing(putBound(ownKey, "a", "AROA345678901234"))},
	{"it stores a policy, tags, an alias or a grant for a key that does not exist", "policy", changing(putPolicy(noKey, "{}")), changing(putPolicy(noKey, "{}"), putKey(keyOf(noKey)))},
	{"it stores a policy, tags, an alias or a grant for a key that does not exist", "tags", changing(tagsOf(goneKey)), changing(tagsOf(ownKey))},
	{"it stores a policy, tags, an alias or a grant for a key that does not exist", "alias", changing(putAlias(noKey, "alias/b")), changing(putAlias(ownKey, "alias/b"))},
	{"it stores a policy, tags, an alias or a grant for a key that does not exist", "grant", changing(putGrant(goneKey, 1)), changing(putGrant(ownKey, 2))},
	{"an alias has no valid name or key", "", changing(putAlias(ownKey, "b")), nil},
	{"it deletes an alias that does not exist", "", changing(deleteAlias("alias/b")), nil},
	{"a grant has no valid key, id, grantee or operation", "", changing(edited(putGrant(ownKey, 2), (*fsmpb.Change).GetPutGrant, func(g *fsmpb.Grant) { g.Operations = nil })), nil},
	{"a grant has no valid key", "", changing(deleteGrant(KeyID{Account: account, Region: "EU"}, 1)), nil},
	{"it changes a grant", "", changing(edited(putGrant(ownKey, 1), (*fsmpb.Change).GetPutGrant, func(g *fsmpb.Grant) { g.Operations = []string{"Decrypt"} })), changing(putGrant(ownKey, 2))},
	{"a custom key store has no id, name, type or state", "", changing(edited(putStore("cks-2"), (*fsmpb.Change).GetPutKeyStore, func(s *fsmpb.KeyStore) { s.Name = "" })), changing(putStore("cks-2"))},
	{"it changes the type or the identity of a custom key store", "", changing(edited(putStore("cks-1"), (*fsmpb.Change).GetPutKeyStore, func(s *fsmpb.KeyStore) { s.Type = "AWS_CLOUDHSM" })),
		changing(edited(putStore("cks-1"), (*fsmpb.Change).GetPutKeyStore, func(s *fsmpb.KeyStore) { s.Name = "another" }))},

	// Credentials.
	{"a credential has no id or no principal", "", newCred(func(c *fsmpb.Credential) { c.Principal = "" }), newCred(func(*fsmpb.Credential) {})},
	{"it makes a node's certificate a credential", "", newCred(func(c *fsmpb.Credential) { c.Id = "conclave://node/n1" }), nil},
	{"an access key has no secret that is wrapped by the keyring", "none", newCred(func(c *fsmpb.Credential) { c.WrappedSecret = nil }), nil},
	{"an access key has no secret that is wrapped by the keyring", "another generation's", newCred(func(c *fsmpb.Credential) { c.Generation = 2 }), nil},
	{"a certificate has a secret", "", ofCred(usedURI, func(c *fsmpb.Credential) { c.WrappedSecret = []byte("x") }), nil},
	{"a credential has no kind, or an unknown one", "", newCred(func(c *fsmpb.Credential) { c.Kind = 0 }), nil},
	{"a credential has no MAC by the keyring", "none", newCred(func(c *fsmpb.Credential) { c.Mac = nil }), nil},
	{"a credential has no MAC by the keyring", "cut short", ofCred("AKIAONE", func(c *fsmpb.Credential) { c.Mac = c.Mac[:31] }), ofCred("AKIAONE", func(c *fsmpb.Credential) { c.Active = false })},
	{"a credential has no MAC by the keyring", "another generation's", newCred(func(c *fsmpb.Credential) { c.MacGeneration = 2 }), nil},
	{"it changes the kind, principal or creation date of a credential", "principal", ofCred(usedURI, func(c *fsmpb.Credential) { c.Principal = "arn:aws:iam::000000000000:root" }), nil},
	{"it changes the kind, principal or creation date of a credential", "kind", ofCred(usedURI, func(c *fsmpb.Credential) {
		c.Kind, c.WrappedSecret, c.Generation = fsmpb.CredentialKind_CREDENTIAL_KIND_ACCESS_KEY, []byte("x"), 1
	}), nil},
	{"it changes the end of a credential", "", ofCred("AKIAONE", func(c *fsmpb.Credential) { c.BreakGlassUntil = 1 }), nil},
	{"a break-glass access key lasts too long", "", newCred(func(c *fsmpb.Credential) { c.BreakGlassUntil = math.MaxInt64 }), newCred(func(c *fsmpb.Credential) { c.BreakGlassUntil = 1 })},
	{"it lowers the session epoch of a credential", "", ofCred(usedURI, func(c *fsmpb.Credential) { c.SessionEpoch-- }), ofCred(usedURI, func(c *fsmpb.Credential) { c.SessionEpoch++ })},
}

const after2030 = 1_900_000_000 * second

func destroyed(m *fsmpb.Material) *fsmpb.Material {
	m.Generation, m.Wrapped, m.ValidTo = 0, nil, 0
	return m
}

// dropReplica deletes the replica for which the deletion of a key waits.
func (w *world) dropReplica() {
	w.t.Helper()
	t := w.t.(*testing.T)
	wantVerdicts(t, w.propose(record(w.key(waitingFor, func(k *fsmpb.Key) { schedule(k, after(w, week)) }))), Accepted)
	w.pass(7)
	wantVerdicts(t, w.propose(record(deleteKey(waitingFor))), Accepted)
}

// objects returns all objects in the state.
func (w *world) objects() (all []proto.Message) {
	for _, r := range snapshotRows {
		all = slices.AppendSeq(all, scan[proto.Message](w.fsm.Current(), r.kind, nil, nil))
	}
	return all
}

// TestRules: a record that breaks a rule changes nothing, is not in the audit log,
// and is reported with the rule and its proposer. The most similar legal record is
// accepted.
func TestRules(t *testing.T) {
	for _, tt := range slices.Concat(ruleCases, iamRuleCases) {
		t.Run(strings.TrimSuffix(tt.rule+", "+tt.name, ", "), func(t *testing.T) {
			w := newWorld(t)
			r := tt.hostile(w)
			before, entries := w.objects(), len(w.audit.entries)
			wantVerdicts(t, w.propose(r), Invalid)
			if !slices.EqualFunc(before, w.objects(), proto.Equal) {
				t.Error("the state changed")
			}
			if n := len(w.audit.entries); n != entries {
				t.Errorf("%d audit entries were written", n-entries)
			}
			want := []Refusal{{Node: "n1", RequestID: [16]byte(r.RequestId), Rule: tt.rule}}
			if got := w.events[len(w.events)-1].Refused; !slices.Equal(got, want) {
				t.Errorf("reported %+v, want %+v", got, want)
			}
			if tt.legal != nil {
				wantVerdicts(t, w.propose(tt.legal(w)), Accepted)
			}
		})
	}
}

// putBound puts a policy with bindings, from names and ids in turn.
func putBound(id KeyID, namesAndIDs ...string) *fsmpb.Change {
	c := putPolicy(id, "{}")
	for i := 0; i < len(namesAndIDs); i += 2 {
		p := c.GetPutKeyPolicy()
		p.Bindings = append(p.Bindings, &fsmpb.Binding{Name: namesAndIDs[i], Id: namesAndIDs[i+1]})
	}
	return c
}

// TestEveryRuleHasACase reads the rules from the source.
func TestEveryRuleHasACase(t *testing.T) {
	rules := map[string]bool{"it changes what it did not read": true} // TestWhatIsChangedIsRead
	for _, c := range slices.Concat(ruleCases, iamRuleCases) {
		rules[c.rule] = true
	}
	found := 0
	for _, file := range []string{"rules.go", "change.go", "apply.go", "kinds.go", "iamkinds.go", "iamrules.go", "form/form.go", "form/setting.go", "keymaterial/keymaterial.go", "keymaterial/state.go"} {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?:return|return none,|a\.refuse\(|a\.broken =|malformed:|missing:|absent:|alone:) *(?:fmt\.Sprintf\()?"([^"]+)"`).FindAllSubmatch(src, -1) {
			found++
			rule := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(string(m[1])), "%d", "[0-9]+") + "$")
			if !slices.ContainsFunc(slices.Collect(maps.Keys(rules)), rule.MatchString) {
				t.Errorf("%s: no case has the rule %q", file, m[1])
			}
		}
	}
	if found < len(rules) {
		t.Errorf("found %d places of %d rules", found, len(rules))
	}
}

// TestEveryChangeHasASubject: without one, a change is not checked against the read
// set.
func TestEveryChangeHasASubject(t *testing.T) {
	fields := (&fsmpb.Change{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		c := (&fsmpb.Change{}).ProtoReflect()
		c.Mutable(fields.Get(i))
		name := fields.Get(i).Name()
		if _, _, ok := Subject(c.Interface().(*fsmpb.Change)); ok == (name == "confirm_time" || name == "raise_level") {
			t.Errorf("%s has a subject: %v", name, ok)
		}
	}
}

// TestWhatIsChangedIsRead: an object of any kind can be replaced or deleted only by
// a record that read it.
func TestWhatIsChangedIsRead(t *testing.T) {
	changes := map[string]func(*world) *fsmpb.Record{
		"cluster": ofCluster(func(c *fsmpb.Cluster) { c.AnyRegion = true }), "key": ofKey(ownKey, state(disabled)),
		"policy": changing(putPolicy(ownKey, `{"Statement":[]}`)), "tags": changing(tagsOf(ownKey)), "alias": changing(putAlias(primaryKey, "alias/a")),
		"alias deleted": changing(deleteAlias("alias/a")), "credential": ofCred("AKIAONE", func(c *fsmpb.Credential) { c.Active = false }),
		"grant deleted": changing(deleteGrant(ownKey, 1)), "key store": changing(edited(putStore("cks-1"), (*fsmpb.Change).GetPutKeyStore, func(s *fsmpb.KeyStore) { s.Name = "x" })),
		"key deleted": func(w *world) *fsmpb.Record { w.pass(7); return record(deleteKey(doomedKey)) },
		"key store deleted": func(w *world) *fsmpb.Record {
			wantVerdicts(t, w.propose(record(putStore("cks-2"))), Accepted)
			return record(deleteStore("cks-2"))
		},
		"account": changing(putAccount(testAccount(otherAccount, func(a *fsmpb.Account) { a.Name = "x" }))),
		"user":    changing(putUser(testUser("Bob", 2))), "user deleted": changing(deleteUser("bOB")),
		"group": changing(putGroup(testGroup("devs", 1))), "group deleted": changing(deleteGroup("Empty")),
		"role": changing(putRole(app())), "role deleted": changing(deleteRole("APP")),
		"managed policy": changing(putManaged(readPolicy())), "managed policy deleted": changing(deletePolicy("Spare")),
		"provider": changing(putProvider(testProvider())), "provider deleted": changing(deleteProvider("issuer.test/a")),
		"certificate mapping deleted": changing(deleteMapping("spiffe://test/a")),
		"version deleted":             changing(deleteVersion("READ", 3), putManaged(with(readPolicy(), []func(*fsmpb.Policy){func(p *fsmpb.Policy) { p.Versions = []uint32{2} }}))),
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			r := change(w)
			before := w.objects()
			kind, id, _ := Subject(r.Changes[0])
			for what, read := range map[string]*fsmpb.Record{
				"nothing":          proto.CloneOf(r),
				"another object":   reads(proto.CloneOf(r), fsmpb.Kind_KIND_TOMBSTONE, goneKey.Bytes(), w.fsm.Current().VersionOf(fsmpb.Kind_KIND_TOMBSTONE, goneKey.Bytes())),
				"its own absence":  reads(proto.CloneOf(r), kind, id, 0),
				"an older version": reads(proto.CloneOf(r), kind, id, 1),
			} {
				want := Invalid
				if strings.Contains(what, "absence") || strings.Contains(what, "older") {
					want = Conflict
				}
				if got := w.apply(batchEntry(w.unread(read))).Batches[0].Verdicts[0]; got != want {
					t.Errorf("a record that read %s is %v, want %v", what, got, want)
				}
			}
			if !slices.EqualFunc(before, w.objects(), proto.Equal) {
				t.Error("the state changed")
			}
			wantVerdicts(t, w.propose(r), Accepted)
		})
	}
}

// TestDeletionTooFarAhead: a date from a clock that is ahead of the leader's is
// refused as early, so that the request is evaluated again. A cluster whose time is
// behind, as after a pause, still schedules deletions by the clocks of its nodes.
func TestDeletionTooFarAhead(t *testing.T) {
	w := newWorld(t)
	at := func(d int64) *fsmpb.Record {
		return record(w.key(ownKey, func(k *fsmpb.Key) { schedule(k, after(w, d)) }))
	}
	wantVerdicts(t, w.propose(at(30*day+waitingSlack+1)), Early)
	if n := len(w.events[len(w.events)-1].Refused); n != 0 {
		t.Errorf("%d refusals are reported", n)
	}
	w.wall += 100 * day
	if now := w.fsm.Current().Time(); now > after(w, -90*day) {
		t.Fatal("cluster time follows a step of 100 days")
	}
	wantVerdicts(t, w.propose(at(30*day+waitingSlack)), Accepted)
}
