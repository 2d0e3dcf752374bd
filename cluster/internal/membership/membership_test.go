package membership

import (
	"errors"
	"slices"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
)

// TestBeforeTheFirstConfiguration: the static peers are the members, and gossip only knows
// more addresses of them.
func TestBeforeTheFirstConfiguration(t *testing.T) {
	var strangers []string
	m := New(Config{
		Node: "a", Peers: map[string]string{"a": "a:1", "b": "b:1", "c": "c:1"},
		Raft:       func() *raft.Raft { return nil },
		Gossiped:   func(node string) string { return map[string]string{"b": "b:2", "c": "c:1", "thief": "x:1"}[node] },
		Registered: func(string) string { return "" }, Stranger: func(node string) { strangers = append(strangers, node) },
	})
	if got := m.Others(); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("others: %v", got)
	}
	for node, want := range map[string]bool{"b": true, "thief": false} {
		if has, known, admitted := m.Has(node), m.Known(node) == nil, m.Admit(node, "") == nil; has != want || known != want || admitted != want {
			t.Errorf("%s is a member: %v, %v, %v", node, has, known, admitted)
		}
	}
	if !slices.Equal(strangers, []string{"thief"}) {
		t.Errorf("who wanted in and was not let: %q", strangers)
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

// TestLearnedConfiguration: a newer configuration that others told decides, until this
// node's own one is as new. A static peer that is not in it is refused.
func TestLearnedConfiguration(t *testing.T) {
	m := New(Config{
		Node: "a", Peers: map[string]string{"a": "a:1", "b": "b:1"},
		Raft: func() *raft.Raft { return nil }, Gossiped: func(string) string { return "" },
		Registered: func(node string) string { return map[string]string{"d": "d:2"}[node] }, Stranger: func(string) {},
	})
	m.Learn(9, []raft.Server{{ID: "a", Address: "a:1"}, {ID: "d", Address: "d:1"}}, 0)
	m.Learn(8, []raft.Server{{ID: "b", Address: "b:1"}}, 0)
	for node, want := range map[string]bool{"a": true, "d": true, "b": false} {
		if got := m.Admit(node, "") == nil; got != want {
			t.Errorf("%s is admitted: %v", node, got)
		}
	}
	if node, ok := m.NodeAt("d:1"); !ok || node != "d" {
		t.Errorf("at d:1 is %q", node)
	}
	if got := m.Addresses("d"); !slices.Equal(got, []string{"d:1", "d:2"}) {
		t.Errorf("addresses of d: %v", got)
	}
	if got := m.Others(); !slices.Equal(got, []string{"d"}) {
		t.Errorf("others: %v", got)
	}
}

// TestConfigurationThatWasNotCommitted: what others told instead of this node's own newest
// configuration decides until that one is removed from the log or followed by another one.
func TestConfigurationThatWasNotCommitted(t *testing.T) {
	m := New(Config{Node: "a", Raft: func() *raft.Raft { return nil }, Stranger: func(string) {}})
	both := []raft.Server{{ID: "a", Address: "a:1"}, {ID: "b", Address: "b:1"}}
	alone := both[:1]
	expect := func(when string, want bool) {
		t.Helper()
		if got := m.Has("b"); got != want {
			t.Errorf("%s: b is a member: %v", when, got)
		}
	}
	m.History().Note(4, raft.Configuration{Servers: both})
	m.Learn(4, both, 4)
	m.History().Note(5, raft.Configuration{Servers: alone})
	expect("the others were asked before", false)
	m.Learn(4, both, 5)
	expect("it was not committed when they were asked", true)
	m.Learn(4, both, 4)
	expect("an answer to an earlier question comes late", true)
	m.Learn(3, alone, 5)
	expect("an answer of one that lags", true)
	m.History().Note(6, raft.Configuration{Servers: alone})
	expect("there is a newer one", false)
	m.History().Truncate(5)
	expect("it was removed from the log", true)
	m.History().Note(5, raft.Configuration{Servers: both})
	m.Learn(7, alone, 5)
	expect("the others have a newer one", false)
}
