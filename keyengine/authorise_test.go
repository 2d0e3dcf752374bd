package keyengine

import (
	"strings"
	"testing"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/policy"
)

func TestPolicyCache(t *testing.T) {
	doc := func() *policy.Document {
		d, err := policy.Parse([]byte(policy.DefaultKeyPolicy("aws", testAccount)))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	c := newPolicyCache()
	c.max = 100
	id := fsm.KeyID{Region: testRegion}
	first, second := doc(), doc()
	if c.put(id, cachedPolicy{5, first, 10}); c.get(id, 5) != first || c.get(id, 4) != nil || c.get(id, 6) != nil {
		t.Error("a policy is found under another version, or not under its own")
	}
	if c.put(id, cachedPolicy{7, second, 20}); c.get(id, 7) != second || c.size != 20 {
		t.Error("a newer policy does not take the place of the older")
	}
	if c.put(id, cachedPolicy{5, first, 10}); c.get(id, 7) != second {
		t.Error("an older policy took the place of the newer")
	}
	for i := range 50 {
		id.ID[0] = byte(i)
		c.put(id, cachedPolicy{uint64(10 + i), first, 30})
		if c.get(id, uint64(10+i)) == nil || c.size > c.max || len(c.docs) > 4 {
			t.Fatalf("the cache holds %d policies of %d bytes", len(c.docs), c.size)
		}
	}
}

// TestUnsupportedPolicy: the refusal says what is not supported.
func TestUnsupportedPolicy(t *testing.T) {
	r := newRoom(t)
	id, _ := r.newKey()
	for element, statement := range map[string]string{
		"Condition": `{"Effect":"Deny","Principal":"*","Action":"*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"false"}}}`,
		"NotAction": `{"Effect":"Deny","Principal":"*","NotAction":"kms:*","Resource":"*"}`,
		"Service":   `{"Effect":"Allow","Principal":{"Service":"s3.amazonaws.com"},"Action":"*","Resource":"*"}`,
	} {
		doc := r.policyFor(rootStatement, statement)
		_, err := call[none](r, "PutKeyPolicy", &PutKeyPolicyInput{KeyId: &id, Policy: &doc})
		wantError(t, err, ErrMalformedPolicy, "…")
		if err != nil && (!strings.Contains(err.Error(), element) || !strings.Contains(err.Error(), "not supported")) {
			t.Errorf("%s: %v", element, err)
		}
	}
}
