package fsm

import (
	"bytes"
	"fmt"
	"iter"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

func grantID(n byte) []byte { return bytes.Repeat([]byte{n}, 32) }

func putGrant(id KeyID, n byte) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutGrant{PutGrant: &fsmpb.Grant{
		Account: uint64(id.Account), Key: id.ID[:], Region: id.Region, Id: grantID(n), Grantee: "arn:aws:iam::000000000000:user/a", Retiring: "arn:aws:iam::000000000000:user/b",
		Operations: []string{"Encrypt"}, Created: start, SourceArn: "arn:aws:dynamodb:eu-test-1:000000000000:table/t",
	}}}
}

func deleteGrant(id KeyID, n byte) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeleteGrant{DeleteGrant: &fsmpb.GrantID{Account: uint64(id.Account), Key: id.ID[:], Region: id.Region, Id: grantID(n)}}}
}

func putStore(id string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutKeyStore{PutKeyStore: &fsmpb.KeyStore{
		Account: uint64(account), Id: id, Region: region, Name: "store " + id, Type: "EXTERNAL_KEY_STORE", Created: start, State: fsmpb.ConnectionState_CONNECTION_STATE_CONNECTED,
	}}}
}

func deleteStoreOf(a Account, id string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeleteKeyStore{DeleteKeyStore: &fsmpb.KeyStoreID{Account: uint64(a), Id: id}}}
}

func deleteStore(id string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeleteKeyStore{DeleteKeyStore: &fsmpb.KeyStoreID{Account: uint64(account), Id: id}}}
}

// inStore is a key in a custom key store.
func inStore(id KeyID, store string) *fsmpb.Key {
	k := keyOf(id)
	k.Origin, k.KeyStore, k.XksKey = "EXTERNAL_KEY_STORE", store, "x"
	return k
}

func used(r *fsmpb.Record, read, operation uint32) *fsmpb.Record {
	r.Uses = append(r.Uses, &fsmpb.Use{Read: read, Operation: operation})
	return r
}

func pendingDeletion(k *fsmpb.Key, at int64) *fsmpb.Key {
	k = proto.CloneOf(k)
	k.State, k.DeletionTime = fsmpb.KeyState_KEY_STATE_PENDING_DELETION, at
	return k
}

// TestSnapshotHasEveryKind: one object of each kind, the newer ones with all
// fields set, is the same after a snapshot was restored.
func TestSnapshotHasEveryKind(t *testing.T) {
	m := newMachine(t)
	id, gone, replica := testKey(1), testKey(2), KeyID{Account: account, Region: "us-test-1", ID: testKey(3).ID}
	k := keyOf(id)
	k.Origin = "EXTERNAL"
	k.MultiRegion, k.PrimaryRegion, k.RotationsOnDemand, k.DisabledBeforeImport = true, region, 3, true
	k.State = fsmpb.KeyState_KEY_STATE_PENDING_IMPORT
	k.Rotation = &fsmpb.Rotation{Enabled: true, PeriodDays: 90, Next: start + day}
	k.UsedTokens = []*fsmpb.UsedToken{{Id: make([]byte, 16), Expires: start + 1}}
	k.Materials = []*fsmpb.Material{{Id: make([]byte, 16), MaterialId: make([]byte, 32), Generation: 1, Wrapped: []byte("w"), Created: 1,
		PublicKey: []byte("p"), Rotated: 2, OnDemand: true, Pending: true, ValidTo: 3, Description: "d"}}
	wantVerdicts(t, m.propose(record(theCluster(), credential("AKIA"), putKey(k), putPolicy(id, "{}"), putAlias(id, "alias/a"),
		&fsmpb.Change{Change: &fsmpb.Change_PutKeyTags{PutKeyTags: &fsmpb.KeyTags{Account: uint64(account), Key: id.ID[:], Region: region, Tags: []*fsmpb.Tag{{Key: "a", Value: "b"}}}}},
		putGrant(id, 1), putStore("cks-1"), putKey(inStore(replica, "cks-1")), putKey(keyOf(gone)))), Accepted)
	k.State, k.DeletionDays = fsmpb.KeyState_KEY_STATE_PENDING_REPLICA_DELETION, 7
	wantVerdicts(t, m.propose(record(putKey(pendingDeletion(keyOf(gone), start+7*day)), putKey(k))), Accepted)
	m.pass(7)
	_, v := m.fsm.Current().Key(id)
	_, w := m.fsm.Current().Key(replica)
	wantVerdicts(t, m.propose(
		record(deleteKey(gone)),
		used(reads(record(), fsmpb.Kind_KIND_KEY, id.Bytes(), v), 0, 3),
		used(reads(record(), fsmpb.Kind_KIND_KEY, replica.Bytes(), w), 0, 1),
	), Accepted, Accepted, Accepted)
	wantVerdicts(t, m.propose(record(completeIAM()...)), Accepted)
	m.finalize()
	wantVerdicts(t, m.propose(record(putSetting("a", "1"))), Accepted)
	s := m.fsm.Current()
	for kind := range fsmpb.Kind_name {
		if kind == 0 || fsmpb.Kind(kind) == fsmpb.Kind_KIND_KEY_USE { // uses are not in the table
			continue
		}
		n := 0
		for range scan[proto.Message](s, fsmpb.Kind(kind), nil, nil) {
			n++
		}
		if n == 0 {
			t.Errorf("the state holds no %v", fsmpb.Kind(kind))
		}
	}
	snap := m.snapshot()
	other := blank(t)
	if err := other.restore(snap); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(snap, other.snapshot()) {
		t.Error("the snapshot of the restored state differs")
	}
	r := other.fsm.Current()
	if !slices.Equal(dump(r), dump(s)) {
		t.Error("the rows or indexes of the restored state differ")
	}
	for _, c := range completeIAM() {
		kind, id, _ := Subject(c)
		m := lookup(r.db, kind, id).message()
		for i := range m.ProtoReflect().Descriptor().Fields().Len() {
			if fd := m.ProtoReflect().Descriptor().Fields().Get(i); !m.ProtoReflect().Has(fd) {
				t.Errorf("%v came back without %s, or was never stored with it", kind, fd.Name())
			}
		}
	}
	if c, _ := r.Cluster(); !slices.Equal(c.MoreRegions, []string{"eu-test-2", "us-test-1"}) {
		t.Errorf("the cluster came back with regions %v", c.MoreRegions)
	}
	for _, id := range []KeyID{id, replica} {
		if was, is := s.KeyUse(id), r.KeyUse(id); was == nil || !proto.Equal(was, is) {
			t.Errorf("use of %v: came back as %v, was %v", id, is, was)
		}
	}
	want, _ := s.Key(id)
	if got, _ := r.Key(id); !proto.Equal(got, want) {
		t.Errorf("key came back as %v, was %v", got, want)
	}
	grant, _ := s.Grant(id, grantID(1))
	if g := slices.Collect(r.GrantsTo(id, "arn:aws:iam::000000000000:user/a", nil)); len(g) != 1 || !proto.Equal(g[0], grant) || g[0].SourceArn == "" {
		t.Errorf("the grants to the grantee in the restored state are %v, want %v", g, grant)
	}
	if g := slices.Collect(r.GrantsRetiredBy(account, region, "arn:aws:iam::000000000000:user/b", nil)); len(g) != 1 {
		t.Errorf("%d grants of the retiring principal in the restored state, want 1", len(g))
	}
}

// TestWrongItemsOfASnapshotAreRefused tests the ids of the newer kinds.
func TestWrongItemsOfASnapshotAreRefused(t *testing.T) {
	id := testKey(1)
	for name, item := range map[string]*fsmpb.SnapshotItem{
		"grant id":         {Item: &fsmpb.SnapshotItem_Grant{Grant: &fsmpb.Grant{Account: uint64(account), Key: id.ID[:], Region: region, Id: grantID(1)[1:], Version: 1}}},
		"grant's key":      {Item: &fsmpb.SnapshotItem_Grant{Grant: &fsmpb.Grant{Account: uint64(account), Key: id.ID[1:], Region: region, Id: grantID(1), Version: 1}}},
		"version":          {Item: &fsmpb.SnapshotItem_KeyStore{KeyStore: &fsmpb.KeyStore{Account: uint64(account), Id: "cks-1"}}},
		"key's use":        {Item: &fsmpb.SnapshotItem_KeyUse{KeyUse: &fsmpb.KeyUse{Account: uint64(account), Key: id.ID[:], Region: "EU"}}},
		"user's name":      {Item: &fsmpb.SnapshotItem_User{User: testUser("a\x00", 1, func(u *fsmpb.User) { u.Version = 1 })}},
		"user's account":   {Item: &fsmpb.SnapshotItem_User{User: testUser("a", 1, func(u *fsmpb.User) { u.Version, u.Account = 1, uint64(accounts) })}},
		"version's policy": {Item: &fsmpb.SnapshotItem_PolicyVersion{PolicyVersion: &fsmpb.PolicyVersion{Account: uint64(account), Policy: "a\x00", Number: 1, Version: 1}}},
		"version 0":        {Item: &fsmpb.SnapshotItem_PolicyVersion{PolicyVersion: &fsmpb.PolicyVersion{Account: uint64(account), Policy: "a", Version: 1}}},
		"account's number": {Item: &fsmpb.SnapshotItem_Account{Account: testAccount(accounts, func(a *fsmpb.Account) { a.Version = 1 })}},
		"grant count":      {Item: &fsmpb.SnapshotItem_KeyGrants{KeyGrants: &fsmpb.KeyGrants{Account: uint64(account), Key: id.ID[:], Version: 1}}},
	} {
		n := newRestored()
		n.account = AccountID(account)
		if err := n.add(item); err == nil {
			t.Errorf("%s: the item was taken", name)
		}
	}
}

// TestHostileChanges has changes of a node with a bug, or that was taken over,
// which must not be accepted.
func TestHostileChanges(t *testing.T) {
	id := testKey(1)
	grant := func(spoil func(*fsmpb.Grant)) *fsmpb.Change {
		c := putGrant(id, 2)
		spoil(c.GetPutGrant())
		return c
	}
	store := func(spoil func(*fsmpb.KeyStore)) *fsmpb.Change {
		c := putStore("cks-1")
		spoil(c.GetPutKeyStore())
		return c
	}
	cluster := func(more ...string) *fsmpb.Change {
		c := theCluster()
		c.GetPutCluster().MoreRegions = more
		return c
	}
	other := func(spoil func(*fsmpb.Key)) *fsmpb.Change {
		k := keyOf(id)
		spoil(k)
		return putKey(k)
	}
	for _, tt := range []struct {
		name string
		c    *fsmpb.Change
		want Verdict
	}{
		{"grant twice", putGrant(id, 1), Invalid},
		{"grant with a short id", grant(func(g *fsmpb.Grant) { g.Id = g.Id[1:] }), Invalid},
		{"grant with a long id", grant(func(g *fsmpb.Grant) { g.Id = append(g.Id, 0) }), Invalid},
		{"grant on no key", grant(func(g *fsmpb.Grant) { g.Key = nil }), Invalid},
		{"grant in no region", grant(func(g *fsmpb.Grant) { g.Region = "" }), Invalid},
		{"grant to nobody", grant(func(g *fsmpb.Grant) { g.Grantee = "" }), Invalid},
		{"grant of nothing", grant(func(g *fsmpb.Grant) { g.Operations = nil }), Invalid},
		{"no such grant", deleteGrant(id, 9), Conflict},
		{"grant of another key", deleteGrant(testKey(2), 1), Conflict},
		{"grant of another region", deleteGrant(KeyID{Account: account, Region: "us-test-1", ID: id.ID}, 1), Conflict},
		{"grant of a wrong key", deleteGrant(KeyID{ID: id.ID}, 1), Invalid},
		{"store with keys", deleteStore("cks-1"), Conflict},
		{"no such store", deleteStore("cks-9"), Conflict},
		{"store of another type", store(func(s *fsmpb.KeyStore) { s.Type = "AWS_CLOUDHSM" }), Invalid},
		{"store of another region", store(func(s *fsmpb.KeyStore) { s.Region = "us-test-1" }), Invalid},
		{"store of another time", store(func(s *fsmpb.KeyStore) { s.Created++ }), Invalid},
		{"store without id", store(func(s *fsmpb.KeyStore) { s.Id = "" }), Invalid},
		{"store with a long id", store(func(s *fsmpb.KeyStore) { s.Id = string(make([]byte, 65)) }), Invalid},
		{"store without name", store(func(s *fsmpb.KeyStore) { s.Name = "" }), Invalid},
		{"store without state", store(func(s *fsmpb.KeyStore) { s.State = 0 }), Invalid},
		{"key moved out of its store", putKey(func() *fsmpb.Key { k := inStore(testKey(2), "cks-1"); k.KeyStore = ""; return k }()), Invalid},
		{"another external key", putKey(func() *fsmpb.Key { k := inStore(testKey(2), "cks-1"); k.XksKey = "y"; return k }()), Invalid},
		{"key made multi-Region", other(func(k *fsmpb.Key) { k.MultiRegion = true }), Invalid},
		{"key of another origin", other(func(k *fsmpb.Key) { k.Origin = "EXTERNAL" }), Invalid},
		{"region added", cluster("eu-test-2", "sa-test-1", "us-test-1"), Invalid},
		{"region removed", cluster("eu-test-2"), Invalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t)
			wantVerdicts(t, m.propose(record(theCluster(), putKey(keyOf(id)), putGrant(id, 1), putStore("cks-1"), putKey(inStore(testKey(2), "cks-1")))), Accepted)
			before := m.snapshot()
			wantVerdicts(t, m.propose(record(tt.c)), tt.want)
			other := blank(t)
			if err := other.restore(before); err != nil {
				t.Fatal(err)
			}
			for _, r := range snapshotRows {
				was := slices.Collect(scan[proto.Message](other.fsm.Current(), r.kind, nil, nil))
				is := slices.Collect(scan[proto.Message](m.fsm.Current(), r.kind, nil, nil))
				if !slices.EqualFunc(was, is, proto.Equal) {
					t.Errorf("%v changed", r.kind)
				}
			}
		})
	}
	for _, bad := range [][]string{{"us-test-1", "eu-test-2"}, {"eu-test-2", "eu-test-2"}, {region}, {""}, {"EU"}} {
		wantVerdicts(t, newMachine(t).propose(record(cluster(bad...))), Invalid)
	}
}

// TestDeletedKeyLeavesNothing: the grants of a key, its place in a custom key
// store, and its last use are deleted with it; those of its replica and of
// other keys stay.
func TestDeletedKeyLeavesNothing(t *testing.T) {
	m := newMachine(t)
	id, replica := testKey(1), KeyID{Account: account, Region: "us-test-1", ID: testKey(1).ID}
	k, r := inStore(id, "cks-1"), keyOf(replica)
	wantVerdicts(t, m.propose(record(putStore("cks-1"), putKey(k), putKey(r), putGrant(id, 1), putGrant(id, 2), putGrant(replica, 1))), Accepted)
	v := m.index
	wantVerdicts(t, m.propose(
		used(reads(record(), fsmpb.Kind_KIND_KEY, id.Bytes(), v), 0, 3),
		used(reads(record(), fsmpb.Kind_KIND_KEY, replica.Bytes(), v), 0, 3),
		record(putKey(pendingDeletion(k, start+7*day))),
	), Accepted, Accepted, Accepted)
	m.pass(7)
	if n, _ := m.fsm.Current().StoreKeys(account, "cks-1"); n.GetCount() != 1 {
		t.Errorf("the store has %d keys, want 1", n.GetCount())
	}
	if n, _ := m.fsm.Current().KeyGrants(id); n.GetCount() != 2 {
		t.Errorf("the key has %d grants, want 2", n.GetCount())
	}
	wantVerdicts(t, m.propose(record(deleteKey(id)), record(deleteStore("cks-1"))), Accepted, Accepted)
	s := m.fsm.Current()
	for _, n := range []byte{1, 2} {
		if g, _ := s.Grant(id, grantID(n)); g != nil {
			t.Errorf("grant %d is still there", n)
		}
	}
	if g := slices.Collect(s.GrantsTo(id, "arn:aws:iam::000000000000:user/a", nil)); len(g) != 0 {
		t.Errorf("%d grants are still found by their grantee", len(g))
	}
	if n, v := s.KeyGrants(id); n != nil || v != 0 {
		t.Errorf("the count of grants is still there: %v", n)
	}
	if s.KeyUse(id) != nil {
		t.Error("its last use is still there")
	}
	if s.KeyUse(replica) == nil {
		t.Error("its replica's last use is gone")
	}
	if g, _ := s.Grant(replica, grantID(1)); g == nil {
		t.Error("its replica's grant is gone")
	}
	if n, _ := s.KeyStores(account); n.GetCount() != 0 {
		t.Errorf("there are %d stores, want 0", n.GetCount())
	}
}

// TestGrantLookups: each lookup returns only its own grants, in order and from
// the right place, among grants with similar names and ids.
func TestGrantLookups(t *testing.T) {
	m := newMachine(t)
	const who = "arn:aws:iam::000000000000:user/a"
	first, second, elsewhere := testKey(1), testKey(2), KeyID{Account: account, Region: "us-test-1", ID: testKey(1).ID}
	grant := func(id KeyID, n byte, grantee, retiring string) *fsmpb.Change {
		c := putGrant(id, n)
		c.GetPutGrant().Grantee, c.GetPutGrant().Retiring = grantee, retiring
		return c
	}
	wantVerdicts(t, m.propose(record(putKey(keyOf(first)), putKey(keyOf(second)), putKey(keyOf(elsewhere)),
		grant(first, 5, who, who), grant(first, 1, who, ""), grant(first, 255, who, who), grant(first, 2, who+"b", who+"b"),
		grant(first, 3, who[:len(who)-1], who[:len(who)-1]), grant(second, 0, who, who), grant(second, 1, "other", who), grant(elsewhere, 1, who, who))), Accepted)
	s := m.fsm.Current()
	names := func(all iter.Seq[*fsmpb.Grant]) (names []string) {
		for g := range all {
			names = append(names, fmt.Sprintf("%d.%d", g.Key[0], g.Id[0]))
		}
		return names
	}
	for _, tt := range []struct {
		name string
		got  iter.Seq[*fsmpb.Grant]
		want []string
	}{
		{"to", s.GrantsTo(first, who, nil), []string{"1.1", "1.5", "1.255"}},
		{"to, after the first", s.GrantsTo(first, who, grantID(1)), []string{"1.5", "1.255"}},
		{"to, after one that is gone", s.GrantsTo(first, who, grantID(4)), []string{"1.5", "1.255"}},
		{"to, after the last", s.GrantsTo(first, who, grantID(255)), nil},
		{"to nobody", s.GrantsTo(first, "arn:", nil), nil},
		{"to, elsewhere", s.GrantsTo(elsewhere, who, nil), []string{"1.1"}},
		{"retired by", s.GrantsRetiredBy(account, region, who, nil), []string{"1.5", "1.255", "2.0", "2.1"}},
		{"retired by, after the first", s.GrantsRetiredBy(account, region, who, GrantID(first, grantID(5))), []string{"1.255", "2.0", "2.1"}},
		{"retired by, after the first key's", s.GrantsRetiredBy(account, region, who, GrantID(first, grantID(255))), []string{"2.0", "2.1"}},
		{"retired by, after the last", s.GrantsRetiredBy(account, region, who, GrantID(second, grantID(1))), nil},
		{"retired by nobody", s.GrantsRetiredBy(account, region, "", nil), nil},
	} {
		if got := names(tt.got); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
	for range s.GrantsTo(first, who, nil) {
		break // iteration may stop anywhere
	}
}

// TestUses: the newest use of each key is kept, of accepted records only.
func TestUses(t *testing.T) {
	m := newMachine(t)
	id, other := testKey(1), testKey(2)
	kind := fsmpb.Kind_KIND_KEY
	wantVerdicts(t, m.propose(record(putKey(keyOf(id)), putKey(keyOf(other)))), Accepted)
	v := m.index
	m.wall += second
	use := func(id KeyID, v Version, operation uint32) *fsmpb.Record {
		return used(reads(record(), kind, id.Bytes(), v), 0, operation)
	}
	both := used(used(reads(reads(record(), kind, id.Bytes(), v), kind, other.Bytes(), v), 0, 9), 1, 9)
	wantVerdicts(t, m.propose(use(id, v, 3), both), Accepted, Accepted)
	entry := m.audit.entries[len(m.audit.entries)-1]
	event := auditlog.EventID(entry.LeafHash())
	for _, id := range []KeyID{id, other} {
		want := &fsmpb.KeyUse{Account: uint64(account), Key: id.ID[:], Region: region, Operation: 9, Time: m.wall, RequestId: both.RequestId, EventId: event[:]}
		if got := m.fsm.Current().KeyUse(id); !proto.Equal(got, want) {
			t.Errorf("use of %v is %v, want %v", id, got, want)
		}
	}
	// None of these is a use.
	late := use(id, v, 5)
	late.NotAfter = 1
	wantVerdicts(t, m.propose(
		use(id, v-1, 5), late, use(testKey(7), 0, 5),
		used(record(), 0, 5), used(reads(record(), kind, id.Bytes(), v), 1, 5),
		used(reads(record(), fsmpb.Kind_KIND_KEY_POLICY, id.Bytes(), 0), 0, 5), used(reads(record(), kind, CredentialID(account, "x"), 0), 0, 5),
		used(used(used(used(used(reads(record(), kind, id.Bytes(), v), 0, 5), 0, 5), 0, 5), 0, 5), 0, 5),
	), Conflict, Late, Accepted, Accepted, Accepted, Accepted, Accepted, Invalid)
	if got := m.fsm.Current().KeyUse(id).GetOperation(); got != 9 {
		t.Errorf("operation %d counts as a use", got)
	}
	if got := m.fsm.Current().KeyUse(testKey(7)); got != nil {
		t.Errorf("a key that is not there was used: %v", got)
	}
}

// A record that read the newest use of a key is accepted only if the key was not used since,
// also by a record before it in the same batch.
func TestUseInReadSet(t *testing.T) {
	m := newMachine(t)
	id, other := testKey(1), testKey(2)
	wantVerdicts(t, m.propose(record(putKey(keyOf(id)), putKey(keyOf(other)))), Accepted)
	v := m.index
	last := func(id KeyID, at Version) *fsmpb.Record {
		return reads(record(), fsmpb.Kind_KIND_KEY_USE, id.Bytes(), at)
	}
	use := func() *fsmpb.Record { return used(reads(record(), fsmpb.Kind_KIND_KEY, id.Bytes(), v), 0, 3) }
	wantVerdicts(t, m.propose(last(id, 0), use(), last(id, 0), last(other, 0), last(testKey(7), 0)), Accepted, Accepted, Conflict, Accepted, Accepted)
	first := Version(LastUse(m.fsm.Current(), id))
	if int64(first) != m.fsm.Current().Time() {
		t.Fatalf("the key was last used at %d, want %d", first, m.fsm.Current().Time())
	}
	if got := m.fsm.Current().VersionOf(fsmpb.Kind_KIND_KEY_USE, id.Bytes()); got != first {
		t.Errorf("the version of the use is %d, want %d", got, first)
	}
	m.wall += second
	wantVerdicts(t, m.propose(last(id, first), use(), last(id, first)), Accepted, Accepted, Conflict)
	m.wall += second
	both := func(at Version) *fsmpb.Record {
		r := reads(record(), fsmpb.Kind_KIND_KEY, id.Bytes(), v)
		return used(reads(r, fsmpb.Kind_KIND_KEY_USE, id.Bytes(), at), 0, 3)
	}
	now := Version(LastUse(m.fsm.Current(), id))
	wantVerdicts(t, m.propose(both(now), both(now)), Accepted, Conflict) // both have the same read set
	second := Version(LastUse(m.fsm.Current(), id))
	wantVerdicts(t, m.propose(last(id, second), last(id, second-1), last(id, 0), last(testKey(7), second),
		reads(record(), fsmpb.Kind_KIND_KEY_USE, []byte("x"), second), reads(record(), fsmpb.Kind_KIND_KEY_USE, nil, 0)),
		Accepted, Conflict, Conflict, Conflict, Conflict, Accepted)
	// A node that begins with a snapshot decides the same.
	if err := m.restore(m.snapshot()); err != nil {
		t.Fatal(err)
	}
	wantVerdicts(t, m.propose(last(id, second), last(id, first)), Accepted, Conflict)
}

// TestReplicaAfterItsDeletion: the id of a deleted key is used again only for a
// replica of the same multi-Region key.
func TestReplicaAfterItsDeletion(t *testing.T) {
	home, away := testKey(1), KeyID{Account: account, Region: "us-test-1", ID: testKey(1).ID}
	of := func(id KeyID, spoil func(*fsmpb.Key)) *fsmpb.Key {
		k := keyOf(id)
		k.MultiRegion, k.PrimaryRegion = true, home.Region
		if spoil != nil {
			spoil(k)
		}
		return k
	}
	begin := func(t *testing.T) *machine {
		m := newMachine(t)
		wantVerdicts(t, m.propose(
			record(putKey(of(home, nil)), putKey(keyOf(KeyID{Account: account, Region: away.Region, ID: testKey(2).ID}))), record(putKey(of(away, nil))),
			record(putKey(pendingDeletion(of(away, nil), start+7*day))),
		), Accepted, Accepted, Accepted)
		m.pass(7)
		wantVerdicts(t, m.propose(record(deleteKey(away))), Accepted)
		return m
	}
	for name, k := range map[string]*fsmpb.Key{
		"single-Region":        keyOf(away),
		"primary":              of(away, func(k *fsmpb.Key) { k.PrimaryRegion = away.Region }),
		"of no primary":        of(away, func(k *fsmpb.Key) { k.PrimaryRegion = "" }),
		"of an absent one":     of(away, func(k *fsmpb.Key) { k.PrimaryRegion = "eu-test-2" }),
		"of another spec":      of(away, func(k *fsmpb.Key) { k.Spec = "HMAC_256" }),
		"of another usage":     of(away, func(k *fsmpb.Key) { k.Usage = "SIGN_VERIFY" }),
		"of another origin":    of(away, func(k *fsmpb.Key) { k.Origin = "EXTERNAL" }),
		"primary's own Region": of(home, func(k *fsmpb.Key) { k.MultiRegion = false }),
	} {
		t.Run(name, func(t *testing.T) { wantVerdicts(t, begin(t).propose(record(putKey(k))), Invalid) })
	}
	m := begin(t)
	gone := m.index
	wantVerdicts(t, m.propose(
		reads(record(putKey(of(away, nil))), fsmpb.Kind_KIND_KEY, away.Bytes(), 0),
		reads(record(), fsmpb.Kind_KIND_TOMBSTONE, away.Bytes(), gone),
	), Accepted, Conflict)
	s := m.fsm.Current()
	if k, _ := s.Key(away); k == nil {
		t.Error("the replica is not there")
	}
	if ts, v := s.Tombstone(away); ts != nil || v != 0 {
		t.Error("its tombstone is still there")
	}
	wantVerdicts(t, m.propose(record(theCluster())), Accepted)
	snap := m.snapshot()
	other := blank(t)
	if err := other.restore(snap); err != nil || !bytes.Equal(other.snapshot(), snap) {
		t.Errorf("the snapshot does not come back the same: %v", err)
	}
	// It is refused if the primary was deleted, or is a replica by now.
	m = begin(t)
	moved := of(home, func(k *fsmpb.Key) { k.PrimaryRegion = "eu-test-2" })
	wantVerdicts(t, m.propose(record(putKey(moved)), record(putKey(of(away, nil)))), Accepted, Invalid)
	m = begin(t)
	wantVerdicts(t, m.propose(record(putKey(pendingDeletion(of(home, nil), m.wall+7*day)))), Accepted)
	m.pass(7)
	wantVerdicts(t, m.propose(record(deleteKey(home)), record(putKey(of(away, nil)))), Accepted, Invalid)
}

// TestDeleteCredential: a deleted credential is not in the state, and can be
// deleted only once.
func TestDeleteCredential(t *testing.T) {
	m := newMachine(t)
	wantVerdicts(t, m.propose(record(theCluster(), credential("AKIA"), credential("AKIB"))), Accepted)
	v := m.index
	remove := func() *fsmpb.Record {
		return reads(record(&fsmpb.Change{Change: &fsmpb.Change_DeleteCredential{DeleteCredential: &fsmpb.CredentialID{Account: uint64(account), Id: "AKIA"}}}),
			fsmpb.Kind_KIND_CREDENTIAL, CredentialID(account, "AKIA"), v)
	}
	wantVerdicts(t, m.propose(remove(), remove()), Accepted, Conflict)
	var left []string
	for c := range Objects[*fsmpb.Credential](m.fsm.Current(), AccountID(account), "") {
		left = append(left, c.Id)
	}
	if !slices.Equal(left, []string{"AKIB"}) {
		t.Errorf("left are %q", left)
	}
	other := blank(t)
	if err := other.restore(m.snapshot()); err != nil {
		t.Fatal(err)
	}
	if c, _ := other.fsm.Current().Credential(account, "AKIA"); c != nil {
		t.Errorf("a snapshot brought %v back", c)
	}
}

// TestCredentialUses: the newest use of each credential is kept, of accepted records only,
// until the credential is deleted, and is in snapshots.
func TestCredentialUses(t *testing.T) {
	m := newMachine(t)
	wantVerdicts(t, m.propose(record(theCluster(), credential("AKIA1"), credential("AKIA2"))), Accepted)
	v := m.index
	read := func(id string, v Version) *fsmpb.Record {
		return reads(record(), fsmpb.Kind_KIND_CREDENTIAL, CredentialID(account, id), v)
	}
	m.wall += second
	late := used(read("AKIA1", v), 0, 5)
	late.NotAfter = 1
	wantVerdicts(t, m.propose(used(read("AKIA1", v), 0, 3), used(read("AKIA1", v), 0, 2), late, used(read("AKIA1", v-1), 0, 5), used(read("AKIA3", 0), 0, 5)),
		Accepted, Accepted, Late, Conflict, Accepted)
	want := &fsmpb.CredentialUse{Account: uint64(account), Id: "AKIA1", Operation: 2, Time: m.wall}
	check := func(s *State, when string) {
		t.Helper()
		if got := CredentialUse(s, account, "AKIA1"); !proto.Equal(got, want) {
			t.Errorf("%s: the use is %v, want %v", when, got, want)
		}
		for _, id := range []string{"AKIA2", "AKIA3"} {
			if got := CredentialUse(s, account, id); got != nil {
				t.Errorf("%s: %s has use %v", when, id, got)
			}
		}
	}
	check(m.fsm.Current(), "at first")
	snap := m.snapshot()
	other := blank(t)
	if err := other.restore(snap); err != nil {
		t.Fatal(err)
	}
	check(other.fsm.Current(), "after a snapshot was restored")
	if !bytes.Equal(snap, other.snapshot()) {
		t.Error("the snapshot of the restored state differs")
	}
	// The record that deletes a credential may be the last that was made with it.
	gone := used(read("AKIA1", v), 0, 2)
	gone.Changes = append(gone.Changes, deleteCredential("AKIA1"))
	wantVerdicts(t, m.propose(gone), Accepted)
	if got := CredentialUse(m.fsm.Current(), account, "AKIA1"); got != nil {
		t.Errorf("a deleted credential has use %v", got)
	}
	if err := newRestored().add(&fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_CredentialUse{CredentialUse: &fsmpb.CredentialUse{Account: 1 << 50, Id: "AKIA1"}}}); err == nil {
		t.Error("a use in an account that cannot exist is restored")
	}
}
