package statehash

import (
	"crypto/sha256"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// The hash depends on everything that is added, on where one thing ends and the next
// begins, and on the hash before.
func TestRolling(t *testing.T) {
	key := &fsmpb.Key{Region: "eu-test-1"}
	seen := make(map[Sum]string)
	r := NewRolling()
	for name, add := range map[string]func(){
		"nothing":              func() {},
		"a number":             func() { r.Numbers(1) },
		"two numbers":          func() { r.Numbers(1, 1) },
		"an object":            func() { r.Object(fsmpb.Kind_KIND_KEY, []byte("id"), key) },
		"another id":           func() { r.Object(fsmpb.Kind_KIND_KEY, []byte("ie"), key) },
		"another kind":         func() { r.Object(fsmpb.Kind_KIND_GRANT, []byte("id"), key) },
		"another message":      func() { r.Object(fsmpb.Kind_KIND_KEY, []byte("id"), &fsmpb.Key{Region: "eu-test-2"}) },
		"removed":              func() { r.Object(fsmpb.Kind_KIND_KEY, []byte("id"), nil) },
		"a longer id, removed": func() { r.Object(fsmpb.Kind_KIND_KEY, append([]byte("id"), wire.Marshal(nil, key)...), nil) },
		"two objects": func() {
			r.Object(fsmpb.Kind_KIND_KEY, []byte("id"), key)
			r.Object(fsmpb.Kind_KIND_KEY, []byte("id"), key)
		},
	} {
		for before := range byte(2) {
			var h, again Sum
			for _, to := range []*Sum{&h, &again} {
				r.Begin(Sum{before})
				add()
				r.End(to)
			}
			if h != again {
				t.Errorf("%s: two hashes of the same", name)
			}
			if other, ok := seen[h]; ok {
				t.Errorf("%s and %s have the same hash", name, other)
			}
			seen[h] = name
		}
	}
}

func TestChecks(t *testing.T) {
	var c Checks
	if c.Latest() != nil || len(c.Proto().Checks) != 0 {
		t.Error("there is a hash before the first")
	}
	const last = kept + 5
	for i := range uint64(last*Every + Every/2) {
		c.Note(i+1, Sum{byte((i + 1) / Every)})
	}
	if l := c.Latest(); l.GetIndex() != last*Every || l.Hash[0] != last {
		t.Errorf("newest: %v", l)
	}
	before := c.Proto()
	if n := len(before.Checks); n != kept {
		t.Errorf("%d hashes are kept, want %d", n, kept)
	}
	good := &fsmpb.StateCheck{Index: 6 * Every, Hash: append([]byte{6}, make([]byte, 31)...)}
	for name, leader := range map[string]*fsmpb.StateCheck{
		"none": nil, "same": good, "no longer known": {Index: Every, Hash: []byte("?")}, "not yet known": {Index: 99 * Every},
	} {
		if err := c.Compare(leader); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, hash := range map[string][]byte{"another": make([]byte, 32), "empty": nil, "short": good.Hash[:31]} {
		if err := c.Compare(&fsmpb.StateCheck{Index: good.Index, Hash: hash}); !errors.Is(err, ErrDiverged) {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A snapshot carries them.
	saved := proto.CloneOf(before)
	c.Note((last+1)*Every, Sum{})
	if !proto.Equal(before, saved) {
		t.Error("a snapshot changed with the state")
	}
	var read Checks
	if err := read.Add(before); err != nil || !proto.Equal(read.Proto(), before) {
		t.Errorf("read back: %v, %v", read.Proto(), err)
	}
	if err := read.Add(&fsmpb.StateChecks{Checks: []*fsmpb.StateCheck{{Index: 1, Hash: make([]byte, 31)}}}); !errors.Is(err, wire.ErrUnreadable) {
		t.Errorf("a short hash: %v", err)
	}
}

// Nodes of all releases compute the same hash, in which the length of what was changed
// comes before it.
func TestHashNeverChanges(t *testing.T) {
	r := NewRolling()
	r.Begin(Sum{1})
	r.Numbers(2, 3)
	r.Bytes([]byte{4})
	r.Object(fsmpb.Kind_KIND_KEY, []byte("id"), &fsmpb.Key{Region: "eu-test-1"})
	r.Object(fsmpb.Kind_KIND_KEY, []byte("id"), nil)
	var got Sum
	r.End(&got)

	want := sha256.New()
	want.Write(append([]byte{1}, make([]byte, 31)...))
	want.Write([]byte{0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 4})
	key := wire.Marshal(nil, &fsmpb.Key{Region: "eu-test-1"})
	head := []byte{byte(fsmpb.Kind_KIND_KEY), 0, 0, 0, 2, 'i', 'd'}
	want.Write([]byte{0, 0, 0, 0, 0, 0, 0, byte(len(head) + len(key))})
	want.Write(head)
	want.Write(key)
	want.Write([]byte{0, 0, 0, 0, 0, 0, 0, byte(len(head))})
	want.Write(head)
	if got != Sum(want.Sum(nil)) {
		t.Errorf("hash %x, want %x", got, want.Sum(nil))
	}
}
