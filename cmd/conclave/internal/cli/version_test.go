package cli

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestVersion: the release is that of the file VERSION, of which the names of released files
// are made, and the newest in the changelog.
func TestVersion(t *testing.T) {
	b, err := os.ReadFile("../../../../VERSION")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(b)); got != Release {
		t.Errorf("VERSION has %s, and this package %s", got, Release)
	}
	if b, err = os.ReadFile("../../../../CHANGELOG.md"); err != nil {
		t.Fatal(err)
	}
	if newest := regexp.MustCompile(`(?m)^## ([0-9][0-9.]*)`).FindSubmatch(b); newest == nil || string(newest[1]) != Release {
		t.Errorf("the newest release in the changelog is %q, want %s", newest, Release)
	}
	if Version != Release && !strings.HasPrefix(Version, Release+"+") {
		t.Errorf("the version is %s", Version)
	}
}
