package queryapi

import (
	"bytes"
	"context"
	"encoding/xml"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/policy"
	"github.com/conclavekms/conclave/transport/sigv4"
)

// operations returns the operations of the query protocol.
func operations() []*keyengine.Operation {
	return append(keyengine.OperationsOf(keyengine.IAM), keyengine.OperationsOf(keyengine.STS)...)
}

const (
	testKeyID  = "AKIDEXAMPLE"
	testSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	testToken  = "session/token+of=the.key" // which the access key may have
)

var testTime = time.Date(2026, 11, 23, 12, 36, 0, 0, time.UTC)

// fakeEngine has one access key and does what a test sets.
type fakeEngine struct {
	authErr error // returned instead of verifying the signature

	mu     sync.Mutex
	do     func(op *keyengine.Operation, in any) (any, error)
	caller *iam.Caller // of the last request
	op     string
	in     any
	proofs int
	dos    int
}

func (f *fakeEngine) AuthenticateSigV4(_ context.Context, p sigv4.Proof) (iam.Identity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.proofs++
	var key [sigv4.KeySize]byte
	p.Derive(key[:], []byte(testSecret))
	switch {
	case f.authErr != nil:
		return iam.Identity{}, f.authErr
	case p.AccessKeyID != testKeyID || p.SessionToken != "" && p.SessionToken != testToken:
		return iam.Identity{}, kmsapi.ErrUnrecognizedClient
	case !p.SignedBy(key[:]):
		return iam.Identity{}, kmsapi.ErrInvalidSignature
	}
	return iam.ForwardedIdentity(policy.Principal{}, 0, p.AccessKeyID, [32]byte{}, "", nil, nil)
}

func (f *fakeEngine) Do(_ context.Context, c *iam.Caller, op *keyengine.Operation, in any) (any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dos++
	f.caller, f.op, f.in = c, op.Name, in
	if f.do == nil {
		return op.NewOutput(), nil
	}
	return f.do(op, in)
}

type fixture struct {
	*Handler
	engine *fakeEngine
	log    *bytes.Buffer
}

// newFixture returns a handler with a fake engine, whose clock stands at testTime.
func newFixture(t testing.TB, change func(*Config)) *fixture {
	t.Helper()
	f := &fixture{engine: new(fakeEngine), log: new(bytes.Buffer)}
	cfg := Config{
		Engine: f.engine, Operations: operations(), Now: func() time.Time { return testTime },
		Logger: slog.New(slog.NewTextHandler(f.log, nil)), RefusalPeriod: time.Hour,
	}
	if change != nil {
		change(&cfg)
	}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.Handler = h
	return f
}

// newRequest returns a request for an operation of a service, not yet signed.
func newRequest(form string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(form))
	r.Header.Set("Content-Type", formType+"; charset=utf-8")
	return r
}

// sign signs a request with the signer of the AWS SDK.
func sign(t testing.TB, r *http.Request, service, form string) *http.Request {
	t.Helper()
	creds := aws.Credentials{AccessKeyID: testKeyID, SecretAccessKey: testSecret}
	if err := v4.NewSigner().SignHTTP(t.Context(), creds, r, hashOf(form), service, "us-east-1", testTime); err != nil {
		t.Fatal(err)
	}
	return r
}

// presign returns the request that the holder of a presigned URL sends. The form is in the
// query string, where the signers of this protocol move it.
func presign(t testing.TB, method, service, form, token string) *http.Request {
	t.Helper()
	r := httptest.NewRequest(method, "/?X-Amz-Expires=60&"+form, nil)
	creds := aws.Credentials{AccessKeyID: testKeyID, SecretAccessKey: testSecret, SessionToken: token}
	uri, header, err := v4.NewSigner().PresignHTTP(t.Context(), creds, r, hashOf(""), service, "us-east-1", testTime)
	if err != nil {
		t.Fatal(err)
	}
	p := httptest.NewRequest(method, uri, nil)
	p.Host, p.Header = r.Host, header
	return p
}

func (f *fixture) serve(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	return w
}

// call signs a form and passes it to the handler.
func (f *fixture) call(t testing.TB, service, form string) *httptest.ResponseRecorder {
	t.Helper()
	return f.serve(sign(t, newRequest(form), service, form))
}

const (
	iamVersion = "&Version=2010-05-08"
	stsVersion = "&Version=2011-06-15"
)

// answeredError is an error as clients read it.
type answeredError struct {
	XMLName   xml.Name
	Error     struct{ Type, Code, Message string }
	RequestId string
}

// wantError checks an error answer, and that it is XML with the request's id. The message
// must contain the given text.
func wantError(t testing.TB, w *httptest.ResponseRecorder, status int, code, message string) {
	t.Helper()
	var e answeredError
	if err := xml.Unmarshal(w.Body.Bytes(), &e); err != nil {
		t.Errorf("%v: %s", err, w.Body)
		return
	}
	kind := "Sender"
	if status >= 500 {
		kind = "Receiver"
	}
	if w.Code != status || e.Error.Code != code || e.Error.Type != kind || e.Error.Message == "" || !strings.Contains(e.Error.Message, message) {
		t.Errorf("got  %d %s %s: %s\nwant %d %s %s: %s", w.Code, e.Error.Type, e.Error.Code, e.Error.Message, status, kind, code, message)
	}
	if id := w.Header()[headerRequestID]; e.XMLName.Local != "ErrorResponse" || len(id) != 1 || id[0] != e.RequestId || len(e.RequestId) != 36 {
		t.Errorf("the root is %v and the request id %q, in the header %q", e.XMLName, e.RequestId, id)
	}
	if got := w.Header().Get("Content-Type"); got != "text/xml" {
		t.Errorf("Content-Type: %s", got)
	}
}

// escaped returns a form with the given names and values.
func escaped(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(url.QueryEscape(pairs[i]) + "=" + url.QueryEscape(pairs[i+1]))
	}
	return b.String()
}
