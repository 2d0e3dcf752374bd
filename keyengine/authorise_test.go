package keyengine

import (
	"strings"
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
)

func TestPolicyCache(t *testing.T) {
	text := policy.DefaultKeyPolicy("aws", testAccount)
	doc, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	c := request.NewPolicyCache()
	c.Max = 4 * (len(text) + 1)
	if c.Put(text, doc); c.Get(text) != doc || c.Get(text+" ") != nil || c.Size != len(text) {
		t.Error("a policy is found by another text, or not by its own")
	}
	if c.Put(strings.Clone(text), doc); c.Size != len(text) || len(c.Docs) != 1 {
		t.Error("a policy is held twice")
	}
	for i := range 50 {
		other := text + string(rune('A'+i))
		c.Put(other, doc)
		size := 0
		for held := range c.Docs {
			size += len(held)
		}
		if c.Get(other) != doc || c.Size > c.Max || c.Size != size || len(c.Docs) > 4 {
			t.Fatalf("the cache holds %d policies of %d bytes and counts %d", len(c.Docs), size, c.Size)
		}
	}
}

// TestPoliciesAreParsedOnce: keys with equal policies share what was parsed, and a
// key follows its own when that changes.
func TestPoliciesAreParsedOnce(t *testing.T) {
	r := newRoom(t)
	one, _ := r.newKey()
	two, _ := r.newKey()
	for _, id := range []string{one, two} {
		if _, err := call[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.first.services.Policies.Docs); n != 1 {
		t.Errorf("%d policies are kept for two keys with the same", n)
	}
	deny := r.policyFor(rootStatement, `{"Effect":"Deny","Principal":"*","Action":"kms:Encrypt","Resource":"*"}`)
	must[request.None](r, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &one, Policy: &deny})
	_, err := call[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &one, Plaintext: []byte("x")})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	if _, err := call[kmsapi.EncryptOutput](r, "Encrypt", &kmsapi.EncryptInput{KeyId: &two, Plaintext: []byte("x")}); err != nil {
		t.Errorf("the other key: %v", err)
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
		_, err := call[request.None](r, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &id, Policy: &doc})
		wantError(t, err, kmsapi.ErrMalformedPolicy, "…")
		if err != nil && (!strings.Contains(err.Error(), element) || !strings.Contains(err.Error(), "not supported")) {
			t.Errorf("%s: %v", element, err)
		}
	}
}
