package awsapi

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/sigv4"
)

// wire writes a signed request and reads it again as a server does, so that
// canonicalisation is tested with the result of net/http.
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

// randomRequest returns a random request that a client might send.
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

// check reads, authenticates and answers a request, as transport.HTTPFace does.
func check(h *Handler, r *http.Request) error {
	ex := &exchange{handler: h}
	defer ex.Reset()
	if err := ex.Accept(r); err != nil {
		return err
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	c := &iam.Caller{}
	if _, err := ex.Authenticate(context.Background(), r, body, c); err != nil {
		return err
	}
	op, in, err := ex.Decode(r, body)
	if err != nil {
		return err
	}
	_, err = h.cfg.Engine.Do(context.Background(), c, op, in)
	return err
}

// TestAgainstSDKSigner: every signature of the SDK's signer is accepted, and is
// refused once anything that was signed has changed.
func TestAgainstSDKSigner(t *testing.T) {
	n := 10_000
	if testing.Short() {
		n = 1_000
	}
	f := newFixture(t, nil)
	f.engine.does(func(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error) {
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
		// Random bytes are not JSON: SerializationException, or reaching the
		// engine, shows that the signature was accepted.
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

// resend restores the body of a request.
func resend(r *http.Request, body []byte) *http.Request {
	r.Body = io.NopCloser(bytes.NewReader(body))
	return r
}

var errReached = &kmsapi.Error{Code: "DryRunOperationException"}

// passed reports whether an error arose after authentication.
func passed(err error) bool {
	if err == nil {
		return true
	}
	e, ok := err.(*kmsapi.Error)
	return ok && (e.Code == errReached.Code || e.Code == "SerializationException")
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
			r.Header.Set("X-Amz-Date", testTime.Add(299*time.Second).Format(sigv4.TimeFormat))
			return "another date"
		case 5:
			r.Header.Add("X-Amz-Security-Token", "1")
			return "an unsigned header that means something"
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

// The answer to a wrong signature says what should have been signed.
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
