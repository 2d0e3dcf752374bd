package fsm

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/fsm/snapfile"
)

// attested is a Config.Attest that signs with the key of theCluster.
func attested(*State) func([32]byte) (*fsmpb.Attestation, error) {
	return func(digest [32]byte) (*fsmpb.Attestation, error) { return origin.Attest(digest, testSign) }
}

// unpack returns the items of a snapshot, and pack makes a snapshot of them.
func unpack(t testing.TB, snap []byte) (items []*fsmpb.SnapshotItem) {
	t.Helper()
	in, err := snapfile.NewReader(bytes.NewReader(snap))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for {
		item, err := in.Next()
		if err == io.EOF {
			return items
		}
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, item)
	}
}

func pack(t testing.TB, items []*fsmpb.SnapshotItem) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := snapfile.NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range items {
		w.Item(held(item))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// held returns the message in an item.
func held(item *fsmpb.SnapshotItem) proto.Message {
	m := item.ProtoReflect()
	return m.Get(m.WhichOneof(m.Descriptor().Oneofs().Get(0))).Message().Interface()
}

// No node accepts a snapshot that was edited on a disk, field by field, or put
// together from others.
func TestEditedSnapshotIsRefused(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	m := &machine{t: t, audit: &memoryAudit{}}
	m.fsm = New(Config{Audit: m.audit, Attest: attested})
	logs := history(t, seed, 80)
	m.fsm.ApplyBatch(logs[:60])
	older := m.snapshot()
	m.fsm.ApplyBatch(logs[60:])
	// Makes sure that there is something of each kind to edit, whatever the
	// random log left.
	m.index, m.seq, m.wall = uint64(len(logs)), 1<<30, m.fsm.Current().Time()
	id := testKey(200)
	disabled := keyOf(id)
	disabled.State = fsmpb.KeyState_KEY_STATE_DISABLED
	wantVerdicts(t, m.propose(record(putKey(disabled), putPolicy(id, "{}"), credential("AKIAEDIT"))), Accepted)
	snap := m.snapshot()
	items := unpack(t, snap)
	if !bytes.Equal(pack(t, items), snap) {
		t.Error("the same items, other bytes")
	}

	fresh := func() *FSM { return New(Config{Audit: &memoryAudit{}, Attest: attested}) }
	restore := func(f *FSM, b []byte) error {
		return (&machine{t: t, fsm: f}).restore(b)
	}
	if err := restore(fresh(), pack(t, items)); err != nil {
		t.Fatalf("unedited: %v", err)
	}

	edited := 0
	for i, item := range items {
		if !snapfile.Attested(item) {
			continue
		}
		edited++
		less := append(append([]*fsmpb.SnapshotItem{}, items[:i]...), items[i+1:]...)
		if err := restore(fresh(), pack(t, less)); err == nil {
			t.Errorf("a snapshot without item %d, %v, was restored", i, item)
		}
	}
	if edited < 20 {
		t.Fatalf("%d items are attested: the test is too small", edited)
	}
	for name, edit := range map[string]func(*fsmpb.SnapshotItem) bool{
		"a key enabled": func(item *fsmpb.SnapshotItem) bool {
			k := item.GetKey()
			if k == nil || k.State == fsmpb.KeyState_KEY_STATE_ENABLED {
				return false
			}
			k.State, k.DeletionTime = fsmpb.KeyState_KEY_STATE_ENABLED, 0
			return true
		},
		"a policy": func(item *fsmpb.SnapshotItem) bool {
			if item.GetKeyPolicy() == nil {
				return false
			}
			item.GetKeyPolicy().Document += " "
			return true
		},
		"a credential": func(item *fsmpb.SnapshotItem) bool {
			if item.GetCredential() == nil {
				return false
			}
			item.GetCredential().Principal += "x"
			return true
		},
		"cluster time": func(item *fsmpb.SnapshotItem) bool {
			if item.GetHeader() == nil {
				return false
			}
			item.GetHeader().Time++
			return true
		},
		"the index": func(item *fsmpb.SnapshotItem) bool {
			if item.GetHeader() == nil {
				return false
			}
			item.GetHeader().Index++
			return true
		},
		"the origin keys": func(item *fsmpb.SnapshotItem) bool {
			if item.GetCluster() == nil {
				return false
			}
			item.GetCluster().OriginKeys = nil
			return true
		},
		"the signature": func(item *fsmpb.SnapshotItem) bool {
			if item.GetAttestation() == nil {
				return false
			}
			item.GetAttestation().Signature[9] ^= 1
			return true
		},
		"another state's attestation": func(item *fsmpb.SnapshotItem) bool {
			if item.GetAttestation() == nil {
				return false
			}
			for _, o := range unpack(t, older) {
				if a := o.GetAttestation(); a != nil {
					item.Item.(*fsmpb.SnapshotItem_Attestation).Attestation = a
				}
			}
			return true
		},
	} {
		copies, done := make([]*fsmpb.SnapshotItem, len(items)), false
		for i := range items {
			copies[i] = proto.CloneOf(items[i])
			done = done || edit(copies[i])
		}
		if !done {
			t.Errorf("%s: nothing to edit", name)
			continue
		}
		for at, f := range map[string]*FSM{"a new node": fresh(), "a node with a state": m.fsm} {
			before := f.Current()
			if err := restore(f, pack(t, copies)); !errors.Is(err, origin.ErrAttestation) {
				t.Errorf("%s: %s answered %v", name, at, err)
			}
			if f.Current() != before {
				t.Errorf("%s: %s has another state", name, at)
			}
		}
	}
}

// The snapshot of a thief's own cluster, with the real one's id, is accepted only
// by a node that has no state yet.
func TestForeignSnapshotIsRefused(t *testing.T) {
	m := newMachine(t)
	m.propose(record(theCluster()))
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	items := unpack(t, m.snapshot())
	for _, item := range items {
		if c := item.GetCluster(); c != nil {
			c.OriginKeys[0].PublicKey = public
		}
	}
	digest := snapfile.Digest(func(w *snapfile.Writer) {
		for _, item := range items {
			if snapfile.Attested(item) {
				w.Item(held(item))
			}
		}
	})
	for _, item := range items {
		if a := item.GetAttestation(); a != nil {
			a.Signature = signWith(private, "conclave state v1", digest)
		}
	}
	forged := pack(t, items)
	if err := blank(t).restore(forged); err != nil {
		t.Fatalf("the forgery is not good enough for this test: %v", err)
	}
	if err := m.restore(forged); !errors.Is(err, origin.ErrAttestation) {
		t.Errorf("a node of the real cluster answered %v", err)
	}
	if err := CheckSnapshot(bytes.NewReader(forged), m.fsm.Current(), m.index); !errors.Is(err, origin.ErrAttestation) {
		t.Errorf("CheckSnapshot answered %v", err)
	}
	// The snapshot of a cluster that is not initialised is refused too.
	if err := m.restore(blank(t).snapshot()); !errors.Is(err, origin.ErrAttestation) {
		t.Errorf("a snapshot without a cluster: %v", err)
	}
}

func TestCheckSnapshotIndex(t *testing.T) {
	m := newMachine(t)
	m.propose(record(theCluster()))
	snap := m.snapshot()
	if i, err := snapfile.Index(bytes.NewReader(snap)); err != nil || i != m.index {
		t.Errorf("index %d, %v; want %d", i, err, m.index)
	}
	if err := CheckSnapshot(bytes.NewReader(snap), m.fsm.Current(), m.index); err != nil {
		t.Error(err)
	}
	for _, index := range []uint64{m.index - 1, m.index + 1} {
		if err := CheckSnapshot(bytes.NewReader(snap), m.fsm.Current(), index); !errors.Is(err, origin.ErrAttestation) {
			t.Errorf("index %d instead of %d: %v", index, m.index, err)
		}
	}
}

// Without a node that attests it, there is no snapshot of an initialised
// cluster.
func TestSnapshotNeedsAnAttestation(t *testing.T) {
	for name, attest := range map[string]func(*State) func([32]byte) (*fsmpb.Attestation, error){
		"nobody": nil,
		"sealed": func(*State) func([32]byte) (*fsmpb.Attestation, error) {
			return func([32]byte) (*fsmpb.Attestation, error) { return nil, origin.ErrNoAttestation }
		},
		"a wrong one": func(*State) func([32]byte) (*fsmpb.Attestation, error) {
			return func([32]byte) (*fsmpb.Attestation, error) { return origin.Attest([32]byte{1}, testSign) }
		},
	} {
		blank(t).snapshot() // not initialised
		m := newMachine(t)
		m.fsm.cfg.Attest = attest
		s, err := m.fsm.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		var sink bufferSink
		if err := s.Persist(&sink); err == nil || !sink.cancelled || sink.closed {
			t.Errorf("%s: a snapshot was made: %v", name, err)
		}
	}
}

// A snapshot from before the cluster is initialised needs no attestation; every other
// snapshot does.
func TestSnapshotBeforeInit(t *testing.T) {
	m := blank(t)
	m.apply(&fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: "n1", Incarnation: 1}}})
	snap := m.snapshot()
	if err := blank(t).restore(snap); err != nil {
		t.Errorf("registrations alone: %v", err)
	}
	items := unpack(t, snap)
	key := &fsmpb.SnapshotItem{Item: &fsmpb.SnapshotItem_Key{Key: keyOf(testKey(1))}}
	key.GetKey().Version = 1
	if err := blank(t).restore(pack(t, append([]*fsmpb.SnapshotItem{items[0], key}, items[1:]...))); !errors.Is(err, ErrUnreadable) {
		t.Errorf("with a key: %v", err)
	}
}

// Every node has the state at each recent index, no matter which entries it
// applied together.
func TestStateAt(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	logs := history(t, seed, 100)
	one, many := New(Config{Audit: &memoryAudit{}}), New(Config{Audit: &memoryAudit{}})
	rnd := rand.New(rand.NewPCG(seed, 2))
	for rest := logs; len(rest) > 0; {
		n := min(1+rnd.IntN(20), len(rest))
		many.ApplyBatch(rest[:n])
		rest = rest[n:]
	}
	for _, l := range logs {
		one.ApplyBatch([]*raft.Log{l})
		a, b := one.StateAt(l.Index), many.StateAt(l.Index)
		if a == nil || b == nil || a.Digest() != b.Digest() || a.Hash() != b.Hash() {
			t.Fatalf("the states at index %d differ: %v, %v", l.Index, a, b)
		}
	}
	if one.StateAt(uint64(len(logs)+1)) != nil {
		t.Error("a state of the future")
	}
}
