package sigv4

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"
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
	return Algorithm + " " + strings.Join(parts, ", ")
}

func TestReadAuthorization(t *testing.T) {
	const (
		cred   = "AKIDEXAMPLE/20261123/eu-test-1/kms/aws4_request"
		signed = "host;x-amz-date;x-amz-target"
	)
	now := testTime.Format(TimeFormat)
	incomplete, invalid := CodeIncomplete, CodeInvalid
	unknown, none := CodeUnrecognized, CodeMissing
	const badSigned = "SignedHeaders must be at most 64 different header names in lower case and in alphabetical order."
	const badDate = "Date must be in ISO-8601 'basic format', once."

	for _, tc := range []struct {
		name    string
		auth    []string
		more    http.Header
		code    string
		message string
		reason  string
	}{
		{name: "good", auth: []string{header(cred, signed, goodSig)}},
		{name: "no spaces", auth: []string{strings.ReplaceAll(header(cred, signed, goodSig), ", ", ",")}},
		{name: "other order", auth: []string{Algorithm + " Signature=" + goodSig + ",SignedHeaders=" + signed + ", Credential=" + cred}},
		{name: "5 min late", auth: []string{header(cred, signed, goodSig)}, more: http.Header{"X-Amz-Date": {testTime.Add(-5 * time.Minute).Format(TimeFormat)}}},
		{name: "5 min early", auth: []string{header(cred, signed, goodSig)}, more: http.Header{"X-Amz-Date": {testTime.Add(5 * time.Minute).Format(TimeFormat)}}},
		{name: "Date alone", auth: []string{header(cred, "date;host;x-amz-target", goodSig)},
			more: http.Header{"X-Amz-Date": nil, "Date": {testTime.Format(http.TimeFormat)}}},
		{name: "Date in ISO form", auth: []string{header(cred, "date;host;x-amz-target", goodSig)},
			more: http.Header{"X-Amz-Date": nil, "Date": {now}}},

		{"nothing", nil, nil, none, "Missing Authentication Token", ReasonMissing},
		{"empty", []string{""}, nil, none, "Missing Authentication Token", ReasonMissing},
		{"bearer", []string{"Bearer abc"}, nil, none, "Missing Authentication Token", ReasonMissing},
		{"twice", []string{header(cred, signed, goodSig), header(cred, signed, goodSig)}, nil, incomplete, "The request has more than one Authorization header.", ReasonMalformed},
		{"sigv4a", []string{"AWS4-ECDSA-P256-SHA256 Credential=x"}, nil, incomplete, "The signature's algorithm is not supported. Sign the request with AWS4-HMAC-SHA256.", ReasonUnsupported},
		{"streaming hmac", []string{"AWS4-HMAC-SHA256-PAYLOAD Credential=x"}, nil, incomplete, "The signature's algorithm is not supported. Sign the request with AWS4-HMAC-SHA256.", ReasonUnsupported},
		{"no parameters", []string{Algorithm}, nil, incomplete, "A part of the Authorization header is not a valid key=value pair (missing equal-sign).", ReasonMalformed},
		{"no signature", []string{header(cred, signed, "-")}, nil, incomplete, "Authorization header requires 'Signature' parameter.", ReasonMalformed},
		{"only signature", []string{header("-", "-", goodSig)}, nil, incomplete, "Authorization header requires 'Credential' parameter. Authorization header requires 'SignedHeaders' parameter.", ReasonMalformed},
		{"empty credential", []string{header("", signed, goodSig)}, nil, incomplete, "Authorization header requires 'Credential' parameter.", ReasonMalformed},
		{"credential twice", []string{header(cred, signed, goodSig) + ",Credential=" + cred}, nil, incomplete, "Authorization header has the 'Credential' parameter more than once.", ReasonMalformed},
		{"unknown parameter", []string{header(cred, signed, goodSig) + ",X=1"}, nil, incomplete, "Authorization header has a parameter other than 'Credential', 'SignedHeaders' and 'Signature'.", ReasonMalformed},
		{"trailing comma", []string{header(cred, signed, goodSig) + ","}, nil, incomplete, "A part of the Authorization header is not a valid key=value pair (missing equal-sign).", ReasonMalformed},
		{"short signature", []string{header(cred, signed, goodSig[:63])}, nil, invalid, mismatchText, ReasonSignature},
		{"upper-case signature", []string{header(cred, signed, strings.ToUpper(goodSig))}, nil, invalid, mismatchText, ReasonSignature},
		{"signature not hex", []string{header(cred, signed, goodSig[:63]+"g")}, nil, invalid, mismatchText, ReasonSignature},
		{"four elements", []string{header("AKIDEXAMPLE/20261123/eu-test-1/kms", signed, goodSig)}, nil, incomplete, unreadableKeyText, ReasonMalformed},
		{"six elements", []string{header("AK/ID/20261123/eu-test-1/kms/aws4_request", signed, goodSig)}, nil, incomplete, unreadableKeyText, ReasonMalformed},
		{"key id with odd bytes", []string{header("AK%00/20261123/eu-test-1/kms/aws4_request", signed, goodSig)}, nil, unknown, badTokenText, ReasonUnknownKey},
		{"key id too long", []string{header(strings.Repeat("A", 129)+"/20261123/eu-test-1/kms/aws4_request", signed, goodSig)}, nil, unknown, badTokenText, ReasonUnknownKey},
		{"no key id", []string{header("/20261123/eu-test-1/kms/aws4_request", signed, goodSig)}, nil, unknown, badTokenText, ReasonUnknownKey},
		{"terminator", []string{header("AKIDEXAMPLE/20261123/eu-test-1/kms/aws5_request", signed, goodSig)}, nil, invalid, "Credential should be scoped with a valid terminator: 'aws4_request'.", ReasonScope},
		{"service", []string{header("AKIDEXAMPLE/20261123/eu-test-1/s3/aws4_request", signed, goodSig)}, nil, invalid, "Credential should be scoped to correct service: 'kms'.", ReasonScope},
		{"region", []string{header("AKIDEXAMPLE/20261123/EU_1/kms/aws4_request", signed, goodSig)}, nil, invalid, "Credential should be scoped to a valid region.", ReasonScope},
		{"no region", []string{header("AKIDEXAMPLE/20261123//kms/aws4_request", signed, goodSig)}, nil, invalid, "Credential should be scoped to a valid region.", ReasonScope},
		{"scope of another day", []string{header("AKIDEXAMPLE/20261122/eu-test-1/kms/aws4_request", signed, goodSig)}, nil, invalid,
			"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: expected '20261123', from '20261123T123600Z'.", ReasonScope},

		{"no date", []string{header(cred, "host", goodSig)}, http.Header{"X-Amz-Date": nil}, incomplete,
			"Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.", ReasonMalformed},
		{"bad date", []string{header(cred, signed, goodSig)}, http.Header{"X-Amz-Date": {"yesterday"}}, incomplete, badDate, ReasonMalformed},
		{"date with fraction", []string{header(cred, signed, goodSig)}, http.Header{"X-Amz-Date": {"20261123T123600.5Z"}}, incomplete, badDate, ReasonMalformed},
		{"two dates", []string{header(cred, signed, goodSig)}, http.Header{"X-Amz-Date": {now, now}}, incomplete, badDate, ReasonMalformed},
		{"expired", []string{header(cred, signed, goodSig)}, http.Header{"X-Amz-Date": {testTime.Add(-301 * time.Second).Format(TimeFormat)}}, invalid,
			"Signature expired: 20261123T123059Z is now earlier than 20261123T123100Z (20261123T123600Z - 5 min.)", ReasonClock},
		{"not yet", []string{header(cred, signed, goodSig)}, http.Header{"X-Amz-Date": {testTime.Add(301 * time.Second).Format(TimeFormat)}}, invalid,
			"Signature not yet current: 20261123T124101Z is still later than 20261123T124100Z (20261123T123600Z + 5 min.)", ReasonClock},

		{"host unsigned", []string{header(cred, "x-amz-date;x-amz-target", goodSig)}, nil, invalid, "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.", ReasonUnsigned},
		{"date unsigned", []string{header(cred, "host;x-amz-target", goodSig)}, nil, invalid, "'X-Amz-Date' must be a 'SignedHeader' in the AWS Authorization.", ReasonUnsigned},
		{"target unsigned", []string{header(cred, "host;x-amz-date", goodSig)}, nil, invalid, "'X-Amz-Target' must be a 'SignedHeader' in the AWS Authorization.", ReasonUnsigned},
		{"Date unsigned", []string{header(cred, "host;x-amz-target", goodSig)}, http.Header{"X-Amz-Date": nil, "Date": {now}}, invalid,
			"'Date' must be a 'SignedHeader' in the AWS Authorization.", ReasonUnsigned},
		{"hash unsigned", []string{header(cred, signed, goodSig)}, http.Header{"X-Amz-Content-Sha256": {"x"}}, invalid,
			"'X-Amz-Content-Sha256' must be a 'SignedHeader' in the AWS Authorization.", ReasonUnsigned},
		{"upper case names", []string{header(cred, "Host;x-amz-date;x-amz-target", goodSig)}, nil, invalid, badSigned, ReasonMalformed},
		{"unordered names", []string{header(cred, "x-amz-date;host;x-amz-target", goodSig)}, nil, invalid, badSigned, ReasonMalformed},
		{"name twice", []string{header(cred, "host;host;x-amz-date;x-amz-target", goodSig)}, nil, invalid, badSigned, ReasonMalformed},
		{"empty name", []string{header(cred, ";host;x-amz-date;x-amz-target", goodSig)}, nil, invalid, badSigned, ReasonMalformed},
		{"too many names", []string{header(cred, manyNames(65), goodSig)}, nil, invalid, badSigned, ReasonMalformed},
		{name: "session token", auth: []string{header(cred, "host;x-amz-date;x-amz-security-token;x-amz-target", goodSig)}, more: http.Header{"X-Amz-Security-Token": {"t"}}},
		{name: "longest token", auth: []string{header(cred, "host;x-amz-date;x-amz-security-token;x-amz-target", goodSig)},
			more: http.Header{"X-Amz-Security-Token": {strings.Repeat("t", 8192)}}},
		{"token unsigned", []string{header(cred, signed, goodSig)}, http.Header{"X-Amz-Security-Token": {"t"}}, invalid,
			"'X-Amz-Security-Token' must be a 'SignedHeader' in the AWS Authorization.", ReasonUnsigned},
		{"empty token", []string{header(cred, "host;x-amz-date;x-amz-security-token;x-amz-target", goodSig)}, http.Header{"X-Amz-Security-Token": {""}}, unknown, badTokenText, ReasonToken},
		{"two tokens", []string{header(cred, "host;x-amz-date;x-amz-security-token;x-amz-target", goodSig)}, http.Header{"X-Amz-Security-Token": {"t", "t"}}, unknown, badTokenText, ReasonToken},
		{"long token", []string{header(cred, "host;x-amz-date;x-amz-security-token;x-amz-target", goodSig)},
			http.Header{"X-Amz-Security-Token": {strings.Repeat("t", 8193)}}, unknown, badTokenText, ReasonToken},
		{"token with a space", []string{header(cred, "host;x-amz-date;x-amz-security-token;x-amz-target", goodSig)}, http.Header{"X-Amz-Security-Token": {"a b"}}, unknown, badTokenText, ReasonToken},
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
			var c Claim
			err := kms.Read(&c, r, testTime)
			if tc.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				if c.AccessKeyID != "AKIDEXAMPLE" || c.Date != "20261123" || c.Region != "eu-test-1" || c.SessionToken != r.Header.Get("X-Amz-Security-Token") {
					t.Errorf("got %+v", c)
				}
				return
			}
			ref, ok := errors.AsType[*Error](err)
			if !ok {
				t.Fatalf("got %v, want an Error", err)
			}
			if ref.Code != tc.code || ref.Message != tc.message || ref.Reason != tc.reason {
				t.Errorf("got  %s: %s (%s)\nwant %s: %s (%s)", ref.Code, ref.Message, ref.Reason, tc.code, tc.message, tc.reason)
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

// FuzzReadAuthorization: no header causes a panic, and what is accepted is well
// formed.
func FuzzReadAuthorization(f *testing.F) {
	f.Add(header("AKIDEXAMPLE/20261123/eu-test-1/kms/aws4_request", "host;x-amz-date;x-amz-target", goodSig), "20261123T123600Z")
	f.Add(header("AKIDEXAMPLE/20261123/eu-test-1/kms/aws4_request", "host;x-amz-date;x-amz-target", goodSig), "20261123T1236.1Z")
	f.Add(Algorithm+" Credential=a/b/c/d/e,SignedHeaders=;,Signature=", "Mon, 23 Nov 2026 12:36:00 GMT")
	f.Add("AWS4-ECDSA-P256-SHA256 x", "")
	f.Fuzz(func(t *testing.T, auth, date string) {
		r := newRequest("Encrypt", nil)
		r.Header["Authorization"] = []string{auth}
		r.Header["X-Amz-Date"] = []string{date}
		var c Claim
		err := kms.Read(&c, r, testTime)
		if err != nil {
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Fatalf("got %v, want an Error", err)
			}
			return
		}
		if len(c.Date) != 8 || len(c.Time) != 16 || c.Region == "" || len(c.Region) > maxName || c.AccessKeyID == "" || len(c.AccessKeyID) > maxKeyID {
			t.Fatalf("accepted %+v", c)
		}
		if when, err := time.Parse(TimeFormat, c.Time); err != nil || when.Format(TimeFormat) != c.Time {
			t.Fatalf("accepted the time %q", c.Time)
		}
		if _, _, err := c.Proof(nil, r, nil); err != nil {
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Fatalf("got %v, want an Error", err)
			}
		}
	})
}

// FuzzPresigned: no query string causes a panic, and what is accepted has all parts
// of a signature.
func FuzzPresigned(f *testing.F) {
	f.Add(presign(f, "EnableKey", hashOf(nil), nil, testTime, "60").URL.RawQuery)
	f.Add("X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=%")
	f.Fuzz(func(t *testing.T, raw string) {
		r := newRequest("EnableKey", nil)
		delete(r.Header, "X-Amz-Target")
		r.URL.RawQuery = raw
		var c Claim
		if kms.readQuery(&c, r, testTime) != nil {
			return
		}
		if c.AccessKeyID == "" || c.query == "" || strings.Contains(c.query, querySignature) || !strings.Contains(c.query, queryExpires+"=") || !lists(c.SignedHeaders, "host") {
			t.Errorf("accepted %q as %+v", raw, c)
		}
	})
}
