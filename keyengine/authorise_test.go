package keyengine

import (
	"strings"
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// Keys with equal policies share the parsed policy. When the policy of one changes, the others
// keep theirs.
func TestPoliciesAreParsedOnce(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	one, _ := c.newKey()
	two, _ := c.newKey()
	for _, id := range []string{one, two} {
		if _, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &id, Plaintext: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	if n := c.engine.services.Policies.Len(); n != 1 {
		t.Errorf("%d parsed policies are cached for two keys with equal policies, want 1", n)
	}
	deny := policyDocument(rootStatement, `{"Effect":"Deny","Principal":"*","Action":"kms:Encrypt","Resource":"*"}`)
	must[request.None](c, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &one, Policy: &deny})
	_, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &one, Plaintext: []byte("x")})
	wantError(t, err, kmsapi.ErrAccessDenied, "…")
	if _, err := call[kmsapi.EncryptOutput](c, "Encrypt", &kmsapi.EncryptInput{KeyId: &two, Plaintext: []byte("x")}); err != nil {
		t.Errorf("with the key whose policy did not change: %v", err)
	}
}

// The refusal of a policy names the element that is not supported.
func TestUnsupportedPolicy(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	for element, statement := range map[string]string{
		"Condition": `{"Effect":"Deny","Principal":"*","Action":"*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"false"}}}`,
		"NotAction": `{"Effect":"Deny","Principal":"*","NotAction":"kms:*","Resource":"*"}`,
		"Service":   `{"Effect":"Allow","Principal":{"Service":"s3.amazonaws.com"},"Action":"*","Resource":"*"}`,
	} {
		doc := policyDocument(rootStatement, statement)
		_, err := call[request.None](c, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &id, Policy: &doc})
		wantError(t, err, kmsapi.ErrMalformedPolicy, "…")
		if err != nil && (!strings.Contains(err.Error(), element) || !strings.Contains(err.Error(), "not supported")) {
			t.Errorf("%s: got error %v, want one that says it is not supported", element, err)
		}
	}
}
