package awsapi

import (
	"errors"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/transport/sigv4"
)

// The messages for callers.
const (
	mismatchText = "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
	busyText     = "The node has too many requests to answer. Try again."
	badTokenText = "The security token included in the request is invalid."
)

const goodSig = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"

// header builds an Authorization header from its parts; "-" leaves one out.
func header(credential, signed, sig string) string {
	var parts []string
	for _, p := range [][2]string{{"Credential", credential}, {"SignedHeaders", signed}, {"Signature", sig}} {
		if p[1] != "-" {
			parts = append(parts, p[0]+"="+p[1])
		}
	}
	return sigv4.Algorithm + " " + strings.Join(parts, ", ")
}

func TestPayloadHash(t *testing.T) {
	f := newFixture(t, nil)
	for _, tc := range []struct{ name, value, message string }{
		{"unsigned without TLS", "UNSIGNED-PAYLOAD", "An unsigned payload is taken over TLS only: 'X-Amz-Content-Sha256' must be the SHA-256 of the body."},
		{"streaming", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "The payload must be signed: 'X-Amz-Content-Sha256' must be the SHA-256 of the body."},
		{"other", hashOf([]byte("x")), "The value passed as x-amz-content-sha256 does not match the SHA-256 of the body that was received."},
		{"upper case", strings.ToUpper(hashOf([]byte("{}"))), "The value passed as x-amz-content-sha256 does not match the SHA-256 of the body that was received."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRequest("EnableKey", []byte("{}"))
			r.Header.Set("X-Amz-Content-Sha256", tc.value)
			sign(t, r, []byte("{}"), testTime)
			err := check(f.Handler, r)
			ref, ok := errors.AsType[*sigv4.Error](err)
			if !ok || ref.Message != tc.message {
				t.Errorf("got %v, want %s", err, tc.message)
			}
		})
	}
	if n := f.engine.proofs.Load(); n != 0 {
		t.Errorf("%d proofs reached the engine", n)
	}
}
