package membership

import (
	"errors"
	"slices"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/pki"
)

// TestBeforeTheFirstConfiguration: the static peers are the members, and gossip only knows
// more addresses of them.
func TestBeforeTheFirstConfiguration(t *testing.T) {
	m := New(Config{
		Node: "a", Peers: map[string]string{"a": "a:1", "b": "b:1", "c": "c:1"},
		Raft:     func() *raft.Raft { return nil },
		Gossiped: func(node string) string { return map[string]string{"b": "b:2", "c": "c:1", "thief": "x:1"}[node] },
	})
	if got := m.Others(); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("others: %v", got)
	}
	for node, want := range map[string]bool{"b": true, "thief": false} {
		if m.Has(node) != want || (m.Known(node) == nil) != want || (m.Admit(node, pki.ALPNRaft) == nil) != want {
			t.Errorf("%s is a member: %v, %v, %v", node, m.Has(node), m.Known(node), m.Admit(node, pki.ALPNRaft))
		}
	}
	if err := m.Known("thief"); !errors.Is(err, peerport.ErrNotMember) {
		t.Errorf("a stranger is refused with %v", err)
	}
	for node, want := range map[string][]string{"b": {"b:1", "b:2"}, "c": {"c:1"}} {
		if got := m.Addresses(node); !slices.Equal(got, want) {
			t.Errorf("addresses of %s: %v, want %v", node, got, want)
		}
	}
	if node, ok := m.NodeAt("c:1"); !ok || node != "c" {
		t.Errorf("at c:1 is %q", node)
	}
	if node, ok := m.NodeAt("x:1"); ok {
		t.Errorf("gossip puts %s at x:1", node)
	}
	if v := m.Voters(); len(v) != 0 {
		t.Errorf("before there is a configuration %v vote", v)
	}
}
