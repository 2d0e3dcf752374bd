package transport_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/conclavekms/conclave/keyengine"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/admission"
	"github.com/conclavekms/conclave/transport/sigv4"
)

const (
	faceKeyID  = "AKIDEXAMPLE"
	faceSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
)

var faceTime = time.Date(2026, 11, 23, 12, 36, 0, 0, time.UTC)

// faceEngine has one access key and does what a test sets.
type faceEngine struct {
	do     func(ctx context.Context, in any) (any, error)
	caller *iam.Caller
}

func (e *faceEngine) AuthenticateSigV4(_ context.Context, p sigv4.Proof) (iam.Identity, error) {
	var key [sigv4.KeySize]byte
	p.Derive(key[:], []byte(faceSecret))
	if p.AccessKeyID != faceKeyID || !p.SignedBy(key[:]) {
		return iam.Identity{}, kmsapi.ErrInvalidSignature
	}
	return iam.Identity{}, nil
}

func (e *faceEngine) Do(ctx context.Context, c *iam.Caller, _ *keyengine.Operation, in any) (any, error) {
	e.caller = c
	return e.do(ctx, in)
}

// syncedBuffer is a log that may be read concurrently.
type syncedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncedBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncedBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

type faceFixture struct {
	*transport.HTTPFace
	api    *transport.API
	engine *faceEngine
	log    *syncedBuffer
	reg    *prometheus.Registry
}

func newFaceFixture(t *testing.T, cfg transport.APIConfig) *faceFixture {
	t.Helper()
	f := &faceFixture{engine: &faceEngine{}, log: &syncedBuffer{}, reg: prometheus.NewRegistry()}
	cfg.Name, cfg.Metrics, cfg.Logger = "query", f.reg, slog.New(slog.NewTextHandler(f.log, nil))
	var err error
	if f.api, err = transport.NewAPI(cfg); err != nil {
		t.Fatal(err)
	}
	f.HTTPFace = newQueryFace(f.api, f.engine, func() time.Time { return faceTime })
	f.engine.do = func(context.Context, any) (any, error) { return nil, nil }
	t.Cleanup(func() {
		if calls, strangers, bodies := f.api.Calls.Inside(), f.api.Strangers.Used(), f.StrangersBodies.Used(); calls+strangers+bodies != 0 {
			t.Errorf("%d calls, %d strangers' places and %d bytes are not given back", calls, strangers, bodies)
		}
	})
	return f
}

// send signs a request and returns the answer.
func (f *faceFixture) send(t *testing.T, form string, change func(*http.Request)) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(form))
	r.Header.Set("Content-Type", formType)
	s := sigv4.Signer{
		AccessKeyID: faceKeyID, Region: "eu-test-1", Service: "query", SignedHeaders: "content-type;host;x-amz-date",
		SigningKey: sigv4.Secret(faceSecret),
	}
	if err := s.Sign(r, []byte(form), faceTime); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	id := w.Header().Get("X-Request-Id")
	if !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(id) {
		t.Errorf("the request id is %q", id)
	}
	if w.Code != http.StatusOK && !strings.Contains(w.Body.String(), "<RequestId>"+id+"</RequestId>") {
		t.Errorf("%s lacks the request id %s", w.Body, id)
	}
	return w
}

// counts checks a metric of the face that has at most one label besides api.
func (f *faceFixture) counts(t *testing.T, metric, label string, want float64) {
	t.Helper()
	mfs, err := f.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, mf := range mfs {
		for _, m := range mf.GetMetric() {
			values := make([]string, 0, 2)
			for _, l := range m.GetLabel() {
				values = append(values, l.GetName()+"="+l.GetValue())
			}
			if mf.GetName() == metric && strings.Join(values, ",") == strings.Trim("api=query,"+label, ",") && m.GetCounter().GetValue() == want {
				return
			}
		}
	}
	t.Errorf("%s{%s} is not %v", metric, label, want)
}

func wantRefusal(t *testing.T, w *httptest.ResponseRecorder, status int, code string) {
	t.Helper()
	if w.Code != status || !strings.Contains(w.Body.String(), "<Code>"+code+"</Code>") {
		t.Errorf("got %d %s, want %d %s", w.Code, w.Body, status, code)
	}
}

// TestFace: a face that only parses and renders gets everything else from the
// pipeline.
func TestFace(t *testing.T) {
	t.Run("small", func(t *testing.T) {
		src, err := os.ReadFile("queryface_test.go")
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(src, []byte("\n")); n >= 150 {
			t.Errorf("the face has %d lines", n)
		}
	})
	t.Run("answer and caller", func(t *testing.T) {
		f := newFaceFixture(t, transport.APIConfig{})
		plaintext := []byte("secret")
		f.engine.do = func(_ context.Context, in any) (any, error) {
			v := *in.(*kmsapi.DecryptInput)
			return &kmsapi.DecryptOutput{KeyId: v.KeyId, Plaintext: plaintext}, nil
		}
		w := f.send(t, "Action=Decrypt&KeyId=alias%2Fa%26b&CiphertextBlob=AAAA", func(r *http.Request) { r.Header.Set("User-Agent", "curl") })
		if want := "<DecryptResponse><KeyId>alias/a&amp;b</KeyId><Plaintext>c2VjcmV0</Plaintext></DecryptResponse>"; w.Code != 200 || w.Body.String() != want {
			t.Errorf("got %d %s, want %s", w.Code, w.Body, want)
		}
		if !bytes.Equal(plaintext, make([]byte, 6)) {
			t.Errorf("%q is left in memory", plaintext)
		}
		c := f.engine.caller
		if c.Transport != "query" || c.Region != "eu-test-1" || c.SourceIP != "192.0.2.1" || c.UserAgent != "curl" ||
			transport.FormatRequestID(c.RequestID) != w.Header().Get("X-Request-Id") {
			t.Errorf("caller %+v", c)
		}
	})
	t.Run("behind a proxy", func(t *testing.T) {
		proxies, err := transport.ParseProxies([]string{"192.0.2.0/24"})
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct{ peer, want string }{{"192.0.2.1:1", "203.0.113.9"}, {"192.0.3.1:1", "192.0.3.1"}} {
			f := newFaceFixture(t, transport.APIConfig{Proxies: proxies})
			f.send(t, "Action=ListKeys", func(r *http.Request) {
				r.RemoteAddr = tt.peer
				r.Header.Add("X-Forwarded-For", "198.51.100.1")
				r.Header.Add("x-forwarded-for", "203.0.113.9, 192.0.2.3")
			})
			if got := f.engine.caller.SourceIP; got != tt.want {
				t.Errorf("from %s: got source %s, want %s", tt.peer, got, tt.want)
			}
		}
	})
	t.Run("refusals", func(t *testing.T) {
		f := newFaceFixture(t, transport.APIConfig{RefusalPeriod: time.Millisecond})
		wantRefusal(t, f.send(t, "Action=ListKeys", func(r *http.Request) { r.Header.Del("Authorization") }), 400, "MissingAuthenticationTokenException")
		wantRefusal(t, f.send(t, "Action=ListKeys", func(r *http.Request) { r.Host = "another" }), 400, "InvalidSignatureException")
		wantRefusal(t, f.send(t, "Action=None", nil), 400, "UnknownOperationException")
		f.counts(t, "conclave_api_unauthenticated_total", "reason=missing", 1)
		f.counts(t, "conclave_api_errors_total", "type=UnknownOperationException", 1)
		for end := time.Now().Add(10 * time.Second); !strings.Contains(f.log.String(), "reasons.missing=1"); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the refusals are not summed up:\n%s", f.log)
			}
		}
	})
	t.Run("internal error", func(t *testing.T) {
		f := newFaceFixture(t, transport.APIConfig{})
		f.engine.do = func(context.Context, any) (any, error) { return nil, errors.New("disk at /a/path") }
		w := f.send(t, "Action=ListKeys", nil)
		wantRefusal(t, w, 500, "KMSInternalException")
		if strings.Contains(w.Body.String(), "disk") || !strings.Contains(f.log.String(), "disk at /a/path") || !strings.Contains(f.log.String(), w.Header().Get("X-Request-Id")) {
			t.Errorf("answered %s, logged %s", w.Body, f.log)
		}
	})
	t.Run("panic", func(t *testing.T) {
		f := newFaceFixture(t, transport.APIConfig{})
		f.engine.do = func(context.Context, any) (any, error) { panic("page 7") }
		w := f.send(t, "Action=ListKeys", nil)
		wantRefusal(t, w, 500, "KMSInternalException")
		f.counts(t, "conclave_api_panics_total", "", 1)
		if strings.Contains(w.Body.String(), "page 7") || !strings.Contains(f.log.String(), "page 7") || !strings.Contains(f.log.String(), "method=ListKeys") {
			t.Errorf("answered %s, logged %s", w.Body, f.log)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		f := newFaceFixture(t, transport.APIConfig{Timeout: time.Millisecond})
		f.engine.do = func(ctx context.Context, _ any) (any, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		w := f.send(t, "Action=ListKeys", nil)
		if wantRefusal(t, w, 503, "ServiceUnavailable"); w.Header().Get("Retry-After") == "" {
			t.Error("there is no Retry-After")
		}
	})
	t.Run("large body", func(t *testing.T) {
		f := newFaceFixture(t, transport.APIConfig{})
		for _, announced := range []bool{true, false} {
			w := f.send(t, "Action="+strings.Repeat("x", 64<<10-6), func(r *http.Request) {
				if !announced {
					r.ContentLength = -1
					r.Body = io.NopCloser(iotest.DataErrReader(r.Body)) // the end comes with the last bytes
				}
			})
			if wantRefusal(t, w, 413, "RequestEntityTooLargeException"); w.Header().Get("Connection") != "close" {
				t.Error("the connection is kept")
			}
		}
		f.send(t, "Action=x", func(r *http.Request) {
			r.Header.Del("Authorization")
			r.Body = unread{t}
		})
	})
	t.Run("admission", func(t *testing.T) {
		f := newFaceFixture(t, transport.APIConfig{MaxCalls: 1, MaxStrangers: 1})
		inside, leave := make(chan struct{}), make(chan struct{})
		f.engine.do = func(context.Context, any) (any, error) {
			close(inside)
			<-leave
			return nil, nil
		}
		first := make(chan int)
		go func() { first <- f.send(t, "Action=ListKeys", nil).Code }()
		<-inside
		wantRefusal(t, f.send(t, "Action=ListKeys", nil), 503, "ServiceUnavailable")
		close(leave)
		if code := <-first; code != 200 {
			t.Errorf("the first was answered %d", code)
		}

		// A request that stalls is evicted for the next one.
		stalled := &stalledBody{reached: make(chan struct{}), ended: make(chan struct{})}
		go func() {
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			s := sigv4.Signer{
				AccessKeyID: faceKeyID, Region: "eu-test-1", Service: "query", SignedHeaders: "content-type;host;x-amz-date", SigningKey: sigv4.Secret(faceSecret),
			}
			r.Header.Set("Content-Type", formType)
			if err := s.Sign(r, nil, faceTime); err != nil {
				t.Error(err)
			}
			r.ContentLength, r.Body = 10, stalled
			w := &deadlineRecorder{httptest.NewRecorder(), stalled}
			f.ServeHTTP(w, r)
			if w.Header().Get("Connection") != "" {
				t.Error("the connection of who stalled is closed, with all other requests on it")
			}
			first <- w.Code
		}()
		<-stalled.reached
		f.engine.do = func(context.Context, any) (any, error) { return nil, nil }
		if w := f.send(t, "Action=ListKeys", nil); w.Code != 200 {
			t.Errorf("got %d %s", w.Code, w.Body)
		}
		if code := <-first; code != 503 {
			t.Errorf("who stalled was answered %d", code)
		}
		f.counts(t, "conclave_api_evicted_total", "", 1)
	})
}

// unknownSender is an exchange of a protocol in which the input proves who sends it.
type unknownSender struct{ transport.Exchange }

func (unknownSender) Authenticate(context.Context, *http.Request, []byte, *iam.Caller) (known bool, err error) {
	return false, nil
}

// TestUnknownSender: a request whose sender only the engine can know keeps its place among
// strangers while it is worked on. It takes none from anybody who is known, is evicted for the
// next stranger, and does not promote its connection.
func TestUnknownSender(t *testing.T) {
	f := newFaceFixture(t, transport.APIConfig{MaxCalls: 1, MaxStrangers: 1})
	face := f.HTTPFace
	f.HTTPFace = f.api.HTTP(transport.HTTPFaceConfig{
		Engine: f.engine, RequestIDHeader: "X-Request-Id",
		NewExchange: func() transport.Exchange {
			return unknownSender{&queryExchange{face: &queryFace{f.engine, map[string]*keyengine.Operation{"ListKeys": keyengine.OperationNamed(keyengine.KMS, "ListKeys")}, func() time.Time { return faceTime }}}}
		},
	})
	inside := make(chan struct{})
	f.engine.do = func(ctx context.Context, _ any) (any, error) {
		close(inside)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	first := make(chan int)
	go func() { first <- f.send(t, "Action=ListKeys", nil).Code }()
	<-inside
	if calls, strangers := f.api.Calls.Inside(), f.api.Strangers.Used(); calls != 0 || strangers != 1 {
		t.Errorf("it takes %d places of those who are known, and %d of strangers", calls, strangers)
	}
	f.engine.do = func(context.Context, any) (any, error) { return nil, nil }
	f.HTTPFace = face
	if w := f.send(t, "Action=ListKeys", nil); w.Code != 200 {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
	if code := <-first; code != 503 {
		t.Errorf("who was evicted was answered %d", code)
	}
}

type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body of a stranger is read")
	return 0, io.EOF
}

func (unread) Close() error { return nil }

// stalledBody blocks until it is ended.
type stalledBody struct {
	once           sync.Once
	reached, ended chan struct{}
}

func (b *stalledBody) Read([]byte) (int, error) {
	b.once.Do(func() { close(b.reached) })
	<-b.ended
	return 0, os.ErrDeadlineExceeded
}

func (*stalledBody) Close() error { return nil }

// deadlineRecorder ends the body if a read deadline is set, as net/http does.
type deadlineRecorder struct {
	*httptest.ResponseRecorder
	body *stalledBody
}

func (d *deadlineRecorder) SetReadDeadline(time.Time) error {
	close(d.body.ended)
	return nil
}

// TestRequestOrder: a request is worked on only once it is complete and
// authenticated, in either order, and releases what it holds.
func TestRequestOrder(t *testing.T) {
	for _, arrivedFirst := range []bool{true, false} {
		api, err := transport.NewAPI(transport.APIConfig{Name: "x", MaxCalls: 1})
		if err != nil {
			t.Fatal(err)
		}
		r, ctx, err := api.Arrive(t.Context(), transport.Arrival{Remote: "192.0.2.1:1", Pool: api.Strangers})
		if err != nil {
			t.Fatal(err)
		}
		steps := []func() error{r.Arrived, func() error { return r.Work(&api.Calls) }}
		if !arrivedFirst {
			steps[0], steps[1] = steps[1], steps[0]
		}
		if err := steps[0](); err != nil || api.Calls.Inside() != 0 || api.Strangers.Used() != 1 {
			t.Errorf("after one step: %v, %d, %d", err, api.Calls.Inside(), api.Strangers.Used())
		}
		if err := steps[1](); err != nil || api.Calls.Inside() != 1 || api.Strangers.Used() != 0 {
			t.Errorf("after both steps: %v, %d, %d", err, api.Calls.Inside(), api.Strangers.Used())
		}
		r.End()
		if ctx.Err() == nil || api.Calls.Inside() != 0 {
			t.Errorf("at the end: %v, %d", ctx.Err(), api.Calls.Inside())
		}
	}
}

// TestRequestRefused: a request for which there is no room can still be
// answered and ended.
func TestRequestRefused(t *testing.T) {
	api, err := transport.NewAPI(transport.APIConfig{Name: "x", MaxStrangers: 1})
	if err != nil {
		t.Fatal(err)
	}
	place, _ := api.Strangers.Enter(admission.SourceOf("192.0.2.2"), 1, nil)
	place.Keep()
	r, _, err := api.Arrive(t.Context(), transport.Arrival{Remote: "192.0.2.1:1", Pool: api.Strangers})
	if err == nil {
		t.Fatal("there was room")
	}
	if a := api.Answer(r, err); a.Type != "ServiceUnavailable" {
		t.Errorf("answered %+v", a)
	}
	r.End()
	if api.Strangers.Used() != 1 {
		t.Errorf("%d places are used", api.Strangers.Used())
	}
}
