package transport

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/conclavekms/conclave/keyengine"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/trace"
	"github.com/conclavekms/conclave/transport/admission"
)

// Engine is what an API over HTTP needs from the engine; *keyengine.Engine
// implements it.
type Engine interface {
	Do(context.Context, *iam.Caller, *keyengine.Operation, any) (any, error)
}

// Exchange reads a request and writes the answer in one protocol: a face over HTTP
// consists of nothing else. Its methods are called in the order below, each once for
// a request, and each only if the one before it returned no error. Errors are
// answered as Lookup says.
//
// An Exchange has one request at a time, and is reused for another one after Reset.
// What it is given is valid until then.
type Exchange interface {
	// Accept checks everything that can be checked without the body. The body
	// is read only afterwards, so that for most strangers it is not read at
	// all.
	Accept(r *http.Request) error
	// Authenticate finds out who sent the request. It sets the caller's Identity and
	// other properties that the request states, such as the Region. If known is false,
	// the request is for an operation whose input proves who sends it, which only the
	// engine can check.
	Authenticate(ctx context.Context, r *http.Request, body []byte, c *iam.Caller) (known bool, err error)
	// Decode returns the requested operation and its input.
	Decode(r *http.Request, body []byte) (*keyengine.Operation, any, error)
	// Encode appends the body of the answer to b, and sets its Content-Type in h. out
	// is nil if the operation has no output.
	Encode(b []byte, h http.Header, out any) ([]byte, error)
	// Reset forgets the request and overwrites the secrets in it, in its input and in
	// its output. It is always called, before the answer is written.
	Reset()
	// Refuse appends to b the body of the answer to a request that failed with err, and
	// sets its headers. It returns the status, which may differ from that of a. id is
	// the request's.
	Refuse(b []byte, h http.Header, r *http.Request, id string, err error, a Answer) (body []byte, status int)
}

// HTTPFaceConfig configures an API's face over HTTP. Engine, NewExchange and
// RequestIDHeader are required.
type HTTPFaceConfig struct {
	Engine      Engine
	NewExchange func() Exchange
	// RequestIDHeader is the header of every answer with the request's id,
	// spelled as in HTTP/1.1.
	RequestIDHeader string
	// MaxBody is the size of the largest request; 1 MiB if 0.
	MaxBody int
	// MaxBodies is the total size of all bodies being read; 64 MiB if 0. Requests
	// that are not authenticated have a quarter of it. Small bodies are not counted,
	// as the limits of connections and requests bound them.
	MaxBodies int64
}

// HTTPFace is an API as an http.Handler. It is safe for concurrent use.
//
// The reader may rely on this. A request reaches Engine.Do only after Authenticate has
// found out who sent it, or that this is for the engine to find out, and then exactly once.
// In the second case the request stays in the pool of strangers, so that it can still be
// evicted and cannot take a place from anybody who is known. A body is read only after Accept, and
// never beyond MaxBody; the total size of bodies is bounded too. Every answer has a
// request id, which is that of the audit record, and no answer reveals anything
// internal. Buffers that held bodies are overwritten.
type HTTPFace struct {
	// StrangersBodies has the bodies of requests that are not authenticated, and
	// KnownBodies those of others, in bytes.
	StrangersBodies, KnownBodies *admission.Pool

	api     *API
	cfg     HTTPFaceConfig
	handled sync.Pool // of *handling
}

// HTTP returns a face of the API over HTTP.
func (a *API) HTTP(cfg HTTPFaceConfig) *HTTPFace {
	cfg.MaxBody = cmp.Or(cfg.MaxBody, 1<<20)
	cfg.MaxBodies = cmp.Or(cfg.MaxBodies, 64<<20)
	strangers := cfg.MaxBodies / 4
	f := &HTTPFace{
		api: a, cfg: cfg,
		StrangersBodies: a.Pool(strangers, strangers/4),
		KnownBodies:     a.Pool(cfg.MaxBodies-strangers, cfg.MaxBodies-strangers),
	}
	f.handled.New = func() any {
		return &handling{Exchange: cfg.NewExchange(), body: make([]byte, 0, freeBody), out: make([]byte, 0, 4096)}
	}
	return f
}

const (
	// freeBody is how much of a body is read without asking whether there is room:
	// enough for nearly every request.
	freeBody = 8 << 10
	// maxKept is the largest buffer that is kept for the next request.
	maxKept = 64 << 10
)

var (
	errTooLarge = &kmsapi.Error{Code: ErrTooLarge.Code, Message: "The request is larger than any operation takes."}
	errBody     = &kmsapi.Error{Code: ErrSerialization.Code, Message: "The request body could not be read to its end."}
)

// HeaderAuditIndex is the header of an answer with the index of the request's record in the
// audit log. An answer without a record, or whose record's index is not known, has none.
const HeaderAuditIndex = "X-Conclave-Audit-Index"

// SetAuditIndex sets HeaderAuditIndex if the caller's request has a record whose index is known.
func SetAuditIndex(h http.Header, c *iam.Caller) {
	if c.Record != nil {
		h[HeaderAuditIndex] = []string{strconv.FormatUint(*c.Record, 10)}
	}
}

// HeaderTraceParent is the header of W3C Trace Context with the ids of the caller's trace.
const HeaderTraceParent = "Traceparent"

// handling is what one request needs besides the values of net/http. It is reused.
type handling struct {
	Exchange
	request  *Request
	stranger bool        // the connection is not of anybody who is known
	caller   *iam.Caller // once the engine has answered
	body     []byte
	bodies   *admission.Pool
	charged  *admission.Place // for the body; nil while it is small
	out      []byte
}

// reading allows another goroutine to end reads of a request's body.
type reading struct {
	mu   sync.Mutex
	over bool // the handler has returned
	out  *http.ResponseController
}

// stop makes reads of the body fail, unless the handler has returned.
func (r *reading) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over {
		_ = r.out.SetReadDeadline(time.Unix(1, 0)) // fails only for a test's writer
	}
}

func (r *reading) end() {
	r.mu.Lock()
	r.over = true
	r.mu.Unlock()
}

// ServeHTTP answers one request.
func (f *HTTPFace) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := f.handled.Get().(*handling)
	defer f.done(h)
	in := Arrival{Remote: r.RemoteAddr, Forwarded: r.Header[HeaderForwardedFor], TraceParent: r.Header[HeaderTraceParent], Conn: admission.FromContext(r.Context())}
	h.bodies = f.KnownBodies
	if in.Conn == nil || in.Conn.Class() == admission.Stranger {
		in.Pool, h.bodies, h.stranger = f.api.Strangers, f.StrangersBodies, true
	}
	reading := &reading{out: http.NewResponseController(w)}
	defer reading.end()
	in.Evict = reading.stop
	request, ctx, err := f.api.Arrive(r.Context(), in)
	h.request = request
	w.Header()[f.cfg.RequestIDHeader] = []string{FormatRequestID(request.ID)}
	defer f.recovered(w, r, h)
	if err == nil {
		err = f.serve(ctx, w.Header(), r, h)
	}
	// Checked last, right before the answer is written.
	if err == nil {
		err = h.caller.Overdue()
	}
	if err != nil {
		f.fail(w, r, h, err)
		return
	}
	w.Header()["Content-Length"] = []string{strconv.Itoa(len(h.out))}
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(h.out) // an error means that the client has gone
}

// serve does the checks in AWS's order (sender, operation, input, and then those of
// the engine) and encodes the body of the answer.
func (f *HTTPFace) serve(ctx context.Context, header http.Header, r *http.Request, h *handling) error {
	defer h.Reset()
	if err := h.Accept(r); err != nil {
		return err
	}
	if err := f.readBody(r, h); err != nil {
		return err
	}
	caller := h.request.Caller(r.UserAgent(), r.Host, r.TLS)
	caller.Trace.Next(trace.Verify)
	known, err := h.Authenticate(ctx, r, h.body, caller)
	caller.Trace.Stop()
	if err != nil {
		return err
	}
	if known {
		h.request.Proved()
	}
	// Only now, so that requests that are not authenticated, or arrive slowly, take
	// no places from others. On a connection that has been promoted there is no other
	// limit.
	if known || !h.stranger {
		if err := h.request.Work(&f.api.Calls); err != nil {
			return err
		}
	}
	op, in, err := h.Decode(r, h.body)
	if err != nil {
		return err
	}
	h.request.Method = op.Name
	out, err := f.cfg.Engine.Do(ctx, caller, op, in)
	SetAuditIndex(header, caller)
	if err != nil {
		return err
	}
	h.caller = caller
	h.out, err = h.Encode(h.out[:0], header, out)
	return err
}

// readBody reads the body. Memory is allocated for what has arrived, not for what
// Content-Length announces, and beyond freeBody it is taken from a pool that all
// such requests share: at this point the request is not authenticated.
func (f *HTTPFace) readBody(r *http.Request, h *handling) error {
	limit := f.cfg.MaxBody
	if r.ContentLength > int64(limit) {
		return errTooLarge
	}
	b := h.body[:0]
	defer func() { h.body = b }()
	for {
		if len(b) == cap(b) {
			size := min(2*cap(b), limit+1)
			if len(b) > limit {
				return errTooLarge
			}
			if cap(b) < size {
				if !h.charge(int64(size)) {
					return f.api.cfg.Busy
				}
				bigger := make([]byte, len(b), size)
				copy(bigger, b)
				clear(b)
				b = bigger
			}
		}
		n, err := r.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case len(b) > limit:
			return errTooLarge
		case err == io.EOF:
			// The body is complete, so its bytes must not be taken away any
			// more.
			if h.charged != nil && !h.charged.Keep() {
				return f.api.cfg.Busy
			}
			return h.request.Arrived()
		case err != nil:
			return errBody
		}
	}
}

// charge takes n more bytes from the pool for the body.
func (h *handling) charge(n int64) (ok bool) {
	if h.charged != nil {
		return h.charged.Grow(n)
	}
	h.charged, ok = h.request.Charge(h.bodies, n)
	return ok
}

// fail answers a request with an error.
func (f *HTTPFace) fail(w http.ResponseWriter, r *http.Request, h *handling, err error) {
	err = h.request.failure(err)
	a := f.api.Answer(h.request, err)
	header := w.Header()
	if a.HTTP == http.StatusRequestEntityTooLarge || err == errBody {
		header.Set("Connection", "close") // most of the body may still be to come
	}
	if a.HTTP == http.StatusServiceUnavailable || a.Type == string(kmsapi.ErrThrottling.Code) {
		header.Set("Retry-After", "1")
	}
	body, status := h.Refuse(h.out[:0], header, r, FormatRequestID(h.request.ID), err, a)
	h.out = body
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	_, _ = w.Write(body) // as above
}

// recovered answers a request whose handling panicked. The value of the panic goes
// only to the log.
func (f *HTTPFace) recovered(w http.ResponseWriter, r *http.Request, h *handling) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler {
		panic(p)
	}
	f.fail(w, r, h, f.api.Panicked(h.request, p))
}

// done releases what a request held, after wiping it.
func (f *HTTPFace) done(h *handling) {
	if h.request != nil {
		h.request.Trace.End(h.request.Method)
		h.request.End()
	}
	if h.charged != nil {
		h.charged.Leave()
	}
	clear(h.body)
	clear(h.out[:cap(h.out)])
	if cap(h.body) > maxKept || cap(h.out) > maxKept {
		return
	}
	*h = handling{Exchange: h.Exchange, body: h.body[:0], out: h.out[:0]}
	f.handled.Put(h)
}

// Grow makes room for n more bytes, overwriting a buffer that is left behind. Faces append
// answers, which may have secrets, after a call of it.
func Grow(b []byte, n int) []byte {
	if cap(b)-len(b) >= n {
		return b
	}
	bigger := make([]byte, len(b), 2*cap(b)+n)
	copy(bigger, b)
	clear(b)
	return bigger
}
