package fsm

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/intern"
	"github.com/conclavekms/conclave/fsm/snapfile"
)

// fieldsOf calls f for each field of the oneof of M, with a message in which that field
// is set.
func fieldsOf[M proto.Message](m M, f func(name string, m M)) {
	fields := m.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		one := m.ProtoReflect().New()
		one.Mutable(fields.Get(i))
		f(string(fields.Get(i).Name()), one.Interface().(M))
	}
}

// TestEveryKindHasARow: every kind of object in the schema has a row.
func TestEveryKindHasARow(t *testing.T) {
	rows := 0
	for n, name := range fsmpb.Kind_name {
		r := rowOf(fsmpb.Kind(n))
		if n == 0 || fsmpb.Kind(n) == fsmpb.Kind_KIND_KEY_USE { // uses are not in the table
			if r != nil {
				t.Errorf("%s has a row", name)
			}
			continue
		}
		rows++
		switch {
		case r == nil:
			t.Errorf("%s has no row", name)
			continue
		case r.kind != fsmpb.Kind(n):
			t.Errorf("%s has the row of %v", name, r.kind)
		case r.number == 0:
			t.Errorf("%s has no place in snapshots", name)
		}
		if fsmpb.Kind(byte(n)) != fsmpb.Kind(n) {
			t.Errorf("%s does not fit into the id of a row", name)
		}
		if r.setKind != 0 && registry[r.setKind].count == nil {
			t.Errorf("%s is counted by %v, which is no count", name, r.setKind)
		}
		for _, tally := range r.tallies {
			if registry[tally.in].count == nil {
				t.Errorf("%s is counted by %v, which is no count", name, tally.in)
			}
		}
		if r.owner != 0 && r.put != nil && registry[r.owner].absent == "" {
			t.Errorf("%s belongs to %v, which has no rule for its absence", name, r.owner)
		}
	}
	if n := len(kinds()) + len(iamKinds()); len(snapshotRows) != rows || n != rows {
		t.Errorf("%d rows and %d in snapshots, of %d kinds", n, len(snapshotRows), rows)
	}
	for i, r := range snapshotRows[1:] {
		if was := snapshotRows[i]; r.number <= was.number {
			t.Errorf("%v has the field of %v in snapshots", r.kind, was.kind)
		}
	}
	for _, n := range []fsmpb.Kind{-1, 99, 256, 1 << 30, -1 << 31} {
		if rowOf(n) != nil {
			t.Errorf("kind %d has a row", n)
		}
	}

	others := []string{"header", "session", "end", "key_use", "credential_use", "attestation", "state_checks", "observation"}
	fieldsOf(&fsmpb.SnapshotItem{}, func(name string, item *fsmpb.SnapshotItem) {
		r, m := rowOfItem(item)
		if (r == nil) != slices.Contains(others, name) {
			t.Errorf("item %s has a row: %v", name, r != nil)
		}
		if r == nil {
			return
		}
		fd := m.ProtoReflect().Descriptor().Fields().ByNumber(15)
		if *r.version(m) = 42; fd == nil || fd.Name() != "version" || m.ProtoReflect().Get(fd).Uint() != 42 {
			t.Errorf("%v: the version is not stamped", r.kind)
		}
	})
	fieldsOf(&fsmpb.Change{}, func(name string, c *fsmpb.Change) {
		does := changeOf(c)
		if does == nil {
			t.Errorf("nothing does %s", name)
			return
		}
		n := 0
		for _, other := range changes {
			if other.set(c) {
				n++
			}
		}
		if n != 1 || does.deletes != strings.HasPrefix(name, "delete_") || (does.row == nil) != (name == "confirm_time" || name == "raise_level") {
			t.Errorf("%s: %d changes, the first deletes: %v, and is of an object: %v", name, n, does.deletes, does.row != nil)
		}
	})
}

// withMessage returns the Change or SnapshotItem with m in its field for such
// messages.
func withMessage[M proto.Message](to M, m proto.Message) (M, bool) {
	fields := to.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		if fields.Get(i).Message().FullName() == m.ProtoReflect().Descriptor().FullName() {
			to.ProtoReflect().Set(fields.Get(i), protoreflect.ValueOfMessage(m.ProtoReflect()))
			return to, true
		}
	}
	return to, false
}

// deleteOf returns the change by which a row deletes m. It names m by fields of the
// same names, except that a key is named by key instead of id, and an identity provider
// by name instead of url.
func deleteOf(r *row, m proto.Message) (of *fsmpb.Change) {
	fieldsOf(&fsmpb.Change{}, func(_ string, c *fsmpb.Change) {
		if changeOf(c) != r.delete {
			return
		}
		of = c
		c.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			to, from := v.Message(), m.ProtoReflect()
			for i := range to.Descriptor().Fields().Len() {
				fd := to.Descriptor().Fields().Get(i)
				same := from.Descriptor().Fields().ByName(fd.Name())
				if same == nil && r.kind == fsmpb.Kind_KIND_OIDC_PROVIDER {
					same = from.Descriptor().Fields().ByName("url")
				} else if same == nil {
					same = from.Descriptor().Fields().ByName("id")
				}
				to.Set(fd, from.Get(same))
			}
			return true
		})
	})
	return of
}

// TestRowsAgreeWithTheirObjects checks every part of a row against a state with
// objects of all kinds.
func TestRowsAgreeWithTheirObjects(t *testing.T) {
	w := newWorld(t)
	// A set with more than one member, and one that lost all its members.
	wantVerdicts(t, w.propose(record(putAlias(ownKey, "alias/b"), putAlias(doomedKey, "alias/c"), putGrant(ownKey, 2), putStore("cks-2"),
		putKey(inStore(noKey, "cks-1")))), Accepted)
	wantVerdicts(t, w.propose(record(putAlias(ownKey, "alias/c"), deleteGrant(ownKey, 1))), Accepted)
	w.finalize()
	wantVerdicts(t, w.propose(record(putSetting("a", "1"), putSetting("b", ""))), Accepted)
	s := w.fsm.Current()
	type set struct {
		kind fsmpb.Kind
		id   string
	}
	objects, members, owned := make(map[fsmpb.Kind]int), make(map[set]uint32), make(map[fsmpb.Kind]int)
	var counts []*object
	s.db.rows.Ascend(func(o *object) bool {
		r, m := registry[o.id[0]], o.message()
		objects[r.kind]++
		if id, valid := r.id(m); !valid || !bytes.Equal(id, o.name()) || !r.named(m) {
			t.Errorf("%v %x has the id %x, valid: %v", r.kind, o.name(), id, valid)
		}
		if v := *r.version(m); v == 0 || v != o.version {
			t.Errorf("%v %x has version %d, its row %d", r.kind, o.name(), v, o.version)
		}
		item, _ := withMessage(&fsmpb.SnapshotItem{}, m)
		if got, of := rowOfItem(item); got != r || of != m || !snapfile.Attested(item) {
			t.Errorf("%v: another row's item", r.kind)
		}
		if again := newObject(intern.NewTexts(), s.db, r.kind, o.name(), o.version, proto.Clone(m)); !proto.Equal(again.message(), m) {
			t.Errorf("%v: as a row, %v becomes %v", r.kind, m, again.message())
		}
		if _, isCount := o.value.(uint32); isCount != (r.count != nil) {
			t.Errorf("%v is a count: %v", r.kind, isCount)
		}
		if r.count != nil {
			counts = append(counts, o)
		}
		if r.put != nil {
			c, _ := withMessage(&fsmpb.Change{}, m)
			if kind, id, ok := Subject(c); !ok || kind != r.kind || !bytes.Equal(id, o.name()) || changeOf(c) != r.put {
				t.Errorf("%v: putting %x is about %v %x", r.kind, o.name(), kind, id)
			}
		}
		if r.delete != nil {
			if kind, id, ok := Subject(deleteOf(r, m)); !ok || kind != r.kind || !bytes.Equal(id, o.name()) {
				t.Errorf("%v: deleting %x is about %v %x", r.kind, o.name(), kind, id)
			}
		}
		for _, x := range r.indexes {
			if x.has(m) != slices.Contains(allOf(x.of(s.db)), m) {
				t.Errorf("%v %x is in index %T: %v", r.kind, o.name(), x, !x.has(m))
			}
		}
		for _, t := range r.tallies {
			for _, id := range t.sets(m) {
				members[set{t.in, id}]++
			}
		}
		if r.set != nil {
			if id, in := r.set(m); in {
				members[set{r.setKind, string(id)}]++
			}
		}
		for _, other := range r.owns {
			if other.all != nil {
				for _, o := range other.all(s.db, o.name()) {
					if o.kind() != other.kind {
						t.Errorf("%v of %v is a %v", other.kind, r.kind, o.kind())
					}
					owned[other.kind]++
				}
			} else if lookup(s.db, other.kind, o.name()) != nil {
				owned[other.kind]++
			}
		}
		return true
	})
	for _, r := range snapshotRows {
		if objects[r.kind] == 0 {
			t.Errorf("the state has no %v", r.kind)
		}
		if r.owner != 0 && owned[r.kind] != objects[r.kind] {
			t.Errorf("%d of %d %v belong to a %v", owned[r.kind], objects[r.kind], r.kind, r.owner)
		}
	}
	for _, o := range counts {
		of := set{o.kind(), string(o.name())}
		if n := o.value.(uint32); n != members[of] {
			t.Errorf("%v %q counts %d, there are %d", of.kind, of.id, n, members[of])
		}
		delete(members, of)
	}
	for of, n := range members {
		t.Errorf("nothing counts the %d of %v %q", n, of.kind, of.id)
	}
	indexed := 0
	for _, r := range snapshotRows {
		indexed += len(r.indexes)
	}
	if indexed != len(indexes) {
		t.Errorf("%d indexes are of rows, of %d", indexed, len(indexes))
	}
}

// TestRowsHaveRules: for every kind, storing an empty message and deleting an absent
// object are refused.
func TestRowsHaveRules(t *testing.T) {
	for _, r := range snapshotRows {
		if r.put == nil && r.delete == nil {
			continue
		}
		t.Run(r.kind.String(), func(t *testing.T) {
			w := newWorld(t)
			before := w.objects()
			fieldsOf(&fsmpb.Change{}, func(name string, c *fsmpb.Change) {
				does := changeOf(c)
				if does.row != r {
					return
				}
				v := w.propose(record(c))[0]
				if v != Invalid && !(does.deletes && v == Conflict) {
					t.Errorf("%s of nothing is %v", name, v)
				}
				if refused := w.events[len(w.events)-1].Refused; v == Invalid && (len(refused) != 1 || refused[0].Rule == "") {
					t.Errorf("%s of nothing breaks no rule: %v", name, refused)
				}
			})
			if !slices.EqualFunc(before, w.objects(), proto.Equal) {
				t.Error("the state changed")
			}
		})
	}
}

// TestNamesHaveLimits: names of each kind can be as long as the limit and no
// longer.
func TestNamesHaveLimits(t *testing.T) {
	w := newWorld(t)
	w.finalize()
	verdict := func(put func(name string) *fsmpb.Change) func(string) bool {
		return func(name string) bool { return w.propose(record(put(name)))[0] == Accepted }
	}
	ids := 1000
	unique := func() int { ids++; return ids }
	managed := func(name string) bool {
		return w.propose(record(managedPolicy(testPolicy(name, unique()))...))[0] == Accepted
	}
	for kind, tt := range map[fsmpb.Kind]struct {
		prefix string
		max    int
		put    func(name string) bool
	}{
		fsmpb.Kind_KIND_ALIAS:          {"alias/", 256, verdict(func(name string) *fsmpb.Change { return putAlias(ownKey, name) })},
		fsmpb.Kind_KIND_CREDENTIAL:     {"", 1024, verdict(credential)},
		fsmpb.Kind_KIND_KEY_STORE:      {"", 64, verdict(putStore)},
		fsmpb.Kind_KIND_USER:           {"", 128, verdict(func(name string) *fsmpb.Change { return putUser(testUser(name, unique())) })},
		fsmpb.Kind_KIND_GROUP:          {"", 128, verdict(func(name string) *fsmpb.Change { return putGroup(testGroup(name, unique())) })},
		fsmpb.Kind_KIND_ROLE:           {"", 128, verdict(func(name string) *fsmpb.Change { return putRole(testRole(name, unique())) })},
		fsmpb.Kind_KIND_POLICY:         {"", 128, managed},
		fsmpb.Kind_KIND_POLICY_VERSION: {"y", 128, managed},
		fsmpb.Kind_KIND_OIDC_PROVIDER: {"", 255, verdict(func(name string) *fsmpb.Change {
			return putProvider(&fsmpb.OidcProvider{Account: uint64(account), Url: name})
		})},
		fsmpb.Kind_KIND_CERTIFICATE_MAPPING: {"spiffe://", 512, verdict(func(name string) *fsmpb.Change {
			if len(name) > 200 { // no part before the path is that long
				name = "spiffe://x/" + name[len("spiffe://x/"):]
			} else if name != "" {
				name = "spiffe://x/x"
			}
			return putMapping(name)
		})},
		fsmpb.Kind_KIND_SETTING: {"", 128, verdict(func(name string) *fsmpb.Change { return putSetting(name, "") })},
		fsmpb.Kind_KIND_NODE: {"", 255, func(name string) bool {
			return w.apply(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: name, Incarnation: 1}}}).Registered
		}},
	} {
		for n, want := range map[int]bool{0: false, tt.max: true, tt.max + 1: false} {
			name := strings.Repeat("x", max(0, n-len(tt.prefix)))
			if n > 0 {
				name = tt.prefix + name
			}
			if tt.put(name) != want {
				t.Errorf("%v: a name of %d bytes is stored: %v", kind, n, !want)
			}
		}
	}
	named := 0
	fieldsOf(&fsmpb.SnapshotItem{}, func(_ string, item *fsmpb.SnapshotItem) {
		if r, m := rowOfItem(item); r != nil && !r.named(m) {
			named++
		}
	})
	if named != 12 {
		t.Errorf("%d kinds have names, 12 are tested", named)
	}
}

// TestStateHashIsFixed: the order in which a record's changes are made, and their
// consequences, are part of the state hash, which must be the same on nodes of
// different releases.
func TestStateHashIsFixed(t *testing.T) {
	defer func(was uint64) { requests = was }(requests)
	requests = 1 << 43
	w := &world{newMachine(t)}
	multi := keyOf(primaryKey)
	multi.MultiRegion, multi.PrimaryRegion, multi.Materials = true, region, []*fsmpb.Material{material(1)}
	wantVerdicts(t, w.propose(
		record(putKey(keyOf(ownKey)), putPolicy(ownKey, "{}"), tagsOf(ownKey), putAlias(ownKey, "alias/a"), putGrant(ownKey, 1), credential("AKIAONE")),
		record(putKey(multi), putKey(keyOf(doomedKey)), putStore("cks-1"), putStore("cks-2"), putKey(inStore(storeKey, "cks-2"))),
	), Accepted, Accepted)
	wantVerdicts(t, w.propose(
		record(w.key(primaryKey, in("us-test-1"))), record(putAlias(primaryKey, "alias/a")), record(putStore("cks-1")),
		record(putPolicy(doomedKey, "{}"), tagsOf(doomedKey), putAlias(doomedKey, "alias/b"), putAlias(doomedKey, "alias/c"), putGrant(doomedKey, 1), putGrant(doomedKey, 2)),
		record(deleteAlias("alias/a")), record(deleteGrant(ownKey, 1)), record(w.key(ownKey, state(disabled))),
	), Accepted, Accepted, Accepted, Accepted, Accepted, Accepted, Accepted)
	at := after(w, week)
	due := func(k *fsmpb.Key) { schedule(k, at) }
	wantVerdicts(t, w.propose(record(w.key(doomedKey, due)), record(w.key(storeKey, due)), record(w.key(replicaKey, due))), Accepted, Accepted, Accepted)
	w.pass(7)
	wantVerdicts(t, w.propose(record(deleteKey(doomedKey)), record(deleteKey(storeKey)), record(deleteKey(replicaKey))), Accepted, Accepted, Accepted)
	wantVerdicts(t, w.propose(record(deleteStore("cks-2")), record(w.key(primaryKey, in("us-test-1"))),
		record(&fsmpb.Change{Change: &fsmpb.Change_DeleteCredential{DeleteCredential: &fsmpb.CredentialID{Account: uint64(account), Id: "AKIAONE"}}}),
		record(&fsmpb.Change{Change: &fsmpb.Change_ConfirmTime{ConfirmTime: &fsmpb.ConfirmTime{Until: at}}}),
	), Accepted, Accepted, Accepted, Accepted)
	const want = "ac37364deaff06ed8a938c8b6652156c411e51acbc3834082cee5645ce5e0ad9"
	if got := fmt.Sprintf("%x", w.fsm.Current().Hash()); got != want {
		t.Errorf("the state hash is %s, was %s", got, want)
	}
	const wantDigest = "d48eb153d09f10393efcf6672171c7cb4b55d9cff3a08ef3972375ccbd0d611b"
	if got := fmt.Sprintf("%x", w.fsm.Current().Digest()); got != wantDigest {
		t.Errorf("the digest of the rows is %s, was %s", got, wantDigest)
	}
}

// TestWhatIsOwnedGoes deletes the owner of everything that belongs to something.
func TestWhatIsOwnedGoes(t *testing.T) {
	w := newWorld(t)
	wantVerdicts(t, w.propose(record(putPolicy(doomedKey, "{}"), tagsOf(doomedKey), putAlias(doomedKey, "alias/b"), putGrant(doomedKey, 1)),
		record(putStore("cks-2")), record(putKey(inStore(noKey, "cks-2"))), record(managedPolicy(testPolicy("unused", 900))...),
		record(putUser(testUser("fleeting", 900, func(u *fsmpb.User) { u.Policies = []string{policyARN("unused")} }))), record(deleteUser("fleeting")),
	), Accepted, Accepted, Accepted, Accepted, Accepted, Accepted)
	at := w.wall + 7*day
	wantVerdicts(t, w.propose(record(w.key(noKey, func(k *fsmpb.Key) { schedule(k, at) }))), Accepted)
	w.pass(7)
	wantVerdicts(t, w.propose(record(deleteKey(noKey))), Accepted)
	for owner, c := range map[string]*fsmpb.Change{string(doomedKey.Bytes()): deleteKey(doomedKey), "cks-2": deleteStore("cks-2"), "unused": deletePolicy("unused")} {
		kind, id, _ := Subject(c)
		of := func() (rows []string) {
			db := w.fsm.Current().db
			for _, r := range registry[kind].owns {
				if r.all != nil {
					for _, o := range r.all(db, id) {
						rows = append(rows, fmt.Sprintf("%v %x", r.kind, o.name()))
					}
				} else if o := lookup(db, r.kind, id); o != nil {
					rows = append(rows, fmt.Sprintf("%v %x", r.kind, o.name()))
				}
			}
			return rows
		}
		if n := len(of()); n != len(registry[kind].owns) {
			t.Fatalf("%d objects belong to %q, want one of %d kinds", n, owner, len(registry[kind].owns))
		}
		wantVerdicts(t, w.propose(record(c)), Accepted)
		if left := of(); len(left) != 0 {
			t.Errorf("of %q are left: %v", owner, left)
		}
	}
	for _, r := range snapshotRows {
		if want := map[fsmpb.Kind]int{fsmpb.Kind_KIND_KEY: 6, fsmpb.Kind_KIND_KEY_STORE: 1, fsmpb.Kind_KIND_POLICY: 2}[r.kind]; len(r.owns) != want {
			t.Errorf("%d kinds belong to %v, want %d", len(r.owns), r.kind, want)
		}
	}
}
