package fsm

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/fsm/statehash"
	"github.com/conclavekms/conclave/fsm/wire"
)

// testOrigin is the origin key of theCluster.
var testOrigin = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, ed25519.SeedSize))

func signWith(k ed25519.PrivateKey, domain string, digest [32]byte) []byte {
	return ed25519.Sign(k, origin.Message(theCluster().GetPutCluster(), domain, digest))
}

func testSign(domain string, digest [32]byte) (uint32, []byte, error) {
	return 1, signWith(testOrigin, domain, digest), nil
}

// Entries of a leader without the origin key change nothing and stop no node.
func TestUnsignedEntriesChangeNothing(t *testing.T) {
	id := testKey(1)
	disabled := keyOf(id)
	disabled.State = fsmpb.KeyState_KEY_STATE_DISABLED
	plant := func() *fsmpb.Record { return record(putKey(keyOf(id)), credential("AKIATHIEF")) }
	register := &fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: "n1", Incarnation: 1 << 60, Watermark: 1 << 60}}}
	for name, forge := range map[string]func(m *machine) *fsmpb.Entry{
		"records":                func(m *machine) *fsmpb.Entry { return batchEntry(m.batch(plant())) },
		"an empty record":        func(m *machine) *fsmpb.Entry { return batchEntry(m.batch(record())) },
		"another initialisation": func(m *machine) *fsmpb.Entry { return batchEntry(m.batch(record(theCluster()))) },
		"no records": func(m *machine) *fsmpb.Entry {
			b := m.batch()
			b.Watermark, b.SettledBelow = 1<<60, 1<<60
			return batchEntry(b)
		},
		"a registration": func(*machine) *fsmpb.Entry { return register },
		"a wrong hash": func(*machine) *fsmpb.Entry {
			return &fsmpb.Entry{StateCheck: &fsmpb.StateCheck{Index: statehash.Every, Hash: []byte("wrong")}}
		},
		"a clock": func(*machine) *fsmpb.Entry { return &fsmpb.Entry{} },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.propose(record(putKey(disabled)))
			for m.index < statehash.Every {
				m.apply(batchEntry(m.batch()))
			}
			before := m.fsm.Current()
			records := len(m.audit.entries)
			m.wall += 20 * second
			m.unsigned = true
			res := m.apply(forge(m))
			m.unsigned = false
			for _, b := range res.Batches {
				if b.Status != BatchUnsigned || b.Verdicts != nil {
					t.Errorf("answer %+v", b)
				}
			}
			if res.Registered {
				t.Error("registered")
			}
			after := m.fsm.Current()
			if k, _ := after.Key(id); k.State != disabled.State {
				t.Error("the key was changed")
			}
			if c, _ := after.Credential(account, "AKIATHIEF"); c != nil {
				t.Error("a credential was planted")
			}
			if len(m.audit.entries) != records {
				t.Error("a record is in the audit log")
			}
			if after.Time() != before.Time() {
				t.Error("cluster time moved")
			}
			if mark, _ := m.fsm.Watermark("n1"); mark >= 1<<60 {
				t.Error("the watermark moved")
			}
			if m.fault != nil {
				t.Fatalf("the machine stopped: %v", m.fault)
			}
			// The honest node continues, with its incarnation.
			wantVerdicts(t, m.propose(record(putAlias(id, "alias/a"))), Accepted)
			if got, want := m.fsm.Current().Time(), m.wall; got != want {
				t.Errorf("cluster time %d, want %d", got, want)
			}
		})
	}
}

// Before the cluster is initialised, nobody can sign. Only the record that initialises it
// is applied, and nothing else.
func TestInitialisation(t *testing.T) {
	begin := func() *machine {
		m := blank(t)
		m.unsigned = true
		m.apply(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: "n1", Incarnation: 1}}})
		return m
	}
	for name, rs := range map[string][]*fsmpb.Record{
		"no change":         {record()},
		"a key":             {record(putKey(keyOf(testKey(1))))},
		"a credential":      {record(credential("AKIA"))},
		"credential first":  {record(credential("AKIA"), theCluster())},
		"a key with it":     {record(theCluster(), putKey(keyOf(testKey(1))))},
		"a record after it": {record(theCluster()), record(credential("AKIA"))},
	} {
		m := begin()
		if got := m.apply(batchEntry(m.batch(rs...))).Batches[0]; got.Status != BatchUnsigned {
			t.Errorf("%s: %+v", name, got)
		}
		if n := len(m.audit.entries); n != 0 {
			t.Errorf("%s: %d records", name, n)
		}
	}
	m := begin()
	if got := m.apply(batchEntry(m.batch())).Batches[0]; got.Status != BatchApplied {
		t.Errorf("a barrier: %+v", got)
	}
	// A batch after the initialising one is unsigned like any other, also in its entry.
	got := m.apply(batchEntry(m.batch(record(theCluster(), credential("AKIA"))), m.batch(record(credential("AKIATHIEF"))))).Batches
	if got[0].Status != BatchApplied || got[1].Status != BatchUnsigned {
		t.Errorf("initialisation and another batch: %+v", got)
	}
}

// A signature is valid for one entry only, and only at its end.
func TestForgedSignatures(t *testing.T) {
	m := newMachine(t)
	plain := mustEncode(t, batchEntry(m.batch(record(credential("AKIATHIEF")))))
	good, err := origin.SignEntry(bytes.Clone(plain), testSign)
	if err != nil {
		t.Fatal(err)
	}
	other, err := origin.SignEntry(mustEncode(t, batchEntry()), testSign)
	if err != nil {
		t.Fatal(err)
	}
	_, sig, _ := testSign("conclave entry v1", [32]byte{})
	ending := func(o *fsmpb.Origin) []byte { return wire.AppendOrigin(nil, o) }
	otherOrigin := other[len(mustEncode(t, batchEntry())):]
	cases := map[string][]byte{
		"no signature":      plain,
		"another entry's":   append(bytes.Clone(plain), otherOrigin...),
		"of nothing":        append(bytes.Clone(plain), ending(&fsmpb.Origin{Generation: 1, Signature: sig})...),
		"empty":             append(bytes.Clone(plain), ending(&fsmpb.Origin{})...),
		"without the key":   append(bytes.Clone(plain), ending(&fsmpb.Origin{Signature: make([]byte, 64)})...),
		"something behind":  append(bytes.Clone(good), protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), level.Newest)...),
		"signed twice":      append(bytes.Clone(good), otherOrigin...),
		"in front":          append(bytes.Clone(good[len(plain):]), plain...),
		"of another domain": signedAs(plain, "conclave state v1"),
	}
	for i := range len(good) * 8 / 7 {
		b := bytes.Clone(good)
		b[i*7/8%len(b)] ^= 1 << (i % 8)
		if e, err := wire.Decode(b); err == nil {
			if new(origin.Verified).Entry(theCluster().GetPutCluster(), e) {
				t.Fatalf("an entry with byte %d changed is authentic", i*7/8)
			}
		}
	}
	for name, data := range cases {
		m.index++
		res, ok := m.fsm.Apply(&raft.Log{Index: m.index, Type: raft.LogCommand, Data: data}).(*Result)
		if !ok || m.fault != nil {
			t.Fatalf("%s: the machine stopped: %v", name, m.fault)
		}
		for _, b := range res.Batches {
			if b.Status != BatchUnsigned {
				t.Errorf("%s: %+v", name, b)
			}
		}
	}
	m.index++
	if res := m.fsm.Apply(&raft.Log{Index: m.index, Type: raft.LogCommand, Data: good}).(*Result); res.Batches[0].Status != BatchApplied {
		t.Errorf("a good entry: %+v", res.Batches[0])
	}
}

func signedAs(entry []byte, domain string) []byte {
	b, _ := origin.SignEntry(bytes.Clone(entry), func(_ string, digest [32]byte) (uint32, []byte, error) { return testSign(domain, digest) })
	return b
}

// A thief who leads while all nodes are sealed can give each node different
// clocks, or none. The first signed entry makes them agree, whatever each of them
// observed.
func TestNodesThatHeardOtherClocksAgree(t *testing.T) {
	const days = 5
	told := [][]int64{
		nil,
		{start + day/2},
		{start + day, start + 2*day, start + 3*day, start + 4*day, start + days*day - 3600*second}, // the truth
		{start + day, start + 2*day, start + 3*day, start + 4*day, start + 5*day, start + 6*day, start + 7*day, start + 99*day},
	}
	for _, leader := range []int{2, 3} {
		nodes := make([]*machine, len(told))
		for i := range nodes {
			requests = 1 << 42 // all are initialised by the same record
			m := newMachine(t)
			m.apply(&fsmpb.Entry{}) // a signed entry has set cluster time
			m.unsigned = true
			first := m.index
			for _, m.wall = range told[i] {
				m.apply(&fsmpb.Entry{})
			}
			for m.index < first+10 {
				m.index++
				m.fsm.Apply(&raft.Log{Index: m.index, Type: raft.LogCommand, Data: []byte("garbage")})
			}
			m.unsigned, m.wall = false, start+days*day
			if got := m.fsm.Current().Time(); got != start {
				t.Fatalf("cluster time moved by %ds while nobody signed", (got-start)/second)
			}
			nodes[i] = m
		}
		l := nodes[leader]
		var want *State
		signed := []*raft.Log{
			l.log(&fsmpb.Entry{Clock: &fsmpb.Clock{Wall: l.wall, Elapsed: 3600 * second, Heard: l.fsm.Current().Evidence().Observed()}}),
			l.log(&fsmpb.Entry{Clock: &fsmpb.Clock{Wall: l.wall + second/2}}),
			l.log(batchEntry(l.batch(record(putKey(keyOf(testKey(1))))))),
		}
		for i, m := range nodes {
			m.fsm.Apply(signed[0])
			if got := m.fsm.Current().Time(); got != l.wall {
				t.Errorf("led by %d: node %d has a cluster time %ds off", leader, i, (got-l.wall)/second)
			}
			m.fsm.ApplyBatch(signed[1:])
			s := m.fsm.Current()
			if i == 0 {
				want = s
			}
			if s.Time() != want.Time() || s.Hash() != want.Hash() || s.Digest() != want.Digest() {
				t.Errorf("led by %d: node %d has another state than node 0, with cluster time %d, not %d", leader, i, s.Time(), want.Time())
			}
			if m.fault != nil {
				t.Errorf("led by %d: node %d stopped: %v", leader, i, m.fault)
			}
		}
	}
}

// What a node observed is in its snapshots, but not in anything on which nodes have
// to agree.
func TestObservationOutlivesARestart(t *testing.T) {
	m := newMachine(t)
	m.apply(&fsmpb.Entry{})
	bare := unpack(t, m.snapshot())
	m.unsigned = true
	m.pass(3)
	m.unsigned = false
	if got := m.fsm.Current().Evidence().Observed(); got != start+3*day {
		t.Fatalf("observed %ds ahead, want 3 days", (got-start)/second)
	}
	snap := m.snapshot()
	other := blank(t)
	if err := other.restore(snap); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(snap, other.snapshot()) {
		t.Error("the snapshot of the restored state differs")
	}
	if got := other.fsm.Current().Evidence().Observed(); got != m.fsm.Current().Evidence().Observed() {
		t.Errorf("restored, the node has observed %d, was %d", got, m.fsm.Current().Evidence().Observed())
	}

	items := unpack(t, snap)
	at := slices.IndexFunc(items, func(i *fsmpb.SnapshotItem) bool { return i.GetObservation() != nil })
	if at < 0 || len(items) != len(bare)+1 {
		t.Fatalf("the snapshot has %d items, one of another state %d", len(items), len(bare))
	}
	with := func(o *fsmpb.Observation) []byte {
		return pack(t, slices.Replace(slices.Clone(items), at, at+1, &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_Observation{Observation: o}}))
	}
	// A node that observed nothing, or something else, has the same state. Restoring a
	// snapshot takes over its observation.
	for _, b := range [][]byte{
		pack(t, slices.Delete(slices.Clone(items), at, at+1)),
		with(&fsmpb.Observation{Heard: start + 31*day, Unconfirmed: second}),
	} {
		if err := other.restore(b); err != nil {
			t.Fatal(err)
		}
		s := other.fsm.Current()
		if s.Digest() != m.fsm.Current().Digest() || s.Hash() != m.fsm.Current().Hash() || s.Time() != start {
			t.Error("the observation is part of the state")
		}
	}
	for name, o := range map[string]*fsmpb.Observation{
		"none":             {},
		"not later":        {Heard: start},
		"too late":         {Heard: start + 31*day + 1},
		"too much slack":   {Heard: start + day, Unconfirmed: second + 1},
		"slack to be used": {Heard: start + day, Unconfirmed: -1},
	} {
		if err := other.restore(with(o)); !errors.Is(err, ErrUnreadable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := other.restore(pack(t, slices.Insert(slices.Clone(items), at, items[at]))); !errors.Is(err, ErrUnreadable) {
		t.Errorf("two observations: %v", err)
	}

	// Once signed entries have caught up, the observation is dropped.
	m.wall = start + 3*day
	m.apply(&fsmpb.Entry{Clock: &fsmpb.Clock{Wall: m.wall, Heard: m.fsm.Current().Evidence().Observed()}})
	if s := m.fsm.Current(); s.Evidence().Observed() != 0 || s.Time() != m.wall {
		t.Errorf("observed %d, cluster time %d; want none, and %d", s.Evidence().Observed(), s.Time(), m.wall)
	}
	if got := unpack(t, m.snapshot()); len(got) != len(bare) {
		t.Errorf("the snapshot has %d items, want %d", len(got), len(bare))
	}
}
