package fsm

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/fsm/statehash"
	"github.com/conclavekms/conclave/fsm/wire"
)

const (
	account Account = 111122223333
	region          = "eu-test-1"
	second          = 1_000_000_000
	day             = 24 * 3600 * second
	start           = 1_700_000_000 * second
)

// memoryAudit keeps entries in memory, and returns err if that is set.
type memoryAudit struct {
	entries  []auditlog.Entry
	restores int
	synced   int
	err      error
}

func (m *memoryAudit) Append(e []auditlog.Entry, leaves []auditlog.Hash) error {
	for i := range e {
		if leaves[i] != e[i].LeafHash() {
			return errors.New("a leaf hash that is not the entry's")
		}
	}
	if m.err == nil {
		m.entries = append(m.entries, e...)
	}
	return m.err
}

func (m *memoryAudit) Restore(auditlog.Frontier, []auditlog.Hash) error {
	m.restores++
	return m.err
}

func (m *memoryAudit) Sync() error {
	m.synced = len(m.entries)
	return m.err
}

// machine drives an FSM entry by entry, as a single unsealed node called n1.
type machine struct {
	t      testing.TB
	fsm    *FSM
	audit  *memoryAudit
	index  uint64
	seq    uint64
	wall   int64
	events []Events
	// restarts counts the incarnations of n1 after the first.
	restarts uint64
	fault    error
	// unsigned entries are a sealed leader's.
	unsigned bool
}

func newMachine(t testing.TB) *machine {
	m := blank(t)
	m.apply(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: "n1", Incarnation: 1}}})
	if v := m.propose(record(theCluster())); len(v) != 1 || v[0] != Accepted {
		t.Fatalf("initialising: %v", v)
	}
	return m
}

func blank(t testing.TB, edits ...func(*Config)) *machine {
	m := &machine{t: t, audit: &memoryAudit{}, wall: start}
	cfg := Config{
		Audit:   m.audit,
		Attest:  attested,
		OnApply: func(_ *State, e Events) { m.events = append(m.events, e) },
		OnFault: func(err error) { m.fault = err },
	}
	for _, edit := range edits {
		edit(&cfg)
	}
	m.fsm = New(cfg)
	m.configure("n1")
	return m
}

// configure applies a Raft configuration.
func (m *machine) configure(voters ...raft.ServerID) {
	var c raft.Configuration
	for _, id := range voters {
		c.Servers = append(c.Servers, raft.Server{ID: id, Address: raft.ServerAddress(id), Suffrage: raft.Voter})
	}
	m.index++
	m.fsm.Apply(&raft.Log{Index: m.index, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(c)})
}

func (m *machine) log(e *fsmpb.Entry) *raft.Log {
	m.t.Helper()
	if e.Clock == nil {
		e.Clock = &fsmpb.Clock{Wall: m.wall, Readings: []*fsmpb.ClockReading{{Node: "n1", Wall: m.wall}}}
	}
	if e.Schema == 0 && m.restarts > 0 {
		e.Schema = m.fsm.Current().Level()
	}
	data, err := wire.EncodeEntry(e)
	if err == nil && !m.unsigned {
		data, err = origin.SignEntry(data, testSign)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.index++
	return &raft.Log{Index: m.index, Type: raft.LogCommand, Data: data}
}

func (m *machine) apply(e *fsmpb.Entry) *Result {
	m.t.Helper()
	switch r := m.fsm.Apply(m.log(e)).(type) {
	case *Result:
		return r
	default:
		m.t.Fatalf("apply answered %v", r)
		return nil
	}
}

func batchEntry(bs ...*fsmpb.Batch) *fsmpb.Entry {
	return &fsmpb.Entry{Command: &fsmpb.Entry_Batches{Batches: &fsmpb.Batches{Batches: bs}}}
}

// batch makes each record read what it changes, with the version at the time when it
// is applied if everything before it is accepted. If a record says itself what it
// read of an object, that is kept.
func (m *machine) batch(rs ...*fsmpb.Record) *fsmpb.Batch {
	type object struct {
		kind fsmpb.Kind
		id   string
	}
	changed := make(map[object]Version)
	for _, r := range rs {
		for _, c := range r.Changes {
			kind, id, ok := Subject(c)
			if !ok || slices.ContainsFunc(r.Reads, func(r *fsmpb.Read) bool { return r.Kind == kind && bytes.Equal(r.Id, id) }) {
				continue
			}
			v, ok := changed[object{kind, string(id)}]
			if !ok {
				v = m.fsm.Current().VersionOf(kind, id)
			}
			reads(r, kind, id, v)
		}
		for _, c := range r.Changes {
			if kind, id, ok := Subject(c); ok {
				v := m.index + 1
				if changeOf(c).deletes {
					v = 0
				}
				changed[object{kind, string(id)}] = v
			}
		}
	}
	return m.unread(rs...)
}

// unread makes a batch of records as they are.
func (m *machine) unread(rs ...*fsmpb.Record) *fsmpb.Batch {
	m.seq++
	return &fsmpb.Batch{Node: "n1", Incarnation: 1 + m.restarts, Seq: m.seq, Records: rs}
}

// propose applies records as one batch and returns their verdicts.
func (m *machine) propose(rs ...*fsmpb.Record) []Verdict {
	m.t.Helper()
	return m.apply(batchEntry(m.batch(rs...))).Batches[0].Verdicts
}

// pass lets days pass.
func (m *machine) pass(days int) {
	m.t.Helper()
	for range days {
		m.wall += day
		m.apply(&fsmpb.Entry{})
	}
}

var requests uint64

func record(changes ...*fsmpb.Change) *fsmpb.Record {
	requests++
	id := make([]byte, 16)
	binary.BigEndian.PutUint64(id, requests)
	return &fsmpb.Record{
		RequestId: id, Commitment: make([]byte, 32), Body: []byte("sealed"), Generation: 1, Salt: make([]byte, 16),
		Changes: changes,
	}
}

func reads(r *fsmpb.Record, kind fsmpb.Kind, id []byte, v Version) *fsmpb.Record {
	r.Reads = append(r.Reads, &fsmpb.Read{Kind: kind, Id: id, Version: v})
	return r
}

func testKey(n byte) KeyID { return KeyID{Account: account, Region: region, ID: [16]byte{n, 1, 2}} }

func keyOf(id KeyID) *fsmpb.Key {
	return &fsmpb.Key{
		Account: uint64(id.Account), Id: id.ID[:], Region: id.Region, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS",
		Created: start, State: fsmpb.KeyState_KEY_STATE_ENABLED,
	}
}

func putKey(k *fsmpb.Key, edits ...func(*fsmpb.Key)) *fsmpb.Change {
	for _, edit := range edits {
		if edit != nil {
			edit(k)
		}
	}
	return &fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: k}}
}

func putPolicy(id KeyID, doc string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutKeyPolicy{PutKeyPolicy: &fsmpb.KeyPolicy{Account: uint64(id.Account), Key: id.ID[:], Region: id.Region, Document: doc}}}
}

func putAlias(id KeyID, name string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutAlias{PutAlias: &fsmpb.Alias{Account: uint64(id.Account), Name: name, Region: id.Region, Key: id.ID[:]}}}
}

func deleteKey(id KeyID) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_DeleteKey{DeleteKey: &fsmpb.DeleteKey{Account: uint64(id.Account), Key: id.ID[:], Region: id.Region}}}
}

func credential(id string) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutCredential{PutCredential: &fsmpb.Credential{
		Account: uint64(account), Id: id, Kind: fsmpb.CredentialKind_CREDENTIAL_KIND_ACCESS_KEY, Principal: "arn:aws:iam::000000000000:root", Active: true,
		Generation: 1, WrappedSecret: []byte("secret"), Mac: make([]byte, 32), MacGeneration: 1,
	}}}
}

func theCluster() *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: &fsmpb.Cluster{
		Id: bytes.Repeat([]byte{7}, 16), Account: account.String(), Region: region, Partition: "aws", MoreRegions: []string{"eu-test-2", "us-test-1"},
		Shares: &fsmpb.ShareSet{Threshold: 1, Count: 1}, Keyring: []*fsmpb.WrappedKEK{{Generation: 1}},
		OriginKeys: []*fsmpb.OriginKey{{Generation: 1, PublicKey: testOrigin.Public().(ed25519.PublicKey)}},
	}}}
}

func wantVerdicts(t testing.TB, got []Verdict, want ...Verdict) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("verdicts (-want +got):\n%s", diff)
	}
}

func TestReadSetIsCheckedAgainstTheStateBefore(t *testing.T) {
	m := newMachine(t)
	id := testKey(1)
	kind, kid := fsmpb.Kind_KIND_KEY, id.Bytes()

	wantVerdicts(t, m.propose(reads(record(putKey(keyOf(id))), kind, kid, 0)), Accepted)
	created := m.index
	if _, v := m.fsm.Current().Key(id); v != created {
		t.Fatalf("version %d, want the index %d", v, created)
	}
	use := func(v Version) *fsmpb.Record { return reads(record(), kind, kid, v) }
	wantVerdicts(t, m.propose(use(created), use(created-1), use(0)), Accepted, Conflict, Conflict)

	// Within one batch, a change replaces the earlier version for the records
	// that follow.
	disabled := keyOf(id)
	disabled.State = fsmpb.KeyState_KEY_STATE_DISABLED
	wantVerdicts(t, m.propose(use(created), reads(record(putKey(disabled)), kind, kid, created), use(created)),
		Accepted, Accepted, Conflict)

	// Each kind of object is compared, absence included.
	x := CredentialID(account, "x")
	for _, kind := range []fsmpb.Kind{
		fsmpb.Kind_KIND_CLUSTER, fsmpb.Kind_KIND_KEY_POLICY, fsmpb.Kind_KIND_KEY_TAGS, fsmpb.Kind_KIND_ALIAS,
		fsmpb.Kind_KIND_KEY_ALIASES, fsmpb.Kind_KIND_CREDENTIAL, fsmpb.Kind_KIND_TOMBSTONE,
	} {
		wantVerdicts(t, m.propose(reads(record(), kind, x, 0), reads(record(), kind, x, 1)), Accepted, Conflict)
	}
}

// TestObjects: only states with the same objects share the number of State.Objects.
func TestObjects(t *testing.T) {
	m := newMachine(t)
	id := testKey(1)
	seen := map[uint64]string{m.fsm.Current().Objects(): "the first state"}
	changed := func(what string) {
		t.Helper()
		n := m.fsm.Current().Objects()
		if was := seen[n]; was != "" {
			t.Errorf("after %s, the number is that of %s", what, was)
		}
		seen[n] = what
	}
	same := func(what string, r *fsmpb.Record, want Verdict) {
		t.Helper()
		n := m.fsm.Current().Objects()
		wantVerdicts(t, m.propose(r), want)
		if m.fsm.Current().Objects() != n {
			t.Errorf("after %s, the number is another", what)
		}
	}
	m.propose(record(putKey(keyOf(id))))
	changed("a new key")
	v := m.index
	same("a use", used(reads(record(), fsmpb.Kind_KIND_KEY, id.Bytes(), v), 0, 3), Accepted)
	same("a conflict", reads(record(putPolicy(id, "{}")), fsmpb.Kind_KIND_KEY, id.Bytes(), 1), Conflict)
	m.propose(record(putPolicy(id, "{}")), record(), record())
	changed("a new policy, in an entry with other records")
	m.apply(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: "n2", Incarnation: 1}}})
	changed("a node's registration")
	if err := m.restore(m.snapshot()); err != nil {
		t.Fatal(err)
	}
	changed("a restored snapshot")
}

func TestConflictChangesNothing(t *testing.T) {
	m := newMachine(t)
	id := testKey(1)
	before := len(m.audit.entries)
	wantVerdicts(t, m.propose(reads(record(putKey(keyOf(id))), fsmpb.Kind_KIND_KEY, id.Bytes(), 9)), Conflict)
	if k, _ := m.fsm.Current().Key(id); k != nil {
		t.Error("the key was made")
	}
	if len(m.audit.entries) != before {
		t.Error("a record of it is in the audit log")
	}
	// All of a record's changes are made or none. The second change is invalid.
	wantVerdicts(t, m.propose(record(putKey(keyOf(id)), credential(""))), Invalid)
	if k, _ := m.fsm.Current().Key(id); k != nil {
		t.Error("half of an invalid record was applied")
	}
}

func TestInterval(t *testing.T) {
	m := newMachine(t)
	m.wall = start + 10*second
	r := func(from, to int64) *fsmpb.Record {
		r := record()
		r.NotBefore, r.NotAfter = from, to
		return r
	}
	wantVerdicts(t, m.propose(
		r(0, 0), r(m.wall, 0), r(m.wall+1, 0), r(0, m.wall), r(0, m.wall+1), r(m.wall, m.wall+1),
	), Accepted, Accepted, Early, Late, Accepted, Accepted)
}

func TestBatchIsAppliedOnce(t *testing.T) {
	m := newMachine(t)
	old := m.batch(record())
	m.apply(batchEntry(old))
	if again := m.apply(batchEntry(old)).Batches[0]; again.Status != BatchRepeated || again.First != nil {
		t.Errorf("at level 1, a repeated batch is answered %+v", again)
	}
	m.finalize()
	id := testKey(1)
	b := m.batch(reads(record(putKey(keyOf(id))), fsmpb.Kind_KIND_KEY, id.Bytes(), 0), reads(record(), fsmpb.Kind_KIND_KEY, id.Bytes(), 77))
	first := m.apply(batchEntry(b)).Batches[0]
	n, hash := len(m.audit.entries), m.fsm.Current().Hash()
	again := m.apply(batchEntry(b, b)).Batches
	want := BatchResult{Status: BatchRepeated, Index: first.Index, Verdicts: []Verdict{Accepted, Conflict}, First: first.First}
	if diff := cmp.Diff([]BatchResult{want, want}, again); diff != "" {
		t.Fatalf("resubmission (-want +got):\n%s", diff)
	}
	if len(m.audit.entries) != n || m.fsm.Current().Hash() == hash {
		t.Error("a repeated batch was recorded again, or its entry left no trace in the hash")
	}

	// Once the node said that it has the answer, the batch is no longer
	// remembered and never applied.
	c := m.batch()
	c.SettledBelow = b.Seq + 1
	m.apply(batchEntry(c))
	if got := m.apply(batchEntry(b)).Batches[0].Status; got != BatchFenced {
		t.Errorf("a settled batch answered %v", got)
	}
}

func TestIncarnationFencesTheEarlierOne(t *testing.T) {
	m := newMachine(t)
	old := m.batch(record())
	register := func(inc uint64) bool {
		return m.apply(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: "n1", Incarnation: inc}}}).Registered
	}
	if !register(2) || register(2) || register(1) {
		t.Error("incarnations must rise")
	}
	for _, inc := range []uint64{1, 3} {
		old.Incarnation = inc
		if got := m.apply(batchEntry(old)).Batches[0]; got.Status != BatchFenced || got.Verdicts != nil {
			t.Errorf("a batch of incarnation %d: %+v", inc, got)
		}
	}
	old.Node = "stranger"
	if got := m.apply(batchEntry(old)).Batches[0]; got.Status != BatchFenced {
		t.Errorf("a stranger's batch: %+v", got)
	}
}

func TestWindowIsBounded(t *testing.T) {
	m := newMachine(t)
	for range level.LimitsAt(level.Newest).Unsettled + 10 {
		m.apply(batchEntry(m.batch()))
	}
	if n := len(m.fsm.sessions.Proto()[0].Batches); n > level.LimitsAt(level.Newest).Unsettled+1 {
		t.Errorf("%d batches are remembered", n)
	}
}

func TestInvalidRecords(t *testing.T) {
	id := testKey(1)
	for name, spoil := range map[string]func(*fsmpb.Record){
		"request id":   func(r *fsmpb.Record) { r.RequestId = r.RequestId[1:] },
		"salt":         func(r *fsmpb.Record) { r.Salt = nil },
		"commitment":   func(r *fsmpb.Record) { r.Commitment = make([]byte, 33) },
		"no body":      func(r *fsmpb.Record) { r.Body = nil },
		"long body":    func(r *fsmpb.Record) { r.Body = make([]byte, auditlog.MaxBody+1) },
		"reads":        func(r *fsmpb.Record) { r.Reads = make([]*fsmpb.Read, level.LimitsAt(level.Newest).Reads+1) },
		"kind":         func(r *fsmpb.Record) { reads(r, 0, nil, 0) },
		"unknown kind": func(r *fsmpb.Record) { reads(r, 99, nil, 0) },
		"region":       func(r *fsmpb.Record) { r.Changes[0].GetPutKey().Region = "EU\x00" },
		"key id":       func(r *fsmpb.Record) { r.Changes[0].GetPutKey().Id = []byte("short") },
		"state":        func(r *fsmpb.Record) { r.Changes[0].GetPutKey().State = 0 },
		"no date":      func(r *fsmpb.Record) { r.Changes[0].GetPutKey().State = fsmpb.KeyState_KEY_STATE_PENDING_DELETION },
		"empty change": func(r *fsmpb.Record) { r.Changes = append(r.Changes, &fsmpb.Change{}) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			r := record(putKey(keyOf(id)))
			spoil(r)
			if len(r.Reads) > level.LimitsAt(level.Newest).Reads {
				for i := range r.Reads {
					r.Reads[i] = &fsmpb.Read{Kind: 1}
				}
			}
			wantVerdicts(t, m.propose(r), Invalid)
		})
	}
	t.Run("what material is for", func(t *testing.T) {
		m := newMachine(t)
		wantVerdicts(t, m.propose(record(putKey(keyOf(id)))), Accepted)
		k := keyOf(id)
		k.Usage = "SIGN_VERIFY"
		wantVerdicts(t, m.propose(record(putKey(k))), Invalid)
	})
	t.Run("cluster identity", func(t *testing.T) {
		m := newMachine(t)
		wantVerdicts(t, m.propose(record(theCluster())), Accepted)
		c := theCluster()
		c.GetPutCluster().Account = "111111111111"
		wantVerdicts(t, m.propose(record(c)), Invalid)
	})
}

func TestKeyIsDeletedOnTimeAndForGood(t *testing.T) {
	m := newMachine(t)
	id, other := testKey(1), testKey(2)
	wantVerdicts(t, m.propose(record(putKey(keyOf(id)), putPolicy(id, "{}"), putAlias(id, "alias/a"), putAlias(id, "alias/b")),
		record(putKey(keyOf(other)), putAlias(other, "alias/c"))), Accepted, Accepted)
	wantVerdicts(t, m.propose(record(deleteKey(id))), Conflict) // the deletion is not scheduled

	k := keyOf(id)
	k.State, k.DeletionTime = fsmpb.KeyState_KEY_STATE_PENDING_DELETION, start+7*day
	wantVerdicts(t, m.propose(record(putKey(k))), Accepted)
	wantVerdicts(t, m.propose(record(deleteKey(id))), Early)
	for m.wall < start+7*day-second {
		m.wall += day / 2
		m.wall = min(m.wall, start+7*day-1)
		wantVerdicts(t, m.propose(record(deleteKey(id))), Early)
		if m.wall == start+7*day-1 {
			break
		}
	}
	m.wall = start + 7*day
	wantVerdicts(t, m.propose(record(deleteKey(id)), record(deleteKey(id))), Accepted, Conflict)

	s := m.fsm.Current()
	if k, _ := s.Key(id); k != nil {
		t.Error("the key is still there")
	}
	if p, _ := s.KeyPolicy(id); p != nil {
		t.Error("its policy is still there")
	}
	for _, name := range []string{"alias/a", "alias/b"} {
		if a, _ := s.Alias(account, region, name); a != nil {
			t.Errorf("%s is still there", name)
		}
	}
	if a, _ := s.Alias(account, region, "alias/c"); a == nil {
		t.Error("another key's alias is gone")
	}
	if ts, v := s.Tombstone(id); ts == nil || v != m.index {
		t.Error("there is no tombstone")
	}
	if diff := cmp.Diff([]KeyID{id}, m.events[len(m.events)-1].Destroyed); diff != "" {
		t.Errorf("destroyed (-want +got):\n%s", diff)
	}
	wantVerdicts(t, m.propose(record(putKey(keyOf(id)))), Invalid) // an id is never used again
}

func TestAliasCounts(t *testing.T) {
	m := newMachine(t)
	a, b := testKey(1), testKey(2)
	count := func(id KeyID) uint32 {
		n, _ := m.fsm.Current().KeyAliases(id)
		return n.GetCount()
	}
	wantVerdicts(t, m.propose(record(putKey(keyOf(a)), putKey(keyOf(b)))), Accepted)
	wantVerdicts(t, m.propose(record(putAlias(a, "alias/x")), record(putAlias(a, "alias/y"))), Accepted, Accepted)
	if count(a) != 2 {
		t.Errorf("%d aliases", count(a))
	}
	wantVerdicts(t, m.propose(record(putAlias(b, "alias/x"))), Accepted)
	if count(a) != 1 || count(b) != 1 {
		t.Errorf("after moving one: %d and %d", count(a), count(b))
	}
	drop := record(&fsmpb.Change{Change: &fsmpb.Change_DeleteAlias{DeleteAlias: &fsmpb.AliasName{Account: uint64(account), Name: "alias/x", Region: region}}})
	wantVerdicts(t, m.propose(drop), Accepted)
	if count(b) != 0 {
		t.Errorf("after deleting: %d", count(b))
	}
}

func TestScans(t *testing.T) {
	m := newMachine(t)
	for n := byte(5); n > 0; n-- {
		m.propose(record(putKey(keyOf(testKey(n))), putAlias(testKey(n), fmt.Sprintf("alias/%d", n))))
		elsewhere := KeyID{Account: account, Region: region + "1", ID: [16]byte{n}}
		m.propose(record(putKey(keyOf(elsewhere)), putAlias(elsewhere, fmt.Sprintf("alias/%d", n))))
	}
	s := m.fsm.Current()
	var got []byte
	for k := range s.Keys(KeyID{Account: account, Region: region}) {
		got = append(got, k.Id[0])
	}
	for k := range s.Keys(testKey(3)) {
		got = append(got, 10*k.Id[0])
	}
	var names []string
	for a := range s.Aliases(account, region, "alias/3") {
		names = append(names, a.Name)
	}
	if diff := cmp.Diff([]byte{1, 2, 3, 4, 5, 40, 50}, got); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"alias/4", "alias/5"}, names); diff != "" {
		t.Errorf("aliases (-want +got):\n%s", diff)
	}
}

func TestUnreadableEntriesStopTheMachine(t *testing.T) {
	good, err := wire.EncodeEntry(batchEntry(&fsmpb.Batch{Node: "n1", Incarnation: 1, Seq: 1, Records: []*fsmpb.Record{
		used(reads(record(putKey(keyOf(testKey(1)))), 1, nil, 0), 0, 1),
	}}))
	if err != nil {
		t.Fatal(err)
	}
	future, _ := proto.Marshal(&fsmpb.Entry{Schema: level.Newest + 1})
	none, _ := proto.Marshal(&fsmpb.Entry{})
	cases := map[string][]byte{
		"newer schema":   future,
		"no schema":      none,
		"unknown field":  protowire.AppendVarint(protowire.AppendTag(bytes.Clone(good), 4000, protowire.VarintType), 1),
		"oversized":      protowire.AppendBytes(protowire.AppendTag(bytes.Clone(good), 4001, protowire.BytesType), make([]byte, wire.MaxEntry)),
		"unknown change": withUnknown(t, good, "conclave.fsm.v1.Change"),
		"unknown read":   withUnknown(t, good, "conclave.fsm.v1.Read"),
		"unknown use":    withUnknown(t, good, "conclave.fsm.v1.Use"),
		"unknown batch":  withUnknown(t, good, "conclave.fsm.v1.Batch"),
		"unknown record": withUnknown(t, good, "conclave.fsm.v1.Record"),
		"unknown in key": withUnknown(t, good, "conclave.fsm.v1.Key"),
		"unknown clock":  withUnknown(t, mustEncode(t, &fsmpb.Entry{Clock: &fsmpb.Clock{Wall: 1}}), "conclave.fsm.v1.Clock"),
	}
	for name, data := range cases {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			before := m.fsm.Current()
			m.index++
			got := m.fsm.ApplyBatch([]*raft.Log{{Index: m.index, Data: signedAnyway(t, data)}, m.log(batchEntry(m.batch(record())))})
			for i, r := range got {
				if err, ok := r.(error); !ok || !errors.Is(err, ErrStopped) || !errors.Is(err, ErrUnreadable) {
					t.Errorf("answer %d is %v", i, r)
				}
			}
			if !errors.Is(m.fault, ErrUnreadable) {
				t.Errorf("fault is %v", m.fault)
			}
			if now := m.fsm.Current(); now.Index() != before.Index() || now.Hash() != before.Hash() {
				t.Error("the state went on")
			}
			if _, err := m.fsm.Snapshot(); !errors.Is(err, ErrStopped) {
				t.Errorf("a stopped machine gives snapshots: %v", err)
			}
		})
	}
	// Sealed nodes can put these into the log too, so they must not stop any node.
	cases["garbage"], cases["cut"] = []byte("\xff\xff\xff"), good[:len(good)-1]
	for name, data := range cases {
		t.Run("unsigned "+name, func(t *testing.T) {
			m := newMachine(t)
			m.index++
			got := m.fsm.ApplyBatch([]*raft.Log{{Index: m.index, Data: data}, m.log(batchEntry(m.batch(record())))})
			if r, ok := got[0].(*Result); !ok || r.Batches != nil || r.Registered {
				t.Errorf("answer is %+v", got[0])
			}
			if r, ok := got[1].(*Result); !ok || r.Batches[0].Status != BatchApplied {
				t.Errorf("the next entry: %+v", got[1])
			}
			if m.fault != nil {
				t.Errorf("fault is %v", m.fault)
			}
		})
	}
}

// signedAnyway signs an entry that wire.EncodeEntry would not make.
func signedAnyway(t *testing.T, data []byte) []byte {
	t.Helper()
	g, sig, err := testSign("conclave entry v1", sha256.Sum256(data))
	if err != nil {
		t.Fatal(err)
	}
	return wire.AppendOrigin(bytes.Clone(data), &fsmpb.Origin{Generation: g, Signature: sig})
}

func mustEncode(t testing.TB, e *fsmpb.Entry) []byte {
	t.Helper()
	b, err := wire.EncodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// withUnknown adds an unknown field to every message of that name in an entry.
func withUnknown(t *testing.T, data []byte, name protoreflect.FullName) []byte {
	t.Helper()
	var e fsmpb.Entry
	if err := proto.Unmarshal(data, &e); err != nil {
		t.Fatal(err)
	}
	found := false
	var walk func(m protoreflect.Message)
	walk = func(m protoreflect.Message) {
		if m.Descriptor().FullName() == name {
			m.SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 4000, protowire.VarintType), 1))
			found = true
		}
		m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			if fd.Kind() == protoreflect.MessageKind && fd.IsList() {
				for i := range v.List().Len() {
					walk(v.List().Get(i).Message())
				}
			} else if fd.Kind() == protoreflect.MessageKind {
				walk(v.Message())
			}
			return true
		})
	}
	walk(e.ProtoReflect())
	if !found {
		t.Fatalf("no %s in the entry", name)
	}
	b, err := proto.Marshal(&e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAuditFailureStopsTheMachineBeforeAnybodySees(t *testing.T) {
	m := newMachine(t)
	before := m.fsm.Current()
	m.audit.err = errors.New("disk")
	r := m.fsm.Apply(m.log(batchEntry(m.batch(record(putKey(keyOf(testKey(1))))))))
	if m.fault == nil || m.fsm.Current() != before {
		t.Errorf("went on after %v, answer %v", m.audit.err, r)
	}
	if k, _ := m.fsm.Current().Key(testKey(1)); k != nil {
		t.Error("a change is visible whose record is not stored")
	}
	// The entry itself must not be answered either.
	if res, ok := r.(*Result); ok {
		t.Errorf("the entry was answered with %+v", res)
	}
}

func TestDivergenceStopsTheMachine(t *testing.T) {
	m := newMachine(t)
	for m.index < statehash.Every {
		m.apply(batchEntry(m.batch()))
	}
	c := m.fsm.LatestCheck()
	if c.GetIndex() != statehash.Every {
		t.Fatalf("check %v", c)
	}
	m.apply(&fsmpb.Entry{StateCheck: c})
	m.apply(&fsmpb.Entry{StateCheck: &fsmpb.StateCheck{Index: c.Index + 1, Hash: c.Hash}}) // not an index that we remember
	c.Hash[3] ^= 1
	if r := m.fsm.Apply(m.log(&fsmpb.Entry{StateCheck: c})); !errors.Is(m.fault, ErrDiverged) {
		t.Errorf("answer %v, fault %v", r, m.fault)
	}
}

// history makes a random log that touches everything.
func history(t testing.TB, seed uint64, n int) []*raft.Log {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 0))
	// The state after the log so far, for the versions.
	shadow := New(Config{Audit: &memoryAudit{}})
	m := &machine{t: t, fsm: shadow, wall: start}
	var logs []*raft.Log
	logs = append(logs, &raft.Log{Index: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(raft.Configuration{
		Servers: []raft.Server{{ID: "n1", Address: "a", Suffrage: raft.Voter}},
	})})
	m.index, m.seq = 1, 0
	for _, node := range []string{"n1", "n2"} {
		logs = append(logs, m.log(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: node, Incarnation: 1}}}))
	}
	logs = append(logs, m.log(batchEntry(m.batch(record(theCluster(), credential("AKIA"))))))
	shadow.ApplyBatch(logs)
	for range n {
		m.wall += rnd.Int64N(int64(day))
		var rs []*fsmpb.Record
		for range rnd.IntN(4) {
			id := testKey(byte(1 + rnd.IntN(6)))
			k := keyOf(id)
			k.State = fsmpb.KeyState(1 + rnd.IntN(3))
			if k.State == fsmpb.KeyState_KEY_STATE_PENDING_DELETION {
				k.DeletionTime = m.wall + 7*day + rnd.Int64N(int64(day))
			}
			r := record([]*fsmpb.Change{
				putKey(k), putPolicy(id, fmt.Sprintf(`{"Id":"%d"}`, rnd.Int())), putAlias(id, fmt.Sprintf("alias/%d", rnd.IntN(9))), deleteKey(id),
				{Change: &fsmpb.Change_DeleteAlias{DeleteAlias: &fsmpb.AliasName{Account: uint64(account), Name: fmt.Sprintf("alias/%d", rnd.IntN(9)), Region: region}}},
				{Change: &fsmpb.Change_PutKeyTags{PutKeyTags: &fsmpb.KeyTags{Account: uint64(account), Key: id.ID[:], Region: region, Tags: []*fsmpb.Tag{{Key: "a", Value: "b"}}}}},
				{Change: &fsmpb.Change_ConfirmTime{ConfirmTime: &fsmpb.ConfirmTime{Until: m.wall}}},
				credential(fmt.Sprintf("AKIA%d", rnd.IntN(3))),
				putGrant(id, byte(rnd.IntN(4))), deleteGrant(id, byte(rnd.IntN(4))),
				putStore(fmt.Sprintf("cks-%d", rnd.IntN(3))), deleteStore(fmt.Sprintf("cks-%d", rnd.IntN(3))),
				putKey(inStore(testKey(byte(7+rnd.IntN(3))), fmt.Sprintf("cks-%d", rnd.IntN(3)))),
				putAlias(id, "alias/u"),
			}[rnd.IntN(14)])
			if v := shadow.Current().VersionOf(fsmpb.Kind_KIND_KEY, id.Bytes()); v != 0 && rnd.IntN(2) == 0 {
				used(reads(r, fsmpb.Kind_KIND_KEY, id.Bytes(), v), 0, uint32(1+rnd.IntN(12)))
			}
			if rnd.IntN(3) == 0 {
				reads(r, fsmpb.Kind_KIND_KEY_USE, id.Bytes(), shadow.Current().VersionOf(fsmpb.Kind_KIND_KEY_USE, id.Bytes()))
			}
			rs = append(rs, r)
		}
		rs = append(rs, randomIAM(rnd, shadow.Current()))
		b := m.batch(rs...)
		b.Watermark = m.index
		if rnd.IntN(3) == 0 {
			b.Node = "n2"
		}
		if rnd.IntN(5) == 0 && m.seq > 9 {
			b.SettledBelow = m.seq - 8
		}
		bs := []*fsmpb.Batch{b}
		if rnd.IntN(4) == 0 {
			bs = append(bs, b) // sent twice
		}
		logs = append(logs, m.log(batchEntry(bs...)))
		shadow.Apply(logs[len(logs)-1])
	}
	return logs
}

type bufferSink struct {
	bytes.Buffer
	closed, cancelled bool
}

func (b *bufferSink) ID() string    { return "test" }
func (b *bufferSink) Close() error  { b.closed = true; return nil }
func (b *bufferSink) Cancel() error { b.cancelled = true; return nil }

func (m *machine) snapshot() []byte {
	m.t.Helper()
	s, err := m.fsm.Snapshot()
	if err != nil {
		m.t.Fatal(err)
	}
	var sink bufferSink
	if err := s.Persist(&sink); err != nil || !sink.closed {
		m.t.Fatalf("persisting: %v", err)
	}
	return sink.Bytes()
}

func (m *machine) restore(snap []byte) error {
	return m.fsm.Restore(io.NopCloser(bytes.NewReader(snap)))
}

func TestSnapshotRestoreSnapshotIsByteEqual(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	logs := history(t, seed, 400)
	whole := &machine{t: t, audit: &memoryAudit{}}
	whole.fsm = New(Config{Audit: whole.audit, Attest: attested})
	for i, l := range logs {
		if r, ok := whole.fsm.Apply(l).(error); ok {
			t.Fatal(r)
		}
		if i%97 != 0 {
			continue
		}
		snap := whole.snapshot()
		if whole.audit.synced != len(whole.audit.entries) {
			t.Fatal("a snapshot completed before the audit entries it covers were durable")
		}
		if !bytes.Equal(snap, whole.snapshot()) {
			t.Fatal("the same state gives two snapshots")
		}
		other := &machine{t: t, audit: &memoryAudit{}}
		other.fsm = New(Config{Audit: other.audit, Attest: attested})
		if err := other.restore(snap); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(snap, other.snapshot()) {
			t.Fatalf("snapshot of the restored state differs at entry %d", i)
		}
		// A node that restored continues as the others do.
		for _, l := range logs[i+1 : min(i+60, len(logs))] {
			other.fsm.Apply(l)
		}
		again := &machine{t: t, audit: &memoryAudit{}}
		again.fsm = New(Config{Audit: again.audit, Attest: attested})
		again.fsm.ApplyBatch(logs[:min(i+60, len(logs))])
		if again.fsm.Current().Hash() != other.fsm.Current().Hash() || !bytes.Equal(again.snapshot(), other.snapshot()) {
			t.Fatalf("restored at entry %d, the state goes another way", i)
		}
	}
	if s := whole.fsm.Current(); s.frontier.Size() != uint64(len(whole.audit.entries)) || s.frontier.Size() == 0 {
		t.Errorf("frontier of %d, %d entries", s.frontier.Size(), len(whole.audit.entries))
	}
}

func TestDamagedSnapshotIsRefusedWhole(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	m := &machine{t: t, audit: &memoryAudit{}}
	m.fsm = New(Config{Audit: m.audit, Attest: attested})
	m.fsm.ApplyBatch(history(t, seed, 60))
	snap := m.snapshot()
	check := func(what string, b []byte) {
		t.Helper()
		victim := newMachine(t)
		before := victim.fsm.Current()
		if err := victim.restore(b); err == nil {
			// The zstd header has an unused bit, which does not change the
			// content.
			if !bytes.Equal(victim.snapshot(), snap) {
				t.Errorf("%s was restored", what)
			}
		} else if victim.fsm.Current() != before {
			t.Errorf("%s was refused but changed the state", what)
		}
	}
	for n := range len(snap) {
		check(fmt.Sprintf("%d of %d bytes", n, len(snap)), snap[:n])
	}
	for i := range snap {
		b := bytes.Clone(snap)
		b[i] ^= 1 << (i % 8)
		check(fmt.Sprintf("a snapshot with byte %d changed", i), b)
	}
	check("a longer snapshot", append(bytes.Clone(snap), 0))
	check("two snapshots", append(bytes.Clone(snap), snap...))
}

func TestBatchingMakesNoDifference(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	logs := history(t, seed, 300)
	one, many := &memoryAudit{}, &memoryAudit{}
	a, b := New(Config{Audit: one}), New(Config{Audit: many})
	for _, l := range logs {
		a.Apply(l)
	}
	rnd := rand.New(rand.NewPCG(seed, 1))
	for rest := logs; len(rest) > 0; {
		n := min(1+rnd.IntN(40), len(rest))
		b.ApplyBatch(rest[:n])
		rest = rest[n:]
	}
	if a.Current().Hash() != b.Current().Hash() {
		t.Error("hashes differ")
	}
	if diff := cmp.Diff(one.entries, many.entries); diff != "" {
		t.Errorf("audit entries differ:\n%s", diff)
	}
}

// The hash must cover every object that changes, or divergence is not noticed.
func TestHashCoversWhatIsStored(t *testing.T) {
	run := func(change *fsmpb.Change) [32]byte {
		m := newMachine(t)
		wantVerdicts(t, m.propose(record(putKey(keyOf(testKey(7))), putKey(keyOf(testKey(8))))), Accepted)
		requests = 1 << 40
		wantVerdicts(t, m.propose(record(change)), Accepted)
		return m.fsm.Current().Hash()
	}
	seen := map[[32]byte]bool{}
	k := keyOf(testKey(1))
	k.Description = "other"
	for _, c := range []*fsmpb.Change{
		putKey(keyOf(testKey(1))), putKey(k), putPolicy(testKey(7), "{}"), putPolicy(testKey(7), "{ }"), putAlias(testKey(7), "alias/a"),
		putAlias(testKey(8), "alias/a"), theCluster(), credential("x"), credential("y"), putGrant(testKey(7), 1), putGrant(testKey(7), 2),
		putStore("cks-1"), putStore("cks-2"),
	} {
		h := run(c)
		if seen[h] {
			t.Errorf("%v gives a hash that another change gives", c)
		}
		seen[h] = true
	}
}

// FuzzApply feeds arbitrary commands to two machines: neither may panic, and
// they must agree.
func FuzzApply(f *testing.F) {
	for _, l := range history(&testing.T{}, 1, 20) {
		f.Add(l.Data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var hashes [2][32]byte
		for i := range hashes {
			requests = 1 << 41 // so that both are initialised by the same record
			m := newMachine(t)
			m.index++
			m.fsm.Apply(&raft.Log{Index: m.index, Data: data})
			hashes[i] = m.fsm.Current().Hash()
		}
		if hashes[0] != hashes[1] {
			t.Error("two machines disagree")
		}
	})
}

// FuzzRestore must never panic, whatever it reads from a disk or a peer.
func FuzzRestore(f *testing.F) {
	m := &machine{t: &testing.T{}, audit: &memoryAudit{}}
	m.fsm = New(Config{Audit: m.audit, Attest: attested})
	m.fsm.ApplyBatch(history(m.t, 1, 20))
	f.Add(m.snapshot())
	f.Add([]byte(strings.Repeat("x", 100)))
	f.Fuzz(func(t *testing.T, data []byte) {
		newMachine(t).restore(data)
	})
}
