package regionid

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// TestRegionsSortAsTheirTexts: encoded Regions can be read again, sort as their texts do,
// and none is a prefix of another.
func TestRegionsSortAsTheirTexts(t *testing.T) {
	regions := []string{"us-east-1", "us-east-2", "us-east", "eu-central-1", "us-isob-east-1", "a", "ab", "abc", "abcd", "-", "0", strings.Repeat("z", 32)}
	for _, a := range regions {
		e := Append(nil, a)
		if got, rest, ok := Cut(append(slices.Clone(e), "rest"...)); !ok || got != a || string(rest) != "rest" || !Valid(a) {
			t.Errorf("%s is read as %s, then %q, %v", a, got, rest, ok)
		}
		for _, b := range regions {
			f := Append(nil, b)
			if bytes.Compare(e, f) != strings.Compare(a, b) || a != b && bytes.HasPrefix(f, e) {
				t.Errorf("%s is encoded as %x and %s as %x", a, e, b, f)
			}
		}
	}
	for _, bad := range []string{"", "EU", "eu_1", strings.Repeat("z", 33)} {
		if _, _, ok := Cut(Append(nil, bad)); ok && bad != "" || Valid(bad) {
			t.Errorf("%q is a Region", bad)
		}
	}
}
