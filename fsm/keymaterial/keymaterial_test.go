package keymaterial

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// TestWrappedAgain: material may be wrapped again by a newer generation of the keyring, as it
// is otherwise, and is not lost by that.
func TestWrappedAgain(t *testing.T) {
	has := func(g uint32) bool { return g <= 3 }
	for _, origin := range []string{"AWS_KMS", External} {
		was := &fsmpb.Key{Origin: origin, Materials: []*fsmpb.Material{
			{Id: make([]byte, 16), MaterialId: []byte("m"), Generation: 2, Wrapped: []byte("wrapped"), Created: 1, ValidTo: 9},
		}}
		if origin != External {
			was.Materials[0].ValidTo = 0
		}
		for name, tt := range map[string]struct {
			edit       func(*fsmpb.Material)
			legal, has bool
		}{
			"as it was":                {func(*fsmpb.Material) {}, true, true},
			"by a newer generation":    {func(m *fsmpb.Material) { m.Generation, m.Wrapped = 3, []byte("WRAPPED") }, true, true},
			"by the same generation":   {func(m *fsmpb.Material) { m.Wrapped = []byte("WRAPPED") }, false, false},
			"by an older generation":   {func(m *fsmpb.Material) { m.Generation, m.Wrapped = 1, []byte("WRAPPED") }, false, false},
			"by one that there is not": {func(m *fsmpb.Material) { m.Generation, m.Wrapped = 4, []byte("WRAPPED") }, false, true},
			"longer":                   {func(m *fsmpb.Material) { m.Generation, m.Wrapped = 3, []byte("WRAPPED!") }, false, true},
			"nothing":                  {func(m *fsmpb.Material) { m.Generation, m.Wrapped = 3, nil }, false, false},
			"and valid for longer":     {func(m *fsmpb.Material) { m.Generation, m.Wrapped, m.ValidTo = 3, []byte("WRAPPED"), 99 }, origin == External, true},
			"of another key":           {func(m *fsmpb.Material) { m.Generation, m.Wrapped, m.MaterialId = 3, []byte("WRAPPED"), []byte("x") }, false, true},
		} {
			n := proto.CloneOf(was)
			tt.edit(n.Materials[0])
			if broken := Check(was, n, has); (broken == "") != tt.legal {
				t.Errorf("%s, %s: got %q", origin, name, broken)
			}
			if lost := Lost(was, n); lost == tt.has {
				t.Errorf("%s, %s: it is lost: %v", origin, name, lost)
			}
		}
	}
}
