package form

import (
	"slices"
	"strings"
	"testing"
)

// A URI has one spelling, and hostile ones match nothing.
func TestPatternsOf(t *testing.T) {
	want := []string{"spiffe://a.b/ns/x/sa/y", "spiffe://a.b/ns/x/sa/*", "spiffe://a.b/ns/x/*", "spiffe://a.b/ns/*", "spiffe://a.b/*"}
	if got := PatternsOf(want[0]); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := PatternsOf("conclave://operator/a@b"); !slices.Equal(got, []string{"conclave://operator/a@b"}) {
		t.Errorf("of an operator: got %q", got)
	}
	for _, uri := range []string{
		"", "spiffe", "spiffe://", "spiffe://a", "spiffe://a/", "spiffe://a//x", "spiffe://a/x/", "spiffe://a/./x", "spiffe://a/../x", "spiffe://A/x", "SPIFFE://a/x",
		"spiffe://a/%61", "spiffe://a/x%2fy", "spiffe://a/\u00e4", "spiffe://\u0430/x", "spiffe://a:1/x", "spiffe://u@a/x", "spiffe://a/x?y", "spiffe://a/x#y", "spiffe://a/*", "spiffe://a/x@y",
		"conclave://node/n1", "conclave://node/n1/*", "conclave://other/x", "conclave://operator/a/b", "spiffe://a" + strings.Repeat("/x", 17), "1x://a/b", "://a/b", "spiffe://a/x\x00",
	} {
		if got := PatternsOf(uri); len(got) != 0 {
			t.Errorf("%q: got %q, want nothing", uri, got)
		}
	}
	// A long URI is matched only by its short beginnings.
	if got := PatternsOf("spiffe://a/x/" + strings.Repeat("y", 600)); !slices.Equal(got, []string{"spiffe://a/x/*", "spiffe://a/*"}) {
		t.Errorf("of a long URI: got %q", got)
	}
}

func TestIsPattern(t *testing.T) {
	for _, p := range []string{"*", "spiffe://*", "spiffe://*/x", "spiffe://a*", "spiffe://a/x*", "spiffe://a/*/x", "spiffe://a/**", "spiffe://a/x/*/*", "conclave://*", "conclave://node/*", "conclave://operator/*", "conclave://operator/x/*"} {
		if IsPattern(p) {
			t.Errorf("%q is accepted", p)
		}
	}
	for _, p := range []string{"spiffe://a/*", "spiffe://a/x", "spiffe://a/x/*", "https://host/x+y", "conclave://operator/ann"} {
		if !IsPattern(p) {
			t.Errorf("%q is refused", p)
		}
	}
}
