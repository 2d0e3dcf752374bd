package keyengine

import (
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
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

// A policy that locks out its author is refused, also if that depends on a condition. So is
// one that names a principal which does not exist.
func TestRefusedPolicy(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	id, _ := c.newKey()
	for statement, message := range map[string]string{
		`{"Effect":"Deny","Principal":"*","Action":"*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"false"}}}`:             policy.LockoutMessage,
		`{"Effect":"Deny","Principal":"*","Action":"*","Resource":"arn:aws:kms:*:*:key/*","Condition":{"Null":{"aws:username":"true"}}}`: policy.LockoutMessage,
		`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/nobody"},"Action":"*","Resource":"*"}`:                     policy.InvalidPrincipalMessage,
	} {
		doc := policyDocument(rootStatement, statement)
		_, err := call[request.None](c, "PutKeyPolicy", &kmsapi.PutKeyPolicyInput{KeyId: &id, Policy: &doc})
		wantError(t, err, kmsapi.ErrMalformedPolicy, message)
	}
}
