package request

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/conclavekms/conclave/fsm"
)

func TestKeyIDText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		id := fsm.KeyID{ID: [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))}
		multi := rapid.Bool().Draw(t, "multi-Region")
		got, m, ok := ParseKeyID(FormatKeyID(id.ID, multi))
		if !ok || got != id.ID || m != multi {
			t.Fatalf("ParseKeyID(%s) = %x, %v, %v", FormatKeyID(id.ID, multi), got, m, ok)
		}
	})
}

// A key id can be written in one way only.
func FuzzParseKeyID(f *testing.F) {
	f.Add("12345678-1234-1234-1234-1234567890ab")
	f.Add("mrk-1234567890abcdef1234567890abcdef")
	f.Add("mrk-1234-234-1234-1234-1234567890ab")
	f.Fuzz(func(t *testing.T, s string) {
		if id, multi, ok := ParseKeyID(s); ok && FormatKeyID(id, multi) != s {
			t.Errorf("ParseKeyID accepts %q for %s", s, FormatKeyID(id, multi))
		}
	})
}
