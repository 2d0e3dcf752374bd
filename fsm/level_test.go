package fsm

import (
	"errors"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/wire"
)

func raised(to uint32) *fsmpb.Record {
	return record(&fsmpb.Change{Change: &fsmpb.Change_RaiseLevel{RaiseLevel: &fsmpb.RaiseLevel{Level: to}}})
}

// register registers the next incarnation of n1, of a release that knows schemas from 1 on.
func (m *machine) register(incarnation uint64, newest uint32) {
	m.t.Helper()
	m.apply(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: "n1", Incarnation: incarnation, SchemaMin: 1, SchemaMax: newest}}})
}

// raise proposes to raise the level, in an entry of the given schema.
func (m *machine) raise(incarnation uint64, to, schema uint32) []Verdict {
	m.t.Helper()
	b := m.batch(raised(to))
	b.Incarnation = incarnation
	e := batchEntry(b)
	e.Schema = schema
	return m.apply(e).Batches[0].Verdicts
}

// finalize raises the level to the newest one.
func (m *machine) finalize() {
	m.t.Helper()
	m.restarts++
	m.register(1+m.restarts, level.Newest)
	wantVerdicts(m.t, m.raise(1+m.restarts, level.Newest, level.Newest), Accepted)
}

// TestRaiseLevel: the level rises once all voters have registered a release that knows it,
// and stays.
func TestRaiseLevel(t *testing.T) {
	m := newMachine(t)
	m.register(2, 1)
	refused := func(what string, to, schema uint32, incarnation uint64) {
		t.Helper()
		wantVerdicts(t, m.raise(incarnation, to, schema), Invalid)
		if got := m.fsm.Current().Level(); got != 1 {
			t.Fatalf("%s: the level is %d", what, got)
		}
	}
	refused("a voter knows only level 1", 2, 2, 2)
	m.register(3, 2)
	refused("the entry is of schema 1", 2, 1, 3)
	refused("the level is 0", 0, 2, 3)
	m.configure("n1", "n2")
	refused("a voter has not registered", 2, 2, 3)
	m.configure("n1")
	m.unsigned = true
	b := m.batch(raised(2))
	b.Incarnation = 3
	e := batchEntry(b)
	e.Schema = 2
	if got := m.apply(e).Batches[0].Status; got != BatchUnsigned || m.fsm.Current().Level() != 1 {
		t.Fatalf("what no unsealed leader signed: %v, and the level is %d", got, m.fsm.Current().Level())
	}
	m.unsigned = false

	hash := m.fsm.Current().Hash()
	wantVerdicts(t, m.raise(3, 2, 2), Accepted)
	if got := m.fsm.Current().Level(); got != 2 || m.fsm.Current().Hash() == hash {
		t.Fatalf("the level is %d", got)
	}
	if n := len(m.audit.entries); n != 2 { // the initialisation and this
		t.Errorf("there are %d audit records", n)
	}
	wantVerdicts(t, m.raise(3, 2, 2), Accepted) // again, which changes nothing
	wantVerdicts(t, m.raise(3, 1, 2), Invalid)
	if got := m.fsm.Current().Level(); got != 2 {
		t.Errorf("the level is %d afterwards", got)
	}

	// A snapshot keeps the level.
	other := blank(t)
	if err := other.restore(m.snapshot()); err != nil {
		t.Fatal(err)
	}
	if s := other.fsm.Current(); s.Level() != 2 || s.Hash() != m.fsm.Current().Hash() {
		t.Errorf("the restored state has level %d", s.Level())
	}
}

// TestCustodiansNames: the names of the custodians can be stored and changed from level 2 on, and
// nothing else of the share set with them.
func TestCustodiansNames(t *testing.T) {
	m := newMachine(t)
	m.register(2, 2)
	put := func(names []string, edit func(*fsmpb.ShareSet)) []Verdict {
		t.Helper()
		c, _ := m.fsm.Current().Cluster()
		c = proto.CloneOf(c)
		c.Shares.Custodians = nil
		for _, n := range names {
			c.Shares.Custodians = append(c.Shares.Custodians, &fsmpb.ShareCustodian{Name: n})
		}
		edit(c.Shares)
		b := m.batch(record(&fsmpb.Change{Change: &fsmpb.Change_PutCluster{PutCluster: c}}))
		b.Incarnation = 2
		e := batchEntry(b)
		e.Schema = m.fsm.Current().Level()
		return m.apply(e).Batches[0].Verdicts
	}
	nothing := func(*fsmpb.ShareSet) {}
	wantVerdicts(t, put([]string{"alice"}, nothing), Invalid)
	wantVerdicts(t, m.raise(2, 2, 2), Accepted)
	wantVerdicts(t, put([]string{"alice"}, nothing), Accepted)
	wantVerdicts(t, put([]string{"alice", "bob"}, func(s *fsmpb.ShareSet) { s.Threshold++ }), Invalid)
	wantVerdicts(t, put([]string{"alice", "bob"}, func(s *fsmpb.ShareSet) { s.Id = []byte("another") }), Invalid)
	wantVerdicts(t, put(nil, nothing), Accepted)
	wantVerdicts(t, put([]string{"carol"}, nothing), Accepted)
	other := blank(t)
	if err := other.restore(m.snapshot()); err != nil {
		t.Fatal(err)
	}
	if c, _ := other.fsm.Current().Cluster(); len(c.Shares.Custodians) != 1 || c.Shares.Custodians[0].Name != "carol" {
		t.Errorf("the restored state has %v", c.Shares.Custodians)
	}
}

// TestOlderRelease: a release that does not know a level has the same state as one that
// does for as long as the level is not reached, and stops there.
func TestOlderRelease(t *testing.T) {
	older := func(c *Config) { c.Known = level.Range{Oldest: 1, Newest: 1} }
	m, old := newMachine(t), blank(t, older)
	var logs []*raft.Log
	entry := func(e *fsmpb.Entry) {
		t.Helper()
		l := m.log(e)
		logs = append(logs, l)
		if r, ok := m.fsm.Apply(l).(*Result); !ok {
			t.Fatalf("apply answered %v", r)
		}
	}
	// The other machine begins with a snapshot, as the log of the first is not kept.
	if err := old.restore(m.snapshot()); err != nil {
		t.Fatal(err)
	}
	entry(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: "n1", Incarnation: 2, SchemaMin: 1, SchemaMax: 2}}})
	b := m.batch(record(putKey(keyOf(testKey(1)))))
	b.Incarnation = 2
	entry(batchEntry(b))
	for _, l := range logs {
		if r, ok := old.fsm.Apply(l).(*Result); !ok {
			t.Fatalf("the older release answered %v", r)
		}
	}
	if m.fsm.Current().Hash() != old.fsm.Current().Hash() || m.fsm.Current().Digest() != old.fsm.Current().Digest() {
		t.Fatal("the two releases have different states")
	}
	before := m.snapshot()

	raise := m.batch(raised(2))
	raise.Incarnation = 2
	e := batchEntry(raise)
	e.Schema = 2
	entry(e)
	err, _ := old.fsm.Apply(logs[len(logs)-1]).(error)
	if !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), "schema 2") || !errors.Is(old.fault, ErrUnreadable) {
		t.Errorf("the older release answered %v, and its fault is %v", err, old.fault)
	}
	if got := old.fsm.Current().Level(); got != 1 {
		t.Errorf("the older release has level %d", got)
	}
	// Its disk, or a leader, may also give it a snapshot.
	after := m.snapshot()
	if err := blank(t, older).restore(after); !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), "schema 2") {
		t.Errorf("the older release restores a snapshot of level 2: %v", err)
	}
	if err := blank(t, older).restore(before); err != nil {
		t.Errorf("the older release does not restore a snapshot of level 1: %v", err)
	}
}

// TestNewForms: forms of level 2, be they changes, fields or kinds in read sets, are refused
// until the level is reached, and then accepted.
func TestNewForms(t *testing.T) {
	provider := putProvider(testProvider())
	described := putKey(keyOf(testKey(7)), func(k *fsmpb.Key) { k.Description = "new" })
	for name, c := range map[string]struct {
		form protoreflect.FullName
		r    func() *fsmpb.Record
	}{
		"a change": {"conclave.fsm.v1.Change.put_oidc_provider", func() *fsmpb.Record { return record(provider) }},
		"a field":  {"conclave.fsm.v1.Key.description", func() *fsmpb.Record { return record(described) }},
		"in a read": {"conclave.fsm.v1.KIND_OIDC_PROVIDER", func() *fsmpb.Record {
			return reads(record(), fsmpb.Kind_KIND_OIDC_PROVIDER, OidcProviderID(account, "none.test"), 0)
		}},
		"an enum":    {"conclave.fsm.v1.KEY_STATE_ENABLED", func() *fsmpb.Record { return record(putKey(keyOf(testKey(8)))) }},
		"a deletion": {"conclave.fsm.v1.Change.delete_oidc_provider", func() *fsmpb.Record { return record(deleteProvider("issuer.test/a")) }},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			if name == "a deletion" {
				wantVerdicts(t, m.propose(record(provider)), Accepted)
			}
			m.register(2, 2)
			propose := func() []Verdict {
				b := m.batch(c.r())
				b.Incarnation = 2
				return m.apply(batchEntry(b)).Batches[0].Verdicts
			}
			defer level.Pretend(map[protoreflect.FullName]uint32{c.form: 2})()
			wantVerdicts(t, propose(), Invalid)
			if refused := m.events[len(m.events)-1].Refused; len(refused) != 1 || !strings.Contains(refused[0].Rule, "feature level 2") {
				t.Errorf("it is refused with %+v", refused)
			}
			wantVerdicts(t, m.raise(2, 2, 2), Accepted)
			wantVerdicts(t, propose(), Accepted)
		})
	}
}

// TestSharedReadsDecide: what a record shares with others is a part of its read set, from level
// 2 on.
func TestSharedReadsDecide(t *testing.T) {
	m := newMachine(t)
	m.register(2, 2)
	one, two := testKey(1), testKey(2)
	propose := func(b *fsmpb.Batch) []Verdict {
		t.Helper()
		b.Incarnation = 2
		return m.apply(batchEntry(b)).Batches[0].Verdicts
	}
	wantVerdicts(t, propose(m.batch(record(putKey(keyOf(one))), record(putKey(keyOf(two))))), Accepted, Accepted)
	read := func(id KeyID, more Version) *fsmpb.Read {
		return &fsmpb.Read{Kind: fsmpb.Kind_KIND_KEY, Id: id.Bytes(), Version: m.fsm.Current().VersionOf(fsmpb.Kind_KIND_KEY, id.Bytes()) + more}
	}
	sharing := func(shared ...uint32) *fsmpb.Record {
		r := record()
		r.SharedReads = shared
		return r
	}
	batch := func() *fsmpb.Batch {
		mixed := used(reads(sharing(1), fsmpb.Kind_KIND_KEY, one.Bytes(), read(one, 0).Version), 1, 7)
		changing := reads(sharing(1), fsmpb.Kind_KIND_KEY, one.Bytes(), read(one, 0).Version)
		changing.Changes = []*fsmpb.Change{putKey(keyOf(one), func(k *fsmpb.Key) { k.Description = "new" })}
		b := m.batch(sharing(0), sharing(0), sharing(0, 2), sharing(1), mixed, changing, sharing(0), sharing(1))
		b.SharedReads = []*fsmpb.Read{read(one, 0), read(two, 0), read(two, 1)}
		return b
	}
	b := batch()
	if head, err := wire.ReadBatch(mustMarshal(t, b), 10); err != nil || head.Needed != 2 {
		t.Errorf("a batch with shared reads needs level %d: %v", head.Needed, err)
	}
	unused := m.batch(record())
	unused.SharedReads = b.SharedReads
	if head, err := wire.ReadBatch(mustMarshal(t, unused), 10); err != nil || head.Needed != 2 {
		t.Errorf("a batch with reads that nobody shares needs level %d: %v", head.Needed, err)
	}
	wantVerdicts(t, propose(b), Invalid, Invalid, Invalid, Invalid, Invalid, Invalid, Invalid, Invalid)
	wantVerdicts(t, m.raise(2, 2, 2), Accepted)
	wantVerdicts(t, propose(batch()), Accepted, Accepted, Conflict, Accepted, Accepted, Accepted, Conflict, Accepted)
	if use := m.fsm.Current().KeyUse(two); use.GetOperation() != 7 {
		t.Errorf("the use of a key that is a shared read: %v", use)
	}
	missing := m.batch(sharing(0))
	if head, err := wire.ReadBatch(mustMarshal(t, missing), 10); !errors.Is(err, ErrUnreadable) {
		t.Errorf("a batch without what a record shares: %+v, %v", head, err)
	}
}

// TestOutcomesFromBeforeTheLevel: an outcome that was evaluated when there could be no
// object of a kind does not count once there can be one.
func TestOutcomesFromBeforeTheLevel(t *testing.T) {
	defer level.Pretend(map[protoreflect.FullName]uint32{"conclave.fsm.v1.KIND_OIDC_PROVIDER": 2, "conclave.fsm.v1.Change.put_oidc_provider": 2})()
	m := newMachine(t)
	m.register(2, 2)
	id := OidcProviderID(account, "issuer.test/a")
	// absent is a record that rests on there being no provider.
	absent := func() *fsmpb.Record {
		s := m.fsm.Current()
		kind, id, v := s.Readable(fsmpb.Kind_KIND_OIDC_PROVIDER, id, s.VersionOf(fsmpb.Kind_KIND_OIDC_PROVIDER, id))
		return reads(record(), kind, id, v)
	}
	propose := func(r *fsmpb.Record) Verdict {
		b := m.batch(r)
		b.Incarnation = 2
		return m.apply(batchEntry(b)).Batches[0].Verdicts[0]
	}
	before := absent()
	if v := propose(absent()); v != Accepted {
		t.Fatalf("at level 1: %v", v)
	}
	wantVerdicts(t, m.raise(2, 2, 2), Accepted)
	if v := propose(before); v != Conflict {
		t.Errorf("an outcome from before the level: %v, want a conflict", v)
	}
	before = absent()
	if v := propose(record(putProvider(testProvider()))); v != Accepted {
		t.Fatalf("the new kind: %v", v)
	}
	if v := propose(before); v != Conflict {
		t.Errorf("an outcome from before the object: %v, want a conflict", v)
	}
	if v := propose(absent()); v != Accepted {
		t.Errorf("at level 2: %v", v)
	}
}
