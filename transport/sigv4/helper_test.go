package sigv4

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	testKeyID  = "AKIDEXAMPLE"
	testSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	testRegion = "eu-test-1"
)

var testTime = time.Date(2026, 11, 23, 12, 36, 0, 0, time.UTC)

// kms is a verifier such as that of the AWS face.
var kms = NewVerifier("kms", "X-Amz-Target")

var sdkCredentials = aws.Credentials{AccessKeyID: testKeyID, SecretAccessKey: testSecret}

// newRequest returns a client's request for an operation, not yet signed.
func newRequest(operation string, body []byte) *http.Request {
	r := httptest.NewRequest("POST", "/", bytes.NewReader(body))
	r.Host = "kms.test:8443"
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", "TrentService."+operation)
	return r
}

func hashOf(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// presign presigns a request with the SDK's signer, and returns the request that its
// holder sends.
func presign(t testing.TB, operation, hash string, body []byte, at time.Time, expires string) *http.Request {
	t.Helper()
	r := newRequest(operation, body)
	r.URL.RawQuery = url.Values{"X-Amz-Expires": {expires}}.Encode()
	uri, header, err := v4.NewSigner().PresignHTTP(context.Background(), sdkCredentials, r, hash, "kms", testRegion, at)
	if err != nil {
		t.Fatal(err)
	}
	p := httptest.NewRequest("POST", uri, bytes.NewReader(body))
	p.Host, p.Header = r.Host, header
	return p
}

// verify verifies a request as a server that has the secret does.
func verify(v *Verifier, r *http.Request, body []byte, secret string, now time.Time) error {
	var c Claim
	if err := v.Read(&c, r, now); err != nil {
		return err
	}
	p, canonical, err := c.Proof(nil, r, body)
	if err != nil {
		return err
	}
	var key [KeySize]byte
	p.Derive(key[:], []byte(secret))
	if !p.WellFormed() || !p.SignedBy(key[:]) {
		return Mismatch(canonical, &p)
	}
	return nil
}
