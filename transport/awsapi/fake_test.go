package awsapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/admission"
	"github.com/conclavekms/conclave/transport/sigv4"
)

const (
	testKeyID  = "AKIDEXAMPLE"
	testSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	testToken  = "session/token+of=the.key" // which the access key may have
	testRegion = "eu-test-1"
)

var testTime = time.Date(2026, 11, 23, 12, 36, 0, 0, time.UTC)

// signedWith reports whether a secret made the proof's signature.
func signedWith(secret string, p *sigv4.Proof) bool {
	var key [sigv4.KeySize]byte
	p.Derive(key[:], []byte(secret))
	return p.SignedBy(key[:])
}

// fakeEngine has one access key and does what a test sets.
type fakeEngine struct {
	authErr error // returned instead of verifying the signature

	mu      sync.Mutex
	do      func(ctx context.Context, c *iam.Caller, op *keyengine.Operation, in any) (any, error)
	callers []iam.Caller
	proofs  atomic.Int64
	dos     atomic.Int64
}

func (f *fakeEngine) AuthenticateSigV4(_ context.Context, p sigv4.Proof) (iam.Identity, error) {
	f.proofs.Add(1)
	switch {
	case f.authErr != nil:
		return iam.Identity{}, f.authErr
	case p.AccessKeyID != testKeyID || p.SessionToken != "" && p.SessionToken != testToken:
		return iam.Identity{}, &kmsapi.Error{Code: "UnrecognizedClientException", Message: "internal words"}
	case !signedWith(testSecret, &p):
		return iam.Identity{}, &kmsapi.Error{Code: "InvalidSignatureException", Message: "internal words"}
	}
	return iam.Identity{}, nil
}

func (f *fakeEngine) Do(ctx context.Context, c *iam.Caller, op *keyengine.Operation, in any) (any, error) {
	f.dos.Add(1)
	f.mu.Lock()
	f.callers = append(f.callers, *c)
	do := f.do
	f.mu.Unlock()
	if do == nil {
		return nil, nil
	}
	return do(ctx, c, op, in)
}

// does sets what Do does from now on.
func (f *fakeEngine) does(do func(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.do = do
}

func (f *fakeEngine) caller(t *testing.T) iam.Caller {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.callers) == 0 {
		t.Fatal("the engine was not asked")
	}
	return f.callers[len(f.callers)-1]
}

type fixture struct {
	*Handler
	engine *fakeEngine
	log    *bytes.Buffer
	reg    *prometheus.Registry
}

// newFixture returns a handler with a fake engine, whose clock stands at
// testTime.
func newFixture(t testing.TB, change func(*Config)) *fixture {
	t.Helper()
	f := &fixture{engine: &fakeEngine{}, log: new(bytes.Buffer), reg: prometheus.NewRegistry()}
	cfg := Config{
		Engine:        f.engine,
		Operations:    keyengine.OperationsOf(keyengine.KMS),
		Now:           func() time.Time { return testTime },
		Logger:        slog.New(slog.NewTextHandler(&lockedWriter{w: f.log}, nil)),
		Metrics:       f.reg,
		RefusalPeriod: time.Hour,
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

// listen opens a port as a node does.
func listen(t testing.TB) net.Listener {
	t.Helper()
	b, err := admission.New(admission.Config{})
	if err != nil {
		t.Fatal(err)
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inner.Close() })
	return b.Listener(inner, admission.Share{Face: "aws", Sixteenths: 8})
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// newRequest returns a client's request for an operation, not yet signed.
func newRequest(operation string, body []byte) *http.Request {
	r := httptest.NewRequest("POST", "/", bytes.NewReader(body))
	r.Host = "kms.test:8443"
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("X-Amz-Target", "TrentService."+operation)
	return r
}

func hashOf(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// sign signs with the signer of the AWS SDK.
func sign(t testing.TB, r *http.Request, body []byte, at time.Time) {
	t.Helper()
	err := v4.NewSigner().SignHTTP(context.Background(), aws.Credentials{AccessKeyID: testKeyID, SecretAccessKey: testSecret},
		r, hashOf(body), "kms", testRegion, at)
	if err != nil {
		t.Fatal(err)
	}
}

// call signs a request and passes it directly to the handler.
func (f *fixture) call(t testing.TB, operation, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := newRequest(operation, []byte(body))
	sign(t, r, []byte(body), testTime)
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	return w
}

// wantError checks an answer's status and body. An empty message stands for the
// default message of the error.
func wantError(t testing.TB, w *httptest.ResponseRecorder, status int, kind, message string) {
	t.Helper()
	if message == "" {
		message = transport.Lookup(&kmsapi.Error{Code: kmsapi.Code(kind)}).Message
	}
	want := `{"__type":"` + kind + `","message":` + strconv.Quote(message) + `}`
	if w.Code != status || w.Body.String() != want {
		t.Errorf("got  %d %s\nwant %d %s", w.Code, w.Body, status, want)
	}
	wantHeaders(t, w)
	if got := spelled(w, headerErrorType); len(got) != 1 || got[0] != kind {
		t.Errorf("%s: got %q, want %s", headerErrorType, got, kind)
	}
}

func wantHeaders(t testing.TB, w *httptest.ResponseRecorder) {
	t.Helper()
	if id := spelled(w, headerRequestID); len(id) != 1 || len(id[0]) != 36 {
		t.Errorf("%s: got %q", headerRequestID, id)
	}
	if got := w.Header().Get("Content-Type"); got != contentType {
		t.Errorf("Content-Type: got %q", got)
	}
	if got, want := w.Header().Get("Content-Length"), fmt.Sprint(w.Body.Len()); got != want {
		t.Errorf("Content-Length: got %q, want %s", got, want)
	}
}

func ptr[T any](v T) *T { return &v }

// newLineLogger sends each line of log to lines.
func newLineLogger(lines chan<- string) *slog.Logger {
	return slog.New(slog.NewTextHandler(lineWriter(lines), nil))
}

type lineWriter chan<- string

func (l lineWriter) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// spelled returns the values of a header that is written exactly like name.
func spelled(w *httptest.ResponseRecorder, name string) []string { return w.Header()[name] }
