package awsapi

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/conclavekms/conclave/keyengine"
)

// Requests of AWS's published Signature Version 4 test suite, and the signatures
// it gives: 20150830T123600Z, us-east-1, service "service".
func TestPublishedVectors(t *testing.T) {
	for _, tc := range []struct{ name, request, signed, want string }{
		{"get-vanilla", "GET / HTTP/1.1\r\nHost:example.amazonaws.com\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;x-amz-date", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
		{"post-vanilla", "POST / HTTP/1.1\r\nHost:example.amazonaws.com\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;x-amz-date", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
		{"get-header-value-trim", "GET / HTTP/1.1\r\nHost:example.amazonaws.com\r\nMy-Header1: value1\r\nMy-Header2: \"a   b   c\"\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;my-header1;my-header2;x-amz-date", "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"},
		{"get-header-key-duplicate", "GET / HTTP/1.1\r\nHost:example.amazonaws.com\r\nMy-Header1:value2\r\nMy-Header1:value2\r\nMy-Header1:value1\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;my-header1;x-amz-date", "c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea"},
		{"get-header-value-order", "GET / HTTP/1.1\r\nHost:example.amazonaws.com\r\nMy-Header1:value4\r\nMy-Header1:value1\r\nMy-Header1:value3\r\nMy-Header1:value2\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;my-header1;x-amz-date", "08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01"},
		{"post-header-key-sort", "POST / HTTP/1.1\r\nHost:example.amazonaws.com\r\nMy-Header1:value1\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;my-header1;x-amz-date", "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c"},
		{"post-header-value-case", "POST / HTTP/1.1\r\nHost:example.amazonaws.com\r\nMy-Header1:VALUE1\r\nX-Amz-Date:20150830T123600Z\r\n\r\n",
			"host;my-header1;x-amz-date", "cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d"},
		{"post-x-www-form-urlencoded", "POST / HTTP/1.1\r\nContent-Type:application/x-www-form-urlencoded\r\nHost:example.amazonaws.com\r\nX-Amz-Date:20150830T123600Z\r\nContent-Length: 13\r\n\r\nParam1=value1",
			"content-type;host;x-amz-date", "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(tc.request)))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			a := &authorization{signed: tc.signed}
			canonical, err := a.canonical(nil, r, []byte(hashOf(body)))
			if err != nil {
				t.Fatal(err)
			}
			digest := sha256.Sum256(canonical)
			p := keyengine.SigV4Proof{Date: "20150830", Region: "us-east-1", Service: "service",
				StringToSign: fmt.Appendf(nil, "AWS4-HMAC-SHA256\n20150830T123600Z\n20150830/us-east-1/service/aws4_request\n%x", digest)}
			if got := hex.EncodeToString(signature(testSecret, p)); got != tc.want {
				t.Errorf("got %s, want %s\ncanonical request:\n%s", got, tc.want, canonical)
			}
		})
	}
}

// wire writes a signed request out and reads it again as a server does, so that
// canonicalisation meets what net/http makes of it.
func wire(t testing.TB, r *http.Request) *http.Request {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		t.Fatal(err)
	}
	got, err := http.ReadRequest(bufio.NewReader(&b))
	if err != nil {
		t.Fatal(err)
	}
	got.RemoteAddr = "192.0.2.1:1234"
	return got
}

// randomRequest is any request that a client might send.
func randomRequest(rnd *rand.Rand) (*http.Request, []byte) {
	body := make([]byte, rnd.IntN(300))
	for i := range body {
		body[i] = byte(rnd.Uint32())
	}
	r, _ := http.NewRequest("POST", "http://"+pick(rnd, "localhost:8000", "kms.example.com", "127.0.0.1:65000", "[::1]:8443")+"/", bytes.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("X-Amz-Target", "TrentService."+pick(rnd, "Encrypt", "Decrypt", "CreateKey"))
	if rnd.IntN(2) == 0 {
		r.Header.Set("X-Amz-Content-Sha256", hashOf(body))
	}
	if rnd.IntN(2) == 0 {
		r.Header.Set("Amz-Sdk-Request", pick(rnd, "attempt=1; max=3", "attempt=2;   max=3", "  x  "))
		r.Header.Set("Amz-Sdk-Invocation-Id", fmt.Sprint(rnd.Uint64()))
	}
	for range rnd.IntN(6) {
		name := pick(rnd, "X-Amz-User-Agent", "X-Other", "Accept", "My-Header", "X-B", "X-A.b", "X_C")
		value := make([]byte, rnd.IntN(20))
		for i := range value {
			value[i] = pick(rnd, byte(' '), byte(' '), 'a', 'B', ',', ';', '=', '"', '%', '+', '\t', 0xc3)
		}
		r.Header.Add(name, string(bytes.Trim(value, "\t "))) // as on the wire
	}
	return r, body
}

func pick[T any](rnd *rand.Rand, from ...T) T { return from[rnd.IntN(len(from))] }

func newRand(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// check authenticates a request as the handler does.
func check(h *Handler, r *http.Request) error {
	_, err := h.serve(context.Background(), r, &exchange{body: make([]byte, 0, freeBody)})
	return err
}

// TestAgainstSDKSigner: whatever the SDK's signer signs is found right, and is
// not once anything that was signed has changed.
func TestAgainstSDKSigner(t *testing.T) {
	n := 10_000
	if testing.Short() {
		n = 1_000
	}
	f := newFixture(t, nil)
	f.engine.does(func(context.Context, *keyengine.Caller, *keyengine.Operation, any) (any, error) {
		return nil, errReached
	})
	rnd := newRand(t)
	signer := v4.NewSigner()
	for i := range n {
		r, body := randomRequest(rnd)
		at := testTime.Add(time.Duration(rnd.IntN(590)-295) * time.Second)
		if err := signer.SignHTTP(context.Background(), aws.Credentials{AccessKeyID: testKeyID, SecretAccessKey: testSecret}, r, hashOf(body), "kms", testRegion, at); err != nil {
			t.Fatal(err)
		}
		got := wire(t, r)
		// Random bytes are no JSON: SerializationException says that the signature
		// was right, and so does reaching the engine.
		if err := check(f.Handler, got); !passed(err) {
			t.Fatalf("request %d: %v\n%v", i, err, r.Header)
		}

		bad := wire(t, resend(r, body))
		what := mutate(rnd, bad, body)
		if err := check(f.Handler, bad); passed(err) {
			t.Fatalf("request %d: accepted after %s\n%v", i, what, bad.Header)
		}
	}
}

// resend gives a request its body back.
func resend(r *http.Request, body []byte) *http.Request {
	r.Body = io.NopCloser(bytes.NewReader(body))
	return r
}

var errReached = &keyengine.Error{Code: "DryRunOperationException"}

// passed reports whether an error arose behind authentication.
func passed(err error) bool {
	if err == nil {
		return true
	}
	e, ok := err.(*keyengine.Error)
	return ok && (e.Code == errReached.Code || e.Code == "SerializationException" && e != errBody)
}

// mutate changes one thing that the signature covers.
func mutate(rnd *rand.Rand, r *http.Request, body []byte) string {
	for {
		switch rnd.IntN(14) {
		case 0:
			r.Body = io.NopCloser(bytes.NewReader(append(bytes.Clone(body), 'x')))
			return "a byte was added to the body"
		case 1:
			if len(body) == 0 {
				continue
			}
			b := bytes.Clone(body)
			b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
			r.Body = io.NopCloser(bytes.NewReader(b))
			return "a bit of the body changed"
		case 2:
			r.Header.Set("X-Amz-Target", "TrentService.ScheduleKeyDeletion")
			return "another target"
		case 3:
			r.Header.Add("X-Amz-Target", r.Header.Get("X-Amz-Target"))
			return "the target stands twice"
		case 4:
			r.Header.Set("X-Amz-Date", testTime.Add(299*time.Second).Format(amzFormat))
			return "another date"
		case 5:
			r.Header.Add("X-Amz-Unsigned", "1")
			return "an unsigned x-amz header"
		case 6:
			r.Host = "other.example.com"
			return "another host"
		case 7:
			r.Header.Add("Content-Type", "text/plain")
			return "a second content type"
		case 8:
			r.ContentLength++
			if len(body) == 0 {
				continue
			}
			return "another content length"
		case 9:
			a := r.Header.Get("Authorization")
			r.Header.Set("Authorization", a[:len(a)-1-rnd.IntN(63)])
			return "a shortened signature"
		case 10:
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), testRegion, "us-east-1", 1))
			return "another region"
		case 11:
			a := []byte(r.Header.Get("Authorization"))
			i := len(a) - 1 - rnd.IntN(64)
			a[i] = "0123456789abcdef"[(strings.IndexByte("0123456789abcdef", a[i])+1+rnd.IntN(15))%16]
			r.Header.Set("Authorization", string(a))
			return "another signature"
		case 12:
			a := r.Header.Get("Authorization")
			r.Header.Set("Authorization", strings.Replace(a, "content-type;", "", 1))
			return "a header that is signed no longer"
		case 13:
			a := r.Header.Get("Authorization")
			i := strings.Index(a, "Signature=") + len("Signature=")
			up := a[:i] + strings.ToUpper(a[i:])
			if up == a {
				continue
			}
			r.Header.Set("Authorization", up)
			return "a signature in upper case"
		}
	}
}

func TestRequestsThatAreNoSignedPost(t *testing.T) {
	f := newFixture(t, nil)
	const body = `{}`
	for _, tc := range []struct {
		name   string
		change func(*http.Request)
		status int
		kind   string
	}{
		{"as signed", func(*http.Request) {}, 200, ""},
		{"double slash", func(r *http.Request) { r.URL.Path = "//" }, 404, "UnknownOperationException"},
		{"escaped slash", func(r *http.Request) { r.URL.Path, r.URL.RawPath = "//", "/%2F" }, 404, "UnknownOperationException"},
		{"escaped dot", func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/.", "/%2e" }, 404, "UnknownOperationException"},
		{"plus", func(r *http.Request) { r.URL.Path = "/+" }, 404, "UnknownOperationException"},
		{"GET", func(r *http.Request) { r.Method = "GET" }, 405, "UnknownOperationException"},
		{"query", func(r *http.Request) { r.URL.RawQuery = "a=b" }, 400, "InvalidSignatureException"},
		{"empty query", func(r *http.Request) { r.URL.ForceQuery = true }, 400, "InvalidSignatureException"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRequest("EnableKey", []byte(body))
			sign(t, r, []byte(body), testTime)
			tc.change(r)
			w := httptest.NewRecorder()
			f.ServeHTTP(w, r)
			if w.Code != tc.status || tc.kind != "" && !strings.Contains(w.Body.String(), `"`+tc.kind+`"`) {
				t.Errorf("got %d %s, want %d %s", w.Code, w.Body, tc.status, tc.kind)
			}
		})
	}
	if n := f.engine.dos.Load(); n != 1 {
		t.Errorf("%d requests reached the engine, want 1", n)
	}
}

func TestPresignedIsRefused(t *testing.T) {
	f := newFixture(t, nil)
	r := newRequest("EnableKey", nil)
	uri, header, err := v4.NewSigner().PresignHTTP(context.Background(), aws.Credentials{AccessKeyID: testKeyID, SecretAccessKey: testSecret},
		r, hashOf(nil), "kms", testRegion, testTime)
	if err != nil {
		t.Fatal(err)
	}
	p := httptest.NewRequest("POST", uri, nil)
	p.Header = header
	w := httptest.NewRecorder()
	f.ServeHTTP(w, p)
	wantError(t, w, 400, "IncompleteSignatureException", "Requests signed in the query string are not supported. Sign the request with an Authorization header.")
}

// A wrong signature is answered with what should have been signed.
func TestMismatchShowsCanonicalRequest(t *testing.T) {
	f := newFixture(t, nil)
	body := []byte(`{}`)
	r := newRequest("EnableKey", body)
	sign(t, r, body, testTime)
	r.Header.Set("Content-Type", "application/x-amz-json-1.1; charset=utf-8")
	r.ContentLength = 2
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	want := mismatchText + "\n\nThe Canonical String for this request should have been\n'POST\n/\n\n" +
		"content-length:2\ncontent-type:application/x-amz-json-1.1; charset=utf-8\nhost:kms.test:8443\nx-amz-date:20261123T123600Z\nx-amz-target:TrentService.EnableKey\n\n" +
		"content-length;content-type;host;x-amz-date;x-amz-target\n" + hashOf(body) + "'\n\nThe String-to-Sign should have been\n'AWS4-HMAC-SHA256\n20261123T123600Z\n20261123/eu-test-1/kms/aws4_request\n"
	quoted := strings.ReplaceAll(want, "\n", `\n`)
	if !strings.HasPrefix(w.Body.String(), `{"__type":"InvalidSignatureException","message":"`+quoted) {
		t.Errorf("got %s\nwant %s", w.Body, quoted)
	}
	if strings.Contains(w.Body.String(), "internal words") {
		t.Error("the engine's own words were sent")
	}
}
