package keyengine

import (
	"strings"
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

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
	if n := r.first.services.Policies.Len(); n != 1 {
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
