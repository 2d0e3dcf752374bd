package awsapi

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport"
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
	return algorithm + " " + strings.Join(parts, ", ")
}

func TestReadAuthorization(t *testing.T) {
	const (
		cred   = "AKIDEXAMPLE/20261123/eu-test-1/kms/aws4_request"
		signed = "host;x-amz-date;x-amz-target"
	)
	now := testTime.Format(amzFormat)
	incomplete, invalid := transport.ErrIncompleteSignature.Code, keyengine.ErrInvalidSignature.Code
	unknown, none := keyengine.ErrUnrecognizedClient.Code, transport.ErrMissingAuthentication.Code
	const badSigned = "SignedHeaders must be at most 64 different header names in lower case and in alphabetical order."
	const badDate = "Date must be in ISO-8601 'basic format', once."

	for _, tc := range []struct {
		name    string
		auth    []string
		more    http.Header
		code    keyengine.Code
		message string
		reason  string
	}{
		{name: "good", auth: []string{header(cred, signed, goodSig)}},
		{name: "no spaces", auth: []string{strings.ReplaceAll(header(cred, signed, goodSig), ", ", ",")}},
		{name: "other order", auth: []string{algorithm + " Signature=" + goodSig + ",SignedHeaders=" + signed + ", Credential=" + cred}},
		{name: "5 min late", auth: []string{header(cred, signed, goodSig)}, more: http.Header{"X-Amz-Date": {testTime.Add(-5 * time.Minute).Format(amzFormat)}}},
		{name: "5 min early", auth: []string{header(cred, signed, goodSig)}, more: http.Header{"X-Amz-Date": {testTime.Add(5 * time.Minute).Format(amzFormat)}}},
		{name: "Date alone", auth: []string{header(cred, "date;host;x-amz-target", goodSig)},
			more: http.Header{"X-Amz-Date": nil, "Date": {testTime.Format(http.TimeFormat)}}},
		{name: "Date in ISO form", auth: []string{header(cred, "date;host;x-amz-target", goodSig)},
			more: http.Header{"X-Amz-Date": nil, "Date": {now}}},

		{"nothing", nil, nil, none, "Missing Authentication Token", reasonMissing},
		{"empty", []string{""}, nil, none, "Missing Authentication Token", reasonMissing},
		{"bearer", []string{"Bearer abc"}, nil, none, "Missing Authentication Token", reasonMissing},
		{"twice", []string{header(cred, signed, goodSig), header(cred, signed, goodSig)}, nil, incomplete, "The request has more than one Authorization header.", reasonMalformed},
		{"sigv4a", []string{"AWS4-ECDSA-P256-SHA256 Credential=x"}, nil, incomplete, "The signature's algorithm is not supported. Sign the request with AWS4-HMAC-SHA256.", reasonUnsupported},
		{"streaming hmac", []string{"AWS4-HMAC-SHA256-PAYLOAD Credential=x"}, nil, incomplete, "The signature's algorithm is not supported. Sign the request with AWS4-HMAC-SHA256.", reasonUnsupported},
		{"no parameters", []string{algorithm}, nil, incomplete, "A part of the Authorization header is not a valid key=value pair (missing equal-sign).", reasonMalformed},
		{"no signature", []string{header(cred, signed, "-")}, nil, incomplete, "Authorization header requires 'Signature' parameter.", reasonMalformed},
		{"only signature", []string{header("-", "-", goodSig)}, nil, incomplete, "Authorization header requires 'Credential' parameter. Authorization header requires 'SignedHeaders' parameter.", reasonMalformed},
		{"empty credential", []string{header("", signed, goodSig)}, nil, incomplete, "Authorization header requires 'Credential' parameter.", reasonMalformed},
		{"credential twice", []string{header(cred, signed, goodSig) + ",Credential=" + cred}, nil, incomplete, "Authorization header has the 'Credential' parameter more than once.", reasonMalformed},
		{"unknown parameter", []string{header(cred, signed, goodSig) + ",X=1"}, nil, incomplete, "Authorization header has a parameter other than 'Credential', 'SignedHeaders' and 'Signature'.", reasonMalformed},
		{"trailing comma", []string{header(cred, signed, goodSig) + ","}, nil, incomplete, "A part of the Authorization header is not a valid key=value pair (missing equal-sign).", reasonMalformed},
		{"short signature", []string{header(cred, signed, goodSig[:63])}, nil, invalid, mismatchText, reasonSignature},
		{"upper-case signature", []string{header(cred, signed, strings.ToUpper(goodSig))}, nil, invalid, mismatchText, reasonSignature},
		{"signature not hex", []string{header(cred, signed, goodSig[:63]+"g")}, nil, invalid, mismatchText, reasonSignature},
		{"four elements", []string{header("AKIDEXAMPLE/20261123/eu-test-1/kms", signed, goodSig)}, nil, incomplete, unreadableKeyText, reasonMalformed},
		{"six elements", []string{header("AK/ID/20261123/eu-test-1/kms/aws4_request", signed, goodSig)}, nil, incomplete, unreadableKeyText, reasonMalformed},
		{"key id with odd bytes", []string{header("AK%00/20261123/eu-test-1/kms/aws4_request", signed, goodSig)}, nil, unknown, badTokenText, reasonUnknownKey},
		{"key id too long", []string{header(strings.Repeat("A", 129)+"/20261123/eu-test-1/kms/aws4_request", signed, goodSig)}, nil, unknown, badTokenText, reasonUnknownKey},
		{"no key id", []string{header("/20261123/eu-test-1/kms/aws4_request", signed, goodSig)}, nil, unknown, badTokenText, reasonUnknownKey},
		{"terminator", []string{header("AKIDEXAMPLE/20261123/eu-test-1/kms/aws5_request", signed, goodSig)}, nil, invalid, "Credential should be scoped with a valid terminator: 'aws4_request'.", reasonScope},
		{"service", []string{header("AKIDEXAMPLE/20261123/eu-test-1/s3/aws4_request", signed, goodSig)}, nil, invalid, "Credential should be scoped to correct service: 'kms'.", reasonScope},
		{"region", []string{header("AKIDEXAMPLE/20261123/EU_1/kms/aws4_request", signed, goodSig)}, nil, invalid, "Credential should be scoped to a valid region.", reasonScope},
		{"no region", []string{header("AKIDEXAMPLE/20261123//kms/aws4_request", signed, goodSig)}, nil, invalid, "Credential should be scoped to a valid region.", reasonScope},
		{"scope of another day", []string{header("AKIDEXAMPLE/20261122/eu-test-1/kms/aws4_request", signed, goodSig)}, nil, invalid,
			"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: expected '20261123', from '20261123T123600Z'.", reasonScope},

		{"no date", []string{header(cred, "host", goodSig)}, http.Header{"X-Amz-Date": nil}, incomplete,
			"Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.", reasonMalformed},
		{"bad date", []string{header(cred, signed, goodSig)}, http.Header{"X-Amz-Date": {"yesterday"}}, incomplete, badDate, reasonMalformed},
		{"date with fraction", []string{header(cred, signed, goodSig)}, http.Header{"X-Amz-Date": {"20261123T123600.5Z"}}, incomplete, badDate, reasonMalformed},
		{"two dates", []string{header(cred, signed, goodSig)}, http.Header{"X-Amz-Date": {now, now}}, incomplete, badDate, reasonMalformed},
		{"expired", []string{header(cred, signed, goodSig)}, http.Header{"X-Amz-Date": {testTime.Add(-301 * time.Second).Format(amzFormat)}}, invalid,
			"Signature expired: 20261123T123059Z is now earlier than 20261123T123100Z (20261123T123600Z - 5 min.)", reasonClock},
		{"not yet", []string{header(cred, signed, goodSig)}, http.Header{"X-Amz-Date": {testTime.Add(301 * time.Second).Format(amzFormat)}}, invalid,
			"Signature not yet current: 20261123T124101Z is still later than 20261123T124100Z (20261123T123600Z + 5 min.)", reasonClock},

		{"host unsigned", []string{header(cred, "x-amz-date;x-amz-target", goodSig)}, nil, invalid, "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.", reasonUnsigned},
		{"date unsigned", []string{header(cred, "host;x-amz-target", goodSig)}, nil, invalid, "'X-Amz-Date' must be a 'SignedHeader' in the AWS Authorization.", reasonUnsigned},
		{"target unsigned", []string{header(cred, "host;x-amz-date", goodSig)}, nil, invalid, "'X-Amz-Target' must be a 'SignedHeader' in the AWS Authorization.", reasonUnsigned},
		{"Date unsigned", []string{header(cred, "host;x-amz-target", goodSig)}, http.Header{"X-Amz-Date": nil, "Date": {now}}, invalid,
			"'Date' must be a 'SignedHeader' in the AWS Authorization.", reasonUnsigned},
		{"hash unsigned", []string{header(cred, signed, goodSig)}, http.Header{"X-Amz-Content-Sha256": {"x"}}, invalid,
			"'X-Amz-Content-Sha256' must be a 'SignedHeader' in the AWS Authorization.", reasonUnsigned},
		{"upper case names", []string{header(cred, "Host;x-amz-date;x-amz-target", goodSig)}, nil, invalid, badSigned, reasonMalformed},
		{"unordered names", []string{header(cred, "x-amz-date;host;x-amz-target", goodSig)}, nil, invalid, badSigned, reasonMalformed},
		{"name twice", []string{header(cred, "host;host;x-amz-date;x-amz-target", goodSig)}, nil, invalid, badSigned, reasonMalformed},
		{"empty name", []string{header(cred, ";host;x-amz-date;x-amz-target", goodSig)}, nil, invalid, badSigned, reasonMalformed},
		{"too many names", []string{header(cred, manyNames(65), goodSig)}, nil, invalid, badSigned, reasonMalformed},
		{"session token", []string{header(cred, "host;x-amz-date;x-amz-security-token;x-amz-target", goodSig)}, http.Header{"X-Amz-Security-Token": {"t"}}, unknown, badTokenText, reasonToken},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRequest("Encrypt", nil)
			r.Header.Set("X-Amz-Date", now)
			r.Header["Authorization"] = tc.auth
			if tc.auth == nil {
				delete(r.Header, "Authorization")
			}
			for k, v := range tc.more {
				if r.Header[k] = v; v == nil {
					delete(r.Header, k)
				}
			}
			var a authorization
			err := a.read(r, testTime)
			if tc.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				if a.accessKeyID != "AKIDEXAMPLE" || a.date != "20261123" || a.region != "eu-test-1" {
					t.Errorf("got %+v", a)
				}
				return
			}
			ref, ok := errors.AsType[*refusal](err)
			if !ok {
				t.Fatalf("got %v, want a refusal", err)
			}
			if ref.err.Code != tc.code || ref.err.Message != tc.message || ref.reason != tc.reason {
				t.Errorf("got  %s (%s)\nwant %s: %s (%s)", ref.err, ref.reason, tc.code, tc.message, tc.reason)
			}
		})
	}
}

func manyNames(n int) string {
	names := make([]string, n)
	for i := range names {
		names[i] = "a" + strings.Repeat("b", i)
	}
	return strings.Join(names, ";")
}

func TestPayloadHash(t *testing.T) {
	f := newFixture(t, nil)
	for _, tc := range []struct{ name, value, message string }{
		{"unsigned", "UNSIGNED-PAYLOAD", "The payload must be signed: 'X-Amz-Content-Sha256' must be the SHA-256 of the body."},
		{"streaming", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "The payload must be signed: 'X-Amz-Content-Sha256' must be the SHA-256 of the body."},
		{"other", hashOf([]byte("x")), "The value passed as x-amz-content-sha256 does not match the SHA-256 of the body that was received."},
		{"upper case", strings.ToUpper(hashOf([]byte("{}"))), "The value passed as x-amz-content-sha256 does not match the SHA-256 of the body that was received."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRequest("EnableKey", []byte("{}"))
			r.Header.Set("X-Amz-Content-Sha256", tc.value)
			sign(t, r, []byte("{}"), testTime)
			err := check(f.Handler, r)
			ref, ok := errors.AsType[*refusal](err)
			if !ok || ref.err.Message != tc.message {
				t.Errorf("got %v, want %s", err, tc.message)
			}
		})
	}
	if n := f.engine.proofs.Load(); n != 0 {
		t.Errorf("%d proofs reached the engine", n)
	}
}

// FuzzReadAuthorization: no header makes it panic, and what it accepts has the
// form that the engine is told.
func FuzzReadAuthorization(f *testing.F) {
	f.Add(header("AKIDEXAMPLE/20261123/eu-test-1/kms/aws4_request", "host;x-amz-date;x-amz-target", goodSig), "20261123T123600Z")
	f.Add(header("AKIDEXAMPLE/20261123/eu-test-1/kms/aws4_request", "host;x-amz-date;x-amz-target", goodSig), "20261123T1236.1Z")
	f.Add(algorithm+" Credential=a/b/c/d/e,SignedHeaders=;,Signature=", "Mon, 23 Nov 2026 12:36:00 GMT")
	f.Add("AWS4-ECDSA-P256-SHA256 x", "")
	f.Fuzz(func(t *testing.T, auth, date string) {
		r := newRequest("Encrypt", nil)
		r.Header["Authorization"] = []string{auth}
		r.Header["X-Amz-Date"] = []string{date}
		var a authorization
		err := a.read(r, testTime)
		if err != nil {
			if _, ok := errors.AsType[*refusal](err); !ok {
				t.Fatalf("got %v, want a refusal", err)
			}
			return
		}
		if len(a.date) != 8 || len(a.time) != 16 || a.region == "" || len(a.region) > maxRegion || a.accessKeyID == "" || len(a.accessKeyID) > maxKeyID {
			t.Fatalf("accepted %+v", a)
		}
		if when, err := time.Parse(amzFormat, a.time); err != nil || when.Format(amzFormat) != a.time {
			t.Fatalf("accepted the time %q", a.time)
		}
		if _, err := a.canonical(nil, r, []byte(hashOf(nil))); err != nil {
			if _, ok := errors.AsType[*refusal](err); !ok {
				t.Fatalf("got %v, want a refusal", err)
			}
		}
	})
}
