package awsapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/conclavekms/conclave/transport/sigv4"
)

// presign presigns a request with the SDK's signer, and returns the request that its
// holder sends.
func presign(t testing.TB, operation, hash string, body []byte, at time.Time, expires string) *http.Request {
	t.Helper()
	r := newRequest(operation, body)
	q := url.Values{}
	if expires != "" {
		q.Set("X-Amz-Expires", expires)
	}
	r.URL.RawQuery = q.Encode()
	uri, header, err := v4.NewSigner().PresignHTTP(context.Background(), aws.Credentials{AccessKeyID: testKeyID, SecretAccessKey: testSecret},
		r, hash, "kms", testRegion, at)
	if err != nil {
		t.Fatal(err)
	}
	p := httptest.NewRequest("POST", uri, bytes.NewReader(body))
	p.Host = r.Host
	p.Header = header
	return p
}

// TestPresigned: a request that the SDK presigned is answered for as long as it says,
// with the operation that the SDK moved into the query string. It is refused if
// anything in it was changed.
func TestPresigned(t *testing.T) {
	body := []byte(`{}`)
	const mismatch = "The request signature we calculated does not match"
	edit := func(from, to string) func(*http.Request) {
		return func(r *http.Request) {
			if !strings.Contains(r.URL.RawQuery, from) {
				t.Errorf("%q is not in %q", from, r.URL.RawQuery)
			}
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, from, to, 1)
		}
	}
	for _, tc := range []struct {
		name    string
		at      time.Duration
		expires string
		change  func(*http.Request)
		message string // "" if it is answered
	}{
		{"new", 0, "60", nil, ""},
		{"at its end", -time.Minute, "60", nil, ""},
		{"a week", -7*24*time.Hour + time.Second, "604800", nil, ""},
		{"signed by a clock that is ahead", 5 * time.Minute, "1", nil, ""},
		{"other order", 0, "60", func(r *http.Request) {
			parts := strings.Split(r.URL.RawQuery, "&")
			r.URL.RawQuery = strings.Join(append(parts[1:], parts[0]), "&")
		}, ""},
		{"encoded more than needed", 0, "60", edit("X-Amz-Expires=60", "X-Amz-Expires=%36%30"), ""},
		{"a proxy's header", 0, "60", func(r *http.Request) { r.Header.Set("X-Amz-Cf-Id", "x") }, ""},

		{"expired", -61 * time.Second, "60", nil, "Signature expired: 20261123T123459Z is now earlier than 20261123T123500Z (20261123T123600Z - 60 sec.)"},
		{"not yet current", 301 * time.Second, "600", nil, "Signature not yet current: "},
		{"too long", 0, "604801", nil, "X-Amz-Expires must be a number of seconds from 1 to 604800."},
		{"no time", 0, "0", nil, "X-Amz-Expires must be"},
		{"negative", 0, "-1", nil, "X-Amz-Expires must be"},
		{"not a number", 0, "1e3", nil, "X-Amz-Expires must be"},
		{"leading zero", 0, "060", nil, "X-Amz-Expires must be"},
		{"does not expire", 0, "", nil, "AWS query-string parameters must include 'X-Amz-Expires'."},
		{"longer than signed", -2 * time.Minute, "60", edit("X-Amz-Expires=60", "X-Amz-Expires=600"), mismatch},
		{"another operation", 0, "60", edit("TrentService.EnableKey", "TrentService.DisableKey"), mismatch},
		{"another operation in the header", 0, "60", func(r *http.Request) { r.Header.Set("X-Amz-Target", "TrentService.DisableKey") },
			"The request has 'X-Amz-Target' both as a header and in the query string."},
		{"another date in the header", 0, "60", func(r *http.Request) { r.Header.Set("X-Amz-Date", testTime.Format(sigv4.TimeFormat)) },
			"The request has 'X-Amz-Date' both as a header and in the query string."},
		{"no signature", 0, "60", func(r *http.Request) {
			r.URL.RawQuery = r.URL.RawQuery[:strings.Index(r.URL.RawQuery, "&X-Amz-Signature=")]
		}, "AWS query-string parameters must include 'X-Amz-Signature'."},
		{"a parameter twice", 0, "60", func(r *http.Request) { r.URL.RawQuery += "&X-Amz-Expires=60" }, "The query string of a presigned request has"},
		{"a parameter more", 0, "60", func(r *http.Request) { r.URL.RawQuery += "&x-id=EnableKey" }, mismatch},
		{"many parameters", 0, "60", func(r *http.Request) {
			for i := range 40 {
				r.URL.RawQuery += "&a" + strconv.Itoa(i) + "=1"
			}
		}, "The query string of a presigned request has"},
		{"a plus sign", 0, "60", func(r *http.Request) { r.URL.RawQuery += "&a=b+c" }, "The query string of a presigned request has"},
		{"a broken escape", 0, "60", func(r *http.Request) { r.URL.RawQuery += "&a=%4" }, "The query string of a presigned request has"},
		{"a long query", 0, "60", func(r *http.Request) { r.URL.RawQuery += "&a=" + strings.Repeat("b", 16<<10) }, "The query string of a presigned request has"},
		{"SigV4a", 0, "60", edit("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), "The signature's algorithm is not supported."},
		{"a header's signature too", 0, "60", func(r *http.Request) {
			r.Header.Set("Authorization", header("AKIDEXAMPLE/20261123/eu-test-1/kms/aws4_request", "host;x-amz-date", goodSig))
			r.Header.Set("X-Amz-Date", testTime.Format(sigv4.TimeFormat))
		}, "Requests have no query string but that of a signature"},
		{"a session that is not signed", 0, "60", func(r *http.Request) { r.URL.RawQuery += "&X-Amz-Security-Token=" + url.QueryEscape(testToken) }, mismatch},
		{"a session in a header that is not signed", 0, "60", func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "t") }, "'X-Amz-Security-Token' must be a 'SignedHeader'"},
		{"another service", 0, "60", edit("%2Fkms%2F", "%2Fs3%2F"), "This is the endpoint of Conclave"},
		{"another host", 0, "60", func(r *http.Request) { r.Host = "other.test" }, mismatch},
		{"upper-case signature", 0, "60", func(r *http.Request) {
			i := strings.Index(r.URL.RawQuery, "X-Amz-Signature=") + len("X-Amz-Signature=")
			r.URL.RawQuery = r.URL.RawQuery[:i] + strings.ToUpper(r.URL.RawQuery[i:])
		}, mismatch},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFixture(t, nil)
			r := presign(t, "EnableKey", hashOf(body), body, testTime.Add(tc.at), tc.expires)
			if tc.change != nil {
				tc.change(r)
			}
			w := httptest.NewRecorder()
			f.ServeHTTP(w, r)
			if tc.message == "" {
				if w.Code != 200 || f.engine.dos.Load() != 1 {
					t.Errorf("got %d %s", w.Code, w.Body)
				}
				return
			}
			if w.Code < 400 || !strings.Contains(w.Body.String(), tc.message) || f.engine.dos.Load() != 0 {
				t.Errorf("got %d %s, want %s", w.Code, w.Body, tc.message)
			}
		})
	}
	t.Run("another body", func(t *testing.T) {
		f := newFixture(t, nil)
		r := presign(t, "EnableKey", hashOf([]byte(`{"KeyId":"x"}`)), body, testTime, "60")
		w := httptest.NewRecorder()
		f.ServeHTTP(w, r)
		if w.Code != 400 || !strings.Contains(w.Body.String(), mismatch) {
			t.Errorf("got %d %s", w.Code, w.Body)
		}
	})
}

// TestUnsignedPayload: a body that is not signed is accepted only over TLS, with
// both forms of signatures.
func TestUnsignedPayload(t *testing.T) {
	body := []byte(`{"KeyId":"x"}`)
	byHeader := func(t *testing.T) *http.Request {
		r := newRequest("EnableKey", body)
		r.Header.Set("X-Amz-Content-Sha256", sigv4.UnsignedPayload)
		err := v4.NewSigner().SignHTTP(context.Background(), aws.Credentials{AccessKeyID: testKeyID, SecretAccessKey: testSecret},
			r, sigv4.UnsignedPayload, "kms", testRegion, testTime)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	byQuery := func(t *testing.T) *http.Request {
		r := newRequest("EnableKey", body)
		r.Header.Set("X-Amz-Content-Sha256", sigv4.UnsignedPayload) // which the signer moves
		r.URL.RawQuery = "X-Amz-Expires=60"
		uri, header, err := v4.NewSigner().PresignHTTP(context.Background(), aws.Credentials{AccessKeyID: testKeyID, SecretAccessKey: testSecret},
			r, sigv4.UnsignedPayload, "kms", testRegion, testTime)
		if err != nil {
			t.Fatal(err)
		}
		p := httptest.NewRequest("POST", uri, bytes.NewReader(body))
		p.Host, p.Header = r.Host, header
		return p
	}
	for name, request := range map[string]func(*testing.T) *http.Request{"header": byHeader, "query": byQuery} {
		for _, over := range []*tls.ConnectionState{nil, {}} {
			t.Run(name+" TLS "+strconv.FormatBool(over != nil), func(t *testing.T) {
				f := newFixture(t, nil)
				r := request(t)
				r.TLS = over
				w := httptest.NewRecorder()
				f.ServeHTTP(w, r)
				if over != nil && w.Code != 200 {
					t.Errorf("got %d %s", w.Code, w.Body)
				}
				if over == nil && (w.Code != 400 || !strings.Contains(w.Body.String(), "An unsigned payload is taken over TLS only") || f.engine.proofs.Load() != 0) {
					t.Errorf("got %d %s", w.Code, w.Body)
				}
			})
		}
	}
	t.Run("not announced", func(t *testing.T) { // a signature that leaves the body out without saying so
		f := newFixture(t, nil)
		r := newRequest("EnableKey", body)
		if err := v4.NewSigner().SignHTTP(context.Background(), aws.Credentials{AccessKeyID: testKeyID, SecretAccessKey: testSecret},
			r, sigv4.UnsignedPayload, "kms", testRegion, testTime); err != nil {
			t.Fatal(err)
		}
		r.TLS = new(tls.ConnectionState)
		w := httptest.NewRecorder()
		f.ServeHTTP(w, r)
		if w.Code != 400 || f.engine.dos.Load() != 0 {
			t.Errorf("got %d %s", w.Code, w.Body)
		}
	})
}

// TestUnsignedHeaders: headers that proxies add have no effect and need not be
// signed; headers that have a meaning must be.
func TestUnsignedHeaders(t *testing.T) {
	for name, ok := range map[string]bool{
		"X-Amz-Cf-Id": true, "X-Amzn-Trace-Id": true, "X-Amz-Meta-Anything": true, "X-Forwarded-For": true,
		"X-Amz-Content-Sha256": false, "X-Amz-Security-Token": false,
	} {
		f := newFixture(t, nil)
		r := newRequest("EnableKey", []byte(`{}`))
		sign(t, r, []byte(`{}`), testTime)
		r.Header.Set(name, hashOf([]byte(`{}`)))
		w := httptest.NewRecorder()
		f.ServeHTTP(w, r)
		if ok != (w.Code == 200) {
			t.Errorf("%s: got %d %s", name, w.Code, w.Body)
		}
	}
}

// TestSessionToken: the engine gets a session's token from the header and from the query
// string, and a request whose token was changed is refused like one with a wrong signature.
func TestSessionToken(t *testing.T) {
	body := []byte(`{}`)
	for _, tc := range []struct {
		name, token string
		change      func(*http.Request)
		code        string
	}{
		{"the key's", testToken, nil, ""},
		{"another session's", "other", nil, "UnrecognizedClientException"},
		{"changed on the way", "other", func(r *http.Request) {
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "=other", "="+url.QueryEscape(testToken), 1)
			if r.Header.Get("X-Amz-Security-Token") != "" {
				r.Header.Set("X-Amz-Security-Token", testToken)
			}
		}, "InvalidSignatureException"},
		{"taken away", testToken, func(r *http.Request) {
			r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "&X-Amz-Security-Token="+url.QueryEscape(testToken), "", 1)
			r.Header.Del("X-Amz-Security-Token")
		}, "InvalidSignatureException"},
	} {
		with := aws.Credentials{AccessKeyID: testKeyID, SecretAccessKey: testSecret, SessionToken: tc.token}
		inHeader := newRequest("EnableKey", body)
		if err := v4.NewSigner().SignHTTP(t.Context(), with, inHeader, hashOf(body), "kms", testRegion, testTime); err != nil {
			t.Fatal(err)
		}
		moved := newRequest("EnableKey", body)
		moved.URL.RawQuery = "X-Amz-Expires=60"
		uri, header, err := v4.NewSigner().PresignHTTP(t.Context(), with, moved, hashOf(body), "kms", testRegion, testTime)
		if err != nil {
			t.Fatal(err)
		}
		inQuery := httptest.NewRequest("POST", uri, bytes.NewReader(body))
		inQuery.Host, inQuery.Header = moved.Host, header
		for place, r := range map[string]*http.Request{"header": inHeader, "query": inQuery} {
			f := newFixture(t, nil)
			if tc.change != nil {
				tc.change(r)
			}
			w := httptest.NewRecorder()
			f.ServeHTTP(w, r)
			if tc.code == "" && w.Code != 200 || !strings.Contains(w.Body.String(), tc.code) {
				t.Errorf("%s, in the %s: got %d %s", tc.name, place, w.Code, w.Body)
			}
		}
	}
}
