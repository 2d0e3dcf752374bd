package fsm

import (
	"encoding/hex"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// TestAnotherGroupIsRefused: nothing with another Raft group's number enters the log or
// the state, and the error says why. A command of another kind that follows replaces it,
// as in protobuf.
func TestAnotherGroupIsRefused(t *testing.T) {
	m := newMachine(t)
	b := m.batch(record(putKey(keyOf(testKey(1)))))
	b.Group = 1
	if _, err := wire.ReadBatch(mustMarshal(t, b), 10); !errors.Is(err, wire.ErrGroup) || !errors.Is(err, ErrUnreadable) {
		t.Errorf("a batch: %v", err)
	}
	entry := mustEncode(t, batchEntry(b))
	if err := m.fsm.CheckEntry(entry); !errors.Is(err, wire.ErrGroup) || !errors.Is(err, ErrUnreadable) {
		t.Errorf("an entry: %v", err)
	}
	register := mustEncode(t, &fsmpb.Entry{Command: &fsmpb.Entry_RegisterNode{RegisterNode: &fsmpb.RegisterNode{Node: "n1"}}})
	if !compareDecoders(t, append(entry, register...)) {
		t.Error("a registration behind it is not readable")
	}

	h := headerOf(m.fsm.Current())
	h.Group = 1
	if err := newRestored().header(h); !errors.Is(err, wire.ErrGroup) || !errors.Is(err, ErrUnreadable) {
		t.Errorf("a snapshot: %v", err)
	}
}

// TestGroupZero: the number of group 0 takes no bytes, so that what was written before
// there were numbers belongs to group 0.
func TestGroupZero(t *testing.T) {
	m := proto.MarshalOptions{Deterministic: true}
	for name, c := range map[string]struct {
		m    proto.Message
		want string
	}{
		"batch":   {&fsmpb.Batch{Node: "n1", Incarnation: 2, Seq: 3, SettledBelow: 3, Watermark: 4, Group: wire.Group}, "0a026e311002180320032804"},
		"group 1": {&fsmpb.Batch{Node: "n1", Seq: 3, Group: 1}, "0a026e3118033801"},
		"header":  {&fsmpb.SnapshotHeader{Schema: 1, Index: 2, Level: 1, Group: wire.Group}, "080110024001"},
	} {
		if got, err := m.Marshal(c.m); err != nil || hex.EncodeToString(got) != c.want {
			t.Errorf("%s: %x, want %s (%v)", name, got, c.want, err)
		}
	}
}

func mustMarshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
