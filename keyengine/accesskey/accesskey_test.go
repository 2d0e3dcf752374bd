package accesskey

import (
	"encoding/base32"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/conclavekms/conclave/fsm"
)

// publicAccount is what public tools tell of an access key id.
func publicAccount(id string) fsm.Account {
	b, err := base32.StdEncoding.DecodeString(id[4:])
	if err != nil {
		return 0
	}
	n := fsm.Account(0)
	for _, c := range b[:6] {
		n = n<<8 | fsm.Account(c)
	}
	return n & 0x7fffffffff80 >> 7
}

// TestAccessKeyIDsOfAWS: the ids and accounts are published ones.
func TestAccessKeyIDsOfAWS(t *testing.T) {
	if kind, a, ok := Parse("ASIAQNZGKIQY56JQ7WML"); !ok || kind != Session || a != 29608264753 {
		t.Errorf("it is %q of %v, %v", kind, a, ok)
	}
	if kind, a, ok := Parse("AKIAY34FZKBOKMUTVV7A"); !ok || kind != LongTerm || a != 609629065308 {
		t.Errorf("it is %q of %v, %v", kind, a, ok)
	}
	for _, id := range []string{
		"AKIAIOSFODNN7EXAMPLE", "AKIAI44QH8DHBEXAMPLE", // from before there were accounts in them
		"", "AKIA", "AIDAQNZGKIQY56JQ7WML", "asiaqnzgkiqy56jq7wml", "ASIAqnzgkiqy56jq7wml", "ASIAQNZGKIQY56JQ7WM1", "ASIAQNZGKIQY56JQ7WM=",
		"ASIAQNZGKIQY56JQ7WMLA", "ASIAQNZGKIQY56JQ7W\nM", "ASIA\nQNZGKIQY56JQ7WML", "AKIA77777777" + strings.Repeat("A", 8),
	} {
		if _, a, ok := Parse(id); ok {
			t.Errorf("%q is of %v", id, a)
		}
	}
}

func TestAccessKeyIDRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := fsm.Account(rapid.Uint64Range(0, 999_999_999_999).Draw(t, "account"))
		var noise [Noise]byte
		copy(noise[:], rapid.SliceOfN(rapid.Byte(), len(noise), len(noise)).Draw(t, "noise"))
		kind := rapid.SampledFrom([]Kind{LongTerm, Session}).Draw(t, "kind")
		id := ID(kind, a, noise)
		k, got, ok := Parse(id)
		if !ok || k != kind || got != a || publicAccount(id) != a {
			t.Fatalf("%s of %v is %q of %v, %v, and by others of %v", id, a, k, got, ok, publicAccount(id))
		}
		noise[0] ^= 1 << rapid.IntRange(0, 6).Draw(t, "bit")
		if ID(kind, a, noise) == id {
			t.Fatal("a bit does not count")
		}
	})
}

// FuzzParse: there is one id of what is read from it.
func FuzzParse(f *testing.F) {
	f.Add("ASIAQNZGKIQY56JQ7WML")
	f.Add("AKIAIOSFODNN7EXAMPLE")
	f.Fuzz(func(t *testing.T, id string) {
		kind, a, ok := Parse(id)
		if !ok {
			return
		}
		b, err := base32.StdEncoding.DecodeString(id[4:])
		if err != nil {
			t.Fatalf("%q was read: %v", id, err)
		}
		noise := [Noise]byte{b[5]}
		copy(noise[1:], b[6:])
		if again := ID(kind, a, noise); again != id {
			t.Fatalf("%q was read, and is written %q", id, again)
		}
	})
}
