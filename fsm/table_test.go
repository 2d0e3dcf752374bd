package fsm

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/trees"
	"github.com/conclavekms/conclave/fsm/wire"
)

// dump returns everything that a state holds, by id and by each index.
func dump(s *State) []string {
	var all []string
	s.db.rows.Ascend(func(o *object) bool {
		all = append(all, fmt.Sprintf("%x %d %x", o.id, o.version, wire.Marshal(nil, o.message())))
		return true
	})
	for i, x := range s.db.trees {
		for _, m := range allOf(x) {
			all = append(all, fmt.Sprintf("index %d %x", i, wire.Marshal(nil, m)))
		}
	}
	return all
}

// allOf returns everything in an index, in its order.
func allOf(x trees.Tree) []proto.Message {
	switch x := x.(type) {
	case trees.Of[*fsmpb.Alias]:
		return collect(x)
	case trees.Of[*fsmpb.Grant]:
		return collect(x)
	case trees.Of[*fsmpb.User]:
		return collect(x)
	case trees.Of[*fsmpb.Group]:
		return collect(x)
	case trees.Of[*fsmpb.Role]:
		return collect(x)
	case trees.Of[*fsmpb.Policy]:
		return collect(x)
	}
	panic(fmt.Sprintf("an index is a %T", x))
}

func collect[M message](x trees.Of[M]) (all []proto.Message) {
	x.Ascend(func(m M) bool { all = append(all, m); return true })
	return all
}

// TestPublishedStatesDoNotChange: a published state never changes, whatever is
// applied later, and its indexes agree with its rows.
func TestPublishedStatesDoNotChange(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	m := &machine{t: t, audit: &memoryAudit{}}
	m.fsm = New(Config{Audit: m.audit})
	var states []*State
	var dumps [][]string
	for _, l := range history(t, seed, 400) {
		if err, failed := m.fsm.Apply(l).(error); failed {
			t.Fatal(err)
		}
		s := m.fsm.Current()
		states, dumps = append(states, s), append(dumps, dump(s))
		checkIAM(t, s)

		var aliases, grants, retirable int
		for a := range scan[*fsmpb.Alias](s, fsmpb.Kind_KIND_ALIAS, nil, nil) {
			id, _ := owning(a)
			if !slices.Contains(slices.Collect(s.AliasesOf(id)), a) {
				t.Fatalf("index %d: %s is not among its key's aliases", l.Index, a.Name)
			}
			aliases++
		}
		for g := range scan[*fsmpb.Grant](s, fsmpb.Kind_KIND_GRANT, nil, nil) {
			id, _ := owning(g)
			if !slices.Contains(slices.Collect(s.GrantsTo(id, g.Grantee, nil)), g) {
				t.Fatalf("index %d: grant %x is not among its grantee's", l.Index, g.Id)
			}
			if grants++; g.Retiring == "" {
				continue
			}
			if !slices.Contains(slices.Collect(s.GrantsRetiredBy(account, g.Region, g.Retiring, nil)), g) {
				t.Fatalf("index %d: grant %x is not among those that its principal may retire", l.Index, g.Id)
			}
			retirable++
		}
		target, grantee, retiring := byTarget.in(s.db).Len(), byGrantee.in(s.db).Len(), byRetiring.in(s.db).Len()
		if target != aliases || grantee != grants || retiring != retirable {
			t.Fatalf("index %d: indexes of %d aliases, %d and %d grants; the rows are %d, %d and %d", l.Index,
				target, grantee, retiring, aliases, grants, retirable)
		}
	}
	for i, s := range states {
		if !slices.Equal(dump(s), dumps[i]) {
			t.Fatalf("state %d of %d changed after it was published", i, len(states))
		}
	}
}

// TestSharedMemoryIsNotWrittenTo: appending to a slice that shares memory with a
// row's id, or with another slice, does not write to that memory.
func TestSharedMemoryIsNotWrittenTo(t *testing.T) {
	m := filled(t, 10)
	before := dump(m.fsm.Current())
	s := m.fsm.Current()
	for k := range s.AllKeys() {
		_ = append(k.Id, "overwritten"...)
		for _, n := range k.Materials {
			for _, b := range [][]byte{n.Id, n.MaterialId, n.Wrapped} {
				_ = append(b, "overwritten"...)
			}
		}
	}
	for g := range scan[*fsmpb.Grant](s, fsmpb.Kind_KIND_GRANT, nil, nil) {
		_ = append(g.Key, "overwritten"...)
		_ = append(g.Id, "overwritten"...)
	}
	if !slices.Equal(dump(m.fsm.Current()), before) {
		t.Error("a row was changed through what it shares")
	}
}
