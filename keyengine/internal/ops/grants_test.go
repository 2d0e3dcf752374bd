package ops

import (
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Covers reports whether one grant's constraints are at least as strict as another's. It is
// compared with which of some encryption contexts each admits.
func TestChildConstraints(t *testing.T) {
	t.Parallel()
	equals := func(pairs ...string) *kmsapi.GrantConstraints {
		return &kmsapi.GrantConstraints{EncryptionContextEquals: contextOf(pairs...)}
	}
	subset := func(pairs ...string) *kmsapi.GrantConstraints {
		return &kmsapi.GrantConstraints{EncryptionContextSubset: contextOf(pairs...)}
	}
	constraints := []*kmsapi.GrantConstraints{
		nil, equals("a", "1"), equals("a", "1", "b", "2"), equals("A", "1"), equals("a", "1", "A", "1"),
		subset("A", "1", "a", "1"), subset("B", "2"),
		subset("a", "1"), subset("a", "1", "b", "2"), subset("a", "2"),
	}
	contexts := []map[string]string{
		nil, contextOf("a", "1"), contextOf("a", "1", "b", "2"), contextOf("a", "1", "b", "2", "c", "3"), contextOf("a", "1", "c", "3"),
		contextOf("A", "1"), contextOf("a", "1", "A", "1"), contextOf("a", "1", "A", "1", "b", "2"), contextOf("b", "2"), contextOf("a", "2"), contextOf("a", "2", "b", "2"), contextOf("z", "9"),
	}
	for i, p := range constraints {
		for j, c := range constraints {
			parent, child := grantWith(p, "CreateGrant", "Encrypt"), grantWith(c, "Encrypt")
			want := true // a child may admit no context that its parent does not
			for _, ctx := range contexts {
				want = want && (!admits(child, ctx) || admits(parent, ctx))
			}
			if got := request.Covers(parent, child); got != want {
				t.Errorf("Covers(parent %d (%v), child %d (%v)) = %v, want %v", i, p, j, c, got, want)
			}
		}
	}
}

// contextOf returns an encryption context from keys and values in turn.
func contextOf(pairs ...string) map[string]string {
	m := make(map[string]string)
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

func grantWith(c *kmsapi.GrantConstraints, operations ...string) *fsmpb.Grant {
	g := &fsmpb.Grant{Operations: operations}
	if c != nil {
		_ = Constrain(g, c)
	}
	return g
}

func admits(g *fsmpb.Grant, context map[string]string) bool {
	return (&request.RequestContext{Pairs: context}).Admits(g, "kms:Encrypt")
}
