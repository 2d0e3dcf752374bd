package fsm

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
)

// TestLimitsBySize: each limit can be reached but not exceeded.
func TestLimitsBySize(t *testing.T) {
	most := level.LimitsAt(level.Oldest)
	id := testKey(1)
	for name, spoil := range map[string]func(r *fsmpb.Record, more int){
		"reads": func(r *fsmpb.Record, more int) {
			reads(r, fsmpb.Kind_KIND_KEY, id.Bytes(), 0) // as its change requires
			for len(r.Reads) < most.Reads+more {
				reads(r, fsmpb.Kind_KIND_ALIAS, AliasID(id.Account, id.Region, "alias/none"), 0)
			}
		},
		"changes": func(r *fsmpb.Record, more int) {
			for i := len(r.Changes); i < most.Changes+more; i++ {
				r.Changes = append(r.Changes, putKey(keyOf(testKey(byte(100+i)))))
			}
		},
		"uses": func(r *fsmpb.Record, more int) {
			for len(r.Uses) < most.Uses+more {
				used(r, 0, 1)
			}
		},
		"body": func(r *fsmpb.Record, more int) { r.Body = make([]byte, most.Body+more) },
	} {
		t.Run(name, func(t *testing.T) {
			for more, want := range []Verdict{Accepted, Invalid} {
				m := newMachine(t)
				r := record(putKey(keyOf(id)))
				spoil(r, more)
				wantVerdicts(t, m.propose(r), want)
			}
		})
	}
}

// TestUnknownLevel: a state whose limits this binary does not know is refused.
func TestUnknownLevel(t *testing.T) {
	for _, unknown := range []uint32{0, level.Newest + 1} {
		h := headerOf(newMachine(t).fsm.Current())
		h.Level, h.Schema = unknown, unknown
		if err := newRestored().header(h); !errors.Is(err, ErrUnreadable) {
			t.Errorf("a snapshot of level %d: %v", unknown, err)
		}
	}
	h := headerOf(newMachine(t).fsm.Current())
	h.Level = level.Newest
	if err := newRestored().header(h); !errors.Is(err, ErrUnreadable) {
		t.Errorf("a snapshot of an older schema than its level: %v", err)
	}
}

// TestReadsOfAPowerfulUser: a record of a user with as many groups and managed policies
// as AWS's quotas allow depends on all of them.
func TestReadsOfAPowerfulUser(t *testing.T) {
	m := newMachine(t)
	var changes, entities []*fsmpb.Change
	n := 0
	attached := func() (arns []string) {
		for range 10 {
			name := fmt.Sprintf("p%03d", n)
			n++
			changes = append(changes, managedPolicy(testPolicy(name, n))...)
			arns = append(arns, policyARN(name))
		}
		return arns
	}
	user := testUser("ann", 1, func(u *fsmpb.User) { u.Policies = attached() })
	for i := range 10 {
		g := testGroup(fmt.Sprintf("g%d", i), i, func(g *fsmpb.Group) { g.Policies = attached() })
		user.Groups = append(user.Groups, g.Id)
		entities = append(entities, putGroup(g))
	}
	entities = append(entities, putUser(user))
	for some := range slices.Chunk(append(changes, entities...), 10) {
		wantVerdicts(t, m.propose(record(some...)), Accepted)
	}
	r := record()
	for _, kind := range []fsmpb.Kind{fsmpb.Kind_KIND_CLUSTER, fsmpb.Kind_KIND_USER, fsmpb.Kind_KIND_GROUP, fsmpb.Kind_KIND_POLICY} {
		for m := range scan[proto.Message](m.fsm.Current(), kind, nil, nil) {
			id, _ := registry[kind].id(m)
			reads(r, kind, id, *registry[kind].version(m))
		}
	}
	if len(r.Reads) <= 120 {
		t.Fatalf("the record reads only %d objects", len(r.Reads))
	}
	for i := range 8 { // what belongs to a key, a grant, and the like
		reads(r, fsmpb.Kind_KIND_KEY, testKey(byte(i)).Bytes(), 0)
	}
	wantVerdicts(t, m.propose(r), Accepted)
}
