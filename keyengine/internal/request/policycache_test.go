package request

import (
	"strings"
	"testing"

	"github.com/conclavekms/conclave/policy"
)

func TestPolicyCache(t *testing.T) {
	text := policy.DefaultKeyPolicy("aws", "111122223333")
	doc, err := policy.Parse(policy.KeyPolicy, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	c := NewPolicyCache()
	c.max = 4 * (len(text) + 1)
	if c.put(text, doc); c.get(text) != doc || c.get(text+" ") != nil || c.size != len(text) {
		t.Error("a policy is found by another text, or not by its own")
	}
	if c.put(strings.Clone(text), doc); c.size != len(text) || len(c.docs) != 1 {
		t.Error("a policy is held twice")
	}
	for i := range 50 {
		other := text + string(rune('A'+i))
		c.put(other, doc)
		size := 0
		for held := range c.docs {
			size += len(held)
		}
		if c.get(other) != doc || c.size > c.max || c.size != size || len(c.docs) > 4 {
			t.Fatalf("the cache holds %d policies of %d bytes and counts %d", len(c.docs), size, c.size)
		}
	}
}
