package awsapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/admission"
)

func answer(out any, err error) func(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error) {
	return func(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error) { return out, err }
}

func TestAnswers(t *testing.T) {
	f := newFixture(t, nil)
	var got any
	plaintext := []byte("plain")
	f.engine.does(func(_ context.Context, _ *iam.Caller, op *keyengine.Operation, in any) (any, error) {
		if op.Name != "Decrypt" {
			t.Errorf("operation %s, want Decrypt", op.Name)
		}
		d := *in.(*kmsapi.DecryptInput)
		got = string(d.CiphertextBlob)
		return &kmsapi.DecryptOutput{KeyId: ptr("arn"), Plaintext: plaintext}, nil
	})
	w := f.call(t, "Decrypt", `{"CiphertextBlob":"aGk="}`)
	if want := `{"KeyId":"arn","Plaintext":"cGxhaW4="}`; w.Code != 200 || w.Body.String() != want {
		t.Errorf("got %d %s, want %s", w.Code, w.Body, want)
	}
	wantHeaders(t, w)
	if got != "hi" {
		t.Errorf("the engine got %q", got)
	}
	if string(plaintext) != "\x00\x00\x00\x00\x00" {
		t.Error("the plaintext was left in memory")
	}
	c := f.engine.caller(t)
	if c.Region != testRegion || c.Transport != "aws" || c.SourceIP != "192.0.2.1" || c.TLS != (iam.TLS{}) {
		t.Errorf("caller %+v", c)
	}
	if id := spelled(w, headerRequestID)[0]; id != transport.FormatRequestID(c.RequestID) {
		t.Errorf("answered as %s, recorded as %s", id, transport.FormatRequestID(c.RequestID))
	}

	f.engine.does(answer(nil, nil))
	w = f.call(t, "EnableKey", `{"KeyId":"x"}`)
	if w.Code != 200 || w.Body.Len() != 0 {
		t.Errorf("without output: got %d %q", w.Code, w.Body)
	}
	wantHeaders(t, w)
}

func TestCallerComesFromTheConnection(t *testing.T) {
	proxies, err := transport.ParseProxies([]string{"2001:db8::/32"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		trusted transport.Proxies
		source  string
	}{{nil, "2001:db8::7"}, {proxies, "10.9.9.9"}} {
		f := newFixture(t, func(c *Config) { c.Proxies = tt.trusted })
		f.engine.does(answer(nil, nil))
		r := newRequest("EnableKey", []byte("{}"))
		r.Header.Set("User-Agent", "agent/1\xff")
		r.Header.Set("X-Forwarded-For", "10.9.9.9")
		r.Header.Set("Forwarded", "for=10.9.9.8")
		r.RemoteAddr = "[2001:db8::7]:999"
		sign(t, r, []byte("{}"), testTime)
		f.ServeHTTP(httptest.NewRecorder(), r)
		c := f.engine.caller(t)
		if c.SourceIP != tt.source || c.UserAgent != "agent/1\uFFFD" {
			t.Errorf("got source %q, agent %q, want source %q", c.SourceIP, c.UserAgent, tt.source)
		}
	}
}

func TestErrors(t *testing.T) {
	f := newFixture(t, nil)
	for _, tc := range []struct {
		err           error
		status        int
		kind, message string
	}{
		{&kmsapi.Error{Code: "NotFoundException", Message: "Key 'x' does not exist"}, 400, "NotFoundException", "Key 'x' does not exist"},
		{kmsapi.ErrInvalidCiphertext, 400, "InvalidCiphertextException", ""},
		{&kmsapi.Error{Code: "ServiceUnavailable", Message: "sealed"}, 503, "ServiceUnavailable", "sealed"},
		{fmt.Errorf("proposing: %w", fsm.ErrNoLeader), 503, "ServiceUnavailable", "The cluster has no leader that this node can reach. Try again."},
		{errors.New("bolt: page 7 at 0xdeadbeef"), 500, "KMSInternalException", transport.Lookup(errors.New("")).Message},
		{kmsapi.ErrInternal, 500, "KMSInternalException", transport.Lookup(errors.New("")).Message},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			f.engine.does(answer(nil, tc.err))
			w := f.call(t, "Encrypt", `{}`)
			wantError(t, w, tc.status, tc.kind, tc.message)
			if again := w.Header().Get("Retry-After") != ""; again != (tc.status == 503) {
				t.Errorf("Retry-After: %v", again)
			}
		})
	}
	if !strings.Contains(f.log.String(), "page 7") || !strings.Contains(f.log.String(), "request_id=") {
		t.Errorf("the internal error is not in the log:\n%s", f.log)
	}
	if n := strings.Count(f.log.String(), "request failed"); n != 1 {
		t.Errorf("%d errors are in the log, want 1: the engine logs its own\n%s", n, f.log)
	}
}

func TestUnprovenErrors(t *testing.T) {
	f := newFixture(t, nil)
	for _, tc := range []struct {
		err           error
		status        int
		kind, message string
	}{
		{&kmsapi.Error{Code: "UnrecognizedClientException", Message: "no row AKIA"}, 400, "UnrecognizedClientException", badTokenText},
		{&kmsapi.Error{Code: "ExpiredTokenException", Message: "expired"}, 400, "ExpiredTokenException", "expired"},
		{&kmsapi.Error{Code: "ServiceUnavailable", Message: "This node is sealed."}, 503, "ServiceUnavailable", "This node is sealed."},
	} {
		f.engine.authErr = tc.err
		wantError(t, f.call(t, "Encrypt", `{}`), tc.status, tc.kind, tc.message)
	}
	if n := f.engine.dos.Load(); n != 0 {
		t.Errorf("%d requests reached Do", n)
	}
}

// The signature is checked before the operation, and that before the JSON, each
// with its own error.
func TestOrderOfChecks(t *testing.T) {
	f := newFixture(t, nil)
	f.engine.does(answer(nil, errReached))
	const noType = "The Content-Type of a request is application/x-amz-json-1.1."
	for _, tc := range []struct {
		name, body    string
		change        func(http.Header)
		kind, message string
	}{
		{"operation before JSON", `nonsense`, func(h http.Header) { h.Set("X-Amz-Target", "TrentService.Nonsense") }, "UnknownOperationException", ""},
		{"no target", `{}`, func(h http.Header) { h.Del("X-Amz-Target") }, "UnknownOperationException", ""},
		{"two targets", `{}`, func(h http.Header) { h.Add("X-Amz-Target", "TrentService.Decrypt") }, "UnknownOperationException", ""},
		{"another service's target", `{}`, func(h http.Header) { h.Set("X-Amz-Target", "DynamoDB_20120810.Encrypt") }, "UnknownOperationException", ""},
		{"target in lower case", `{}`, func(h http.Header) { h.Set("X-Amz-Target", "TrentService.encrypt") }, "UnknownOperationException", ""},
		{"operation alone", `{}`, func(h http.Header) { h.Set("X-Amz-Target", "Encrypt") }, "UnknownOperationException", ""},
		{"no content type", `{}`, func(h http.Header) { h.Del("Content-Type") }, "UnknownOperationException", noType},
		{"JSON's content type", `{}`, func(h http.Header) { h.Set("Content-Type", "application/json") }, "UnknownOperationException", noType},
		{"two content types", `{}`, func(h http.Header) { h.Add("Content-Type", contentType) }, "UnknownOperationException", noType},
		{"content type with parameters", `{}`, func(h http.Header) { h.Set("Content-Type", contentType+"; charset=utf-8") }, "DryRunOperationException", ""},
		{"JSON before the engine", `[`, func(http.Header) {}, "SerializationException", "Start of list found where not expected."},
		{"gzip", "\x1f\x8b\x08\x00", func(h http.Header) { h.Set("Content-Encoding", "gzip") }, "SerializationException", "The request body is not valid JSON, at byte 0."},
		{"empty body", ``, func(http.Header) {}, "DryRunOperationException", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRequest("Encrypt", []byte(tc.body))
			tc.change(r.Header)
			sign(t, r, []byte(tc.body), testTime)
			w := httptest.NewRecorder()
			f.ServeHTTP(w, r)
			wantError(t, w, 400, tc.kind, tc.message)
		})
	}
	t.Run("signature before operation", func(t *testing.T) {
		r := newRequest("Nonsense", []byte(`nonsense`))
		w := httptest.NewRecorder()
		f.ServeHTTP(w, r)
		wantError(t, w, 400, "MissingAuthenticationTokenException", "Missing Authentication Token")
	})
}

func TestLargeBodies(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.MaxBody = 100_000 })
	f.engine.does(answer(nil, errReached))
	body := func(n int) []byte { return []byte(`{"KeyId":"` + strings.Repeat("x", n-12) + `"}`) }
	for _, tc := range []struct {
		name    string
		size    int
		chunked bool
		status  int
	}{
		{"largest", 100_000, false, 400},
		{"largest, chunked", 100_000, true, 400},
		{"announced", 100_001, false, 413},
		{"chunked", 100_001, true, 413},
		{"ten MB", 10 << 20, true, 413},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := body(tc.size)
			r := newRequest("Encrypt", b)
			if tc.chunked {
				r.ContentLength = -1
			}
			sign(t, r, b, testTime)
			w := httptest.NewRecorder()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			f.ServeHTTP(w, r)
			runtime.ReadMemStats(&after)
			if w.Code != tc.status {
				t.Errorf("got %d %.200s, want %d", w.Code, w.Body, tc.status)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("%d bytes allocated", n)
			}
			if got := f.face.StrangersBodies.Used(); got != 0 {
				t.Errorf("%d bytes still charged", got)
			}
		})
	}
	if n := f.engine.dos.Load(); n != 2 {
		t.Errorf("%d requests reached the engine, want 2", n)
	}

	// A body that is announced as too large is not read at all.
	r := newRequest("Encrypt", nil)
	r.ContentLength = 100_001
	sign(t, r, nil, testTime)
	r.Body = failing{t}
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	wantError(t, w, 413, "RequestEntityTooLargeException", "The request is larger than any operation takes.")
	if w.Header().Get("Connection") != "close" {
		t.Error("the connection is kept")
	}
}

// The total size of bodies is bounded, and a stranger's body is not read.
func TestBodyMemory(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.MaxBodies = 2 << 20 })
	f.engine.does(answer(nil, errReached))
	big := `{"KeyId":"` + strings.Repeat("x", 50_000) + `"}`
	// Complete bodies are not taken away, so what is left may be too little.
	pool := f.face.StrangersBodies
	var full []*admission.Place
	for i := range 4 {
		p, _ := pool.Enter(admission.SourceOf(fmt.Sprintf("10.0.0.%d", i)), 120_000, nil)
		p.Keep()
		full = append(full, p)
	}
	before := pool.Used()
	wantError(t, f.call(t, "Encrypt", big), 503, "ServiceUnavailable", busyText)
	wantError(t, f.call(t, "Encrypt", `{}`), 400, "DryRunOperationException", "")
	if got := pool.Used(); got != before {
		t.Errorf("%d bytes charged, want %d", got, before)
	}
	for _, p := range full {
		p.Leave()
	}
	wantError(t, f.call(t, "Encrypt", big), 400, "DryRunOperationException", "")

	r := newRequest("Encrypt", []byte(big))
	r.Body = failing{t}
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	wantError(t, w, 400, "MissingAuthenticationTokenException", "Missing Authentication Token")
}

type failing struct{ t *testing.T }

func (b failing) Read([]byte) (int, error) {
	b.t.Error("the body was read")
	return 0, io.EOF
}
func (failing) Close() error { return nil }

func TestBrokenBody(t *testing.T) {
	f := newFixture(t, nil)
	r := newRequest("Encrypt", []byte(`{}`))
	sign(t, r, []byte(`{}`), testTime)
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader(`{`), brokenReader{}))
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	wantError(t, w, 400, "SerializationException", "The request body could not be read to its end.")
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestInFlightLimit(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.MaxInFlight = 1 })
	started, finish := make(chan struct{}), make(chan struct{})
	f.engine.does(func(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error) {
		close(started)
		<-finish
		return nil, nil
	})
	done := make(chan *httptest.ResponseRecorder)
	go func() { done <- f.call(t, "EnableKey", `{}`) }()
	<-started
	wantError(t, f.call(t, "EnableKey", `{}`), 503, "ServiceUnavailable", busyText)
	close(finish)
	if w := <-done; w.Code != 200 {
		t.Errorf("got %d", w.Code)
	}
	f.engine.does(answer(nil, nil))
	if w := f.call(t, "EnableKey", `{}`); w.Code != 200 {
		t.Errorf("afterwards: got %d", w.Code)
	}
}

func TestTimeout(t *testing.T) {
	f := newFixture(t, func(c *Config) { c.Timeout = time.Millisecond })
	f.engine.does(func(ctx context.Context, _ *iam.Caller, _ *keyengine.Operation, _ any) (any, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	wantError(t, f.call(t, "EnableKey", `{}`), 503, "ServiceUnavailable", "The request was not answered in time.")
}

func TestPanic(t *testing.T) {
	f := newFixture(t, nil)
	f.engine.does(func(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error) {
		panic("page 7 is torn")
	})
	for range 3 {
		wantError(t, f.call(t, "EnableKey", `{}`), 500, "KMSInternalException", transport.Lookup(errors.New("")).Message)
	}
	const want = `
		# HELP conclave_api_panics_total Requests whose handling panicked.
		# TYPE conclave_api_panics_total counter
		conclave_api_panics_total{api="aws"} 3
	`
	if err := testutil.GatherAndCompare(f.reg, strings.NewReader(want), "conclave_api_panics_total"); err != nil {
		t.Error(err)
	}
	if !strings.Contains(f.log.String(), "page 7") {
		t.Error("the panic is not in the log")
	}
	f.engine.does(answer(nil, nil))
	if w := f.call(t, "EnableKey", `{}`); w.Code != 200 {
		t.Errorf("afterwards: got %d", w.Code)
	}
	if f.api.Calls.Inside() != 0 || f.api.Strangers.Used() != 0 {
		t.Errorf("%d in flight, %d strangers' places held", f.api.Calls.Inside(), f.api.Strangers.Used())
	}
}

// Strangers cause one log line for each period, and metrics with bounded
// labels.
func TestRefusalsAreSummedUp(t *testing.T) {
	lines := make(chan string, 16)
	f := newFixture(t, func(c *Config) { c.RefusalPeriod, c.Logger = 50*time.Millisecond, newLineLogger(lines) })
	for i := range 1000 {
		r := newRequest("Encrypt", nil)
		switch i % 4 {
		case 0: // no authentication
		case 1:
			r.Header.Set("Authorization", "AWS4-HMAC-SHA256 "+strconv.Itoa(i))
		default:
			sign(t, r, nil, testTime)
			r.Header.Set("X-Amz-Target", fmt.Sprintf("TrentService.%d", i))
		}
		f.ServeHTTP(httptest.NewRecorder(), r)
	}
	total := 0
	deadline := time.After(10 * time.Second)
	number := regexp.MustCompile(`total=(\d+)`)
	count := 0
	for total < 1000 {
		select {
		case l := <-lines:
			count++
			m := number.FindStringSubmatch(l)
			if m == nil {
				t.Fatalf("log line %q", l)
			}
			n, _ := strconv.Atoi(m[1])
			total += n
		case <-deadline:
			t.Fatalf("%d of 1000 refusals summed up", total)
		}
	}
	if total != 1000 || count > 100 {
		t.Errorf("%d refusals in %d lines", total, count)
	}
	const want = `
		# HELP conclave_api_unauthenticated_total Requests that were refused because they did not prove who sent them, by reason.
		# TYPE conclave_api_unauthenticated_total counter
		conclave_api_unauthenticated_total{api="aws",reason="malformed"} 250
		conclave_api_unauthenticated_total{api="aws",reason="missing"} 250
		conclave_api_unauthenticated_total{api="aws",reason="signature"} 500
	`
	if err := testutil.GatherAndCompare(f.reg, strings.NewReader(want), "conclave_api_unauthenticated_total"); err != nil {
		t.Error(err)
	}

	// The next line counts only that period.
	f.ServeHTTP(httptest.NewRecorder(), newRequest("Encrypt", nil))
	select {
	case l := <-lines:
		if !strings.Contains(l, "total=1 reasons.missing=1 ") || !strings.Contains(l, "last_source=192.0.2.1\n") {
			t.Errorf("second period: %q", l)
		}
	case <-time.After(10 * time.Second):
		t.Error("no line for the second period")
	}
	if f.log.Len() != 0 || f.engine.dos.Load() != 0 {
		t.Errorf("other log: %s; %d requests reached Do", f.log, f.engine.dos.Load())
	}
}

func TestConcurrentRequests(t *testing.T) {
	f := newFixture(t, nil)
	f.engine.does(func(_ context.Context, _ *iam.Caller, _ *keyengine.Operation, in any) (any, error) {
		// Answers with its own input, so that mixed-up buffers would be
		// noticed.
		return &kmsapi.DecryptOutput{Plaintext: append([]byte(nil), in.(*kmsapi.DecryptInput).CiphertextBlob...)}, nil
	})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 100 {
				blob := []byte(strings.Repeat(fmt.Sprintf("%d-%d;", g, i), 1+i*20))
				body := encoded(t, &kmsapi.DecryptInput{CiphertextBlob: blob})
				want := encoded(t, &kmsapi.DecryptOutput{Plaintext: blob})
				if w := f.call(t, "Decrypt", string(body)); w.Body.String() != string(want) {
					t.Errorf("%d-%d: got %.100s", g, i, w.Body)
					return
				}
			}
		})
	}
	wg.Wait()
}

// The input of every operation can be encoded, sent and decoded.
func TestEveryOperationDecodes(t *testing.T) {
	f := newFixture(t, nil)
	if len(f.operations) < 24 {
		t.Fatalf("only %d operations", len(f.operations))
	}
	for _, op := range keyengine.OperationsOf(keyengine.KMS) {
		t.Run(op.Name, func(t *testing.T) {
			sent := op.NewInput()
			fill(reflect.ValueOf(sent).Elem(), 1)
			body, err := appendOutput(nil, op.Input(), sent)
			if err != nil {
				t.Fatal(err)
			}
			f.engine.does(func(_ context.Context, _ *iam.Caller, got *keyengine.Operation, in any) (any, error) {
				if got.Name != op.Name || !reflect.DeepEqual(in, sent) {
					t.Errorf("the engine got %s %+v", got.Name, in)
				}
				return nil, errReached
			})
			wantError(t, f.call(t, op.Name, string(body)), 400, "DryRunOperationException", "")
		})
	}
}

// fill sets every member to some value.
func fill(v reflect.Value, n int) {
	switch p := v.Addr().Interface().(type) {
	case **string:
		*p = ptr(fmt.Sprintf("text %d", n))
	case **int32:
		*p = ptr(int32(n))
	case **bool:
		*p = ptr(true)
	case **time.Time:
		*p = ptr(time.Unix(int64(n), 0).UTC())
	case *[]byte:
		*p = []byte{byte(n)}
	case *[]string:
		*p = []string{"a", "b"}
	case *map[string]string:
		*p = map[string]string{"k": "v"}
	default:
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i), n+i)
			}
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), n)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 2, 2))
			fill(v.Index(0), n)
			fill(v.Index(1), n+1)
		}
	}
}

func TestNewRefusesDoubleOperations(t *testing.T) {
	ops := keyengine.OperationsOf(keyengine.KMS)
	if _, err := New(Config{Engine: &fakeEngine{}, Operations: append(ops[:len(ops):len(ops)], ops[0])}); err == nil {
		t.Error("an operation that stands twice was taken")
	}
}

// The status line and the spelling of headers on the wire, for clients that look
// at the bytes.
func TestWireFormat(t *testing.T) {
	f := newFixture(t, nil)
	f.engine.does(answer(&kmsapi.GenerateRandomOutput{Plaintext: []byte("hi")}, nil))
	l := listen(t)
	srv := transport.NewHTTPServer(transport.HTTPConfig{}, f.Handler)
	go transport.Serve(srv, l)
	defer srv.Close()

	r := newRequest("GenerateRandom", []byte(`{"NumberOfBytes":2}`))
	r.URL.Host = l.Addr().String()
	r.Host = r.URL.Host
	r.Header.Set("Accept-Encoding", "gzip")
	r.Close = true
	sign(t, r, []byte(`{"NumberOfBytes":2}`), testTime)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := r.Write(c); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(got), "HTTP/1.1 200 OK\r\n") {
		t.Errorf("status line: %q", got)
	}
	for _, want := range []string{"\r\nContent-Length: 20\r\n", "\r\nContent-Type: application/x-amz-json-1.1\r\n", "\r\nx-amzn-RequestId: ", "\r\n\r\n{\"Plaintext\":\"aGk=\"}"} {
		if !strings.Contains(string(got), want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	if strings.Contains(string(got), "Content-Encoding") {
		t.Errorf("compressed: %q", got)
	}
}

// The encoded message of a denial follows AWS's members, which clients do not mind.
func TestEncodedMessage(t *testing.T) {
	f := newFixture(t, nil)
	f.engine.does(answer(nil, &kmsapi.Error{Code: kmsapi.ErrAccessDenied.Code, Message: "no", Encoded: "abc-_"}))
	w := f.call(t, "EnableKey", `{"KeyId":"x"}`)
	if want := `{"__type":"AccessDeniedException","message":"no","EncodedMessage":"abc-_"}`; w.Code != 400 || w.Body.String() != want {
		t.Errorf("got %d %s, want %s", w.Code, w.Body, want)
	}
}
