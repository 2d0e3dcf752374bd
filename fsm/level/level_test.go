package level

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// TestLimitsAreFrozen: a release with another limit for a level would come to other
// verdicts than other nodes, and thus to another state.
func TestLimitsAreFrozen(t *testing.T) {
	of1 := Limits{
		Reads: 256, Changes: 16, Uses: 4, Body: 65563, Policy: 32768, Entity: 262144, List: 256, MinWaiting: 7, MaxWaiting: 30, Unsettled: 1024,
	}
	for l, want := range map[uint32]Limits{1: of1, 2: of1} {
		if got := *LimitsAt(l); got != want {
			t.Errorf("limits of level %d: %+v, they were %+v", l, got, want)
		}
	}
	for l := uint32(Oldest); l <= Newest; l++ {
		if got := LimitsAt(l); got.Reads == 0 || got.Unsettled == 0 || got.Body == 0 || got.Body > auditlog.MaxBody {
			t.Errorf("limits of level %d: %+v", l, got)
		}
	}
}

// TestNoFormIsNewerThanTheRelease: a form that no level of this release allows could never
// be written.
func TestNoFormIsNewerThanTheRelease(t *testing.T) {
	for name, l := range forms.Load().since {
		if l > Newest {
			t.Errorf("%s needs level %d, and the release knows %v", name, l, Known)
		}
	}
}

// TestOf: the level of a message is that of the newest form in it, at any depth.
func TestOf(t *testing.T) {
	user := func(tags ...*fsmpb.Tag) *fsmpb.Change {
		return &fsmpb.Change{Change: &fsmpb.Change_PutUser{PutUser: &fsmpb.User{Name: "ann", Tags: tags}}}
	}
	key := &fsmpb.Change{Change: &fsmpb.Change_PutKey{PutKey: &fsmpb.Key{State: fsmpb.KeyState_KEY_STATE_DISABLED}}}
	tagged := user(&fsmpb.Tag{Key: "a", Value: "b"})
	for _, m := range []*fsmpb.Change{user(), key, tagged} {
		if got := Of(m); got != 1 {
			t.Errorf("%v needs level %d", m, got)
		}
	}
	for name, c := range map[string]struct {
		newer map[protoreflect.FullName]uint32
		want  map[*fsmpb.Change]uint32
	}{
		"a change": {
			map[protoreflect.FullName]uint32{"conclave.fsm.v1.Change.put_user": 2},
			map[*fsmpb.Change]uint32{tagged: 2, user(): 2, key: 1},
		},
		"a field of a message in a list": {
			map[protoreflect.FullName]uint32{"conclave.fsm.v1.Tag.value": 3},
			map[*fsmpb.Change]uint32{tagged: 3, user(): 1, user(&fsmpb.Tag{Key: "a"}): 1, key: 1},
		},
		"a value of an enum": {
			map[protoreflect.FullName]uint32{"conclave.fsm.v1.KEY_STATE_DISABLED": 2},
			map[*fsmpb.Change]uint32{tagged: 1, key: 2},
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer Pretend(c.newer)()
			for m, want := range c.want {
				if got := Of(m); got != want {
					t.Errorf("%v needs level %d, want %d", m, got, want)
				}
			}
		})
	}
	undo := Pretend(map[protoreflect.FullName]uint32{"conclave.fsm.v1.KIND_OIDC_PROVIDER": 2})
	if a, b := OfKind(fsmpb.Kind_KIND_OIDC_PROVIDER), OfKind(fsmpb.Kind_KIND_KEY); a != 2 || b != 1 {
		t.Errorf("kinds need levels %d and %d, want 2 and 1", a, b)
	}
	undo()
	if got := OfKind(fsmpb.Kind_KIND_OIDC_PROVIDER); got != 1 {
		t.Errorf("the kind needs level %d afterwards", got)
	}
}

// TestRange: an error says which of the two has to be upgraded.
func TestRange(t *testing.T) {
	r := Range{2, 3}
	for schema, want := range map[uint32]string{
		1: "schema 1, and this release knows schemas 2 to 3: upgrade by one release at a time",
		4: "schema 4, and this release knows schemas 2 to 3: a newer release wrote it",
	} {
		if err := r.Check(schema); r.Has(schema) || err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("schema %d: %v, want %q", schema, err, want)
		}
	}
	for _, schema := range []uint32{2, 3} {
		if err := r.Check(schema); !r.Has(schema) || err != nil {
			t.Errorf("schema %d: %v", schema, err)
		}
	}
}

// TestSharedReads: the level that decoding and encoding use is the one in the schema.
func TestSharedReads(t *testing.T) {
	for _, m := range []protoreflect.ProtoMessage{new(fsmpb.Batch), new(fsmpb.Record)} {
		fd := m.ProtoReflect().Descriptor().Fields().ByName("shared_reads")
		if got := forms.Load().since[fd.FullName()]; got != SharedReads {
			t.Errorf("%s has level %d, want %d", fd.FullName(), got, SharedReads)
		}
	}
}
