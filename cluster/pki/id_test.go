package pki

import (
	"strings"
	"testing"
)

func TestCheckNodeID(t *testing.T) {
	for _, id := range []string{"a", "7", "node-1", "a--b", strings.Repeat("x", 63)} {
		if err := CheckNodeID(id); err != nil {
			t.Error(err)
		}
	}
	for _, id := range []string{"", "-", "-a", "a-", ".", "..", "a.b", "a/b", "A", "a_b", "a b", "ä", "a\n", strings.Repeat("x", 64)} {
		if CheckNodeID(id) == nil {
			t.Errorf("%q is taken for a node id", id)
		}
	}
}
