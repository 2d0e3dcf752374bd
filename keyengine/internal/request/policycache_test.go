package request

import (
	"errors"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/policy"
)

func TestPolicyCache(t *testing.T) {
	text := policy.DefaultKeyPolicy("aws", "111122223333")
	doc, err := policy.Parse(policy.KeyPolicy, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	c := NewPolicyCache()
	of := func(text string) policyText { return policyText{policy.KeyPolicy, text, ""} }
	c.max = 4 * (len(text) + 1)
	if c.put(of(text), doc); c.docs[of(text)] != doc || c.docs[of(text+" ")] != nil || c.docs[policyText{policy.IdentityPolicy, text, ""}] != nil || c.size != len(text) {
		t.Error("a policy is found by another text or kind, or not by its own")
	}
	if c.put(of(strings.Clone(text)), doc); c.size != len(text) || len(c.docs) != 1 {
		t.Error("a policy is held twice")
	}
	for i := range 50 {
		other := text + string(rune('A'+i))
		c.put(of(other), doc)
		size := 0
		for held := range c.docs {
			size += len(held.text)
		}
		if c.docs[of(other)] != doc || c.size > c.max || c.size != size || len(c.docs) > 4 {
			t.Fatalf("the cache holds %d policies of %d bytes and counts %d", len(c.docs), size, c.size)
		}
	}
}

// The same text is another policy if its names mean others, and none if one of them means
// nobody.
func TestPolicyCacheKnowsBindings(t *testing.T) {
	const text = `{"Statement":{"Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111122223333:user/alice","AIDAAAAAAAAAAAAAAAA9"]},"Action":"kms:*","Resource":"*"}}`
	c, what := NewPolicyCache(), func() string { return "policy" }
	of := func(id string) []*fsmpb.Binding {
		return []*fsmpb.Binding{{Name: "arn:aws:iam::111122223333:user/alice", Id: id}}
	}
	for range 2 {
		for _, id := range []string{"AIDAAAAAAAAAAAAAAAA1", "AIDAAAAAAAAAAAAAAAA2"} {
			doc, err := c.bound(policy.KeyPolicy, text, of(id), what)
			if err != nil || doc.Principals()[0].ID != id {
				t.Fatalf("bound to %s: got %+v, %v", id, doc.Principals(), err)
			}
		}
	}
	if c.Len() != 2 {
		t.Errorf("%d policies are cached, want 2", c.Len())
	}
	for range 2 {
		if _, err := c.bound(policy.KeyPolicy, text, nil, what); !errors.Is(err, policy.ErrInvalidPrincipal) {
			t.Errorf("without a binding: got error %v, want ErrInvalidPrincipal", err)
		}
	}
	bindings := of("AIDAAAAAAAAAAAAAAAA1")
	if n := testing.AllocsPerRun(100, func() { _, _ = c.bound(policy.KeyPolicy, text, bindings, what) }); n > 0 {
		t.Errorf("a cached policy costs %v allocations", n)
	}
}

// TestOwnersAreBounded: what is remembered of users and roles is bounded, however many there are.
func TestOwnersAreBounded(t *testing.T) {
	c := NewPolicyCache()
	user, f := new(fsmpb.User), new(foundRules)
	c.owners.Put(user, f)
	if got, _ := c.owners.Get(user); got != f {
		t.Error("nothing is remembered of a user")
	}
	for range 2 * maxOwners {
		c.owners.Put(new(fsmpb.User), f)
	}
	if n := c.owners.Len(); n != maxOwners {
		t.Errorf("%d users are remembered, want %d", n, maxOwners)
	}
}
