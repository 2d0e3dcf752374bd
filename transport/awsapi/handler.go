// Package awsapi speaks the protocol of AWS KMS: JSON 1.1 over HTTP, signed with
// SigV4, so that unmodified SDKs and tools work against Conclave.
//
// The reader may rely on this. A request reaches Engine.Do only after the engine
// has found its signature right, and then exactly once. What is asked for (host,
// date, target, body) is covered by that signature. A body is read only after the
// headers could be those of a signed request, and never beyond a fixed size; what
// all bodies take together is bounded too. Every answer carries a request id,
// which is that of the audit record, and no answer says anything internal.
package awsapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport"
)

// Engine is what the face needs of the engine; *keyengine.Engine is one. It keeps
// nothing of a proof: its bytes are used again.
type Engine interface {
	AuthenticateSigV4(context.Context, keyengine.SigV4Proof) (keyengine.Identity, error)
	Do(context.Context, *keyengine.Caller, *keyengine.Operation, any) (any, error)
}

// Config of a Handler. Engine and Operations must be given.
type Config struct {
	Engine     Engine
	Operations []*keyengine.Operation
	// Now is the clock that signatures are checked against; time.Now if nil.
	Now func() time.Time
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// MaxBody is the size of the largest request; 1 MiB if 0.
	MaxBody int
	// MaxBodies is what all bodies being read may take together; 64 MiB if 0. Small
	// ones are not counted: the limit of connections bounds them.
	MaxBodies int64
	// MaxInFlight is how many requests are worked on at once; 4,096 if 0. Others
	// are answered ServiceUnavailable, which clients repeat after a while.
	MaxInFlight int64
	// Timeout of the engine's work on a request; 30 s if 0.
	Timeout time.Duration
	// RefusalPeriod is how often refusals before authentication are summed up in
	// the log; 10 s if 0.
	RefusalPeriod time.Duration
}

const (
	contentType  = "application/x-amz-json-1.1"
	targetPrefix = "TrentService."
	headerTarget = "X-Amz-Target"

	// What AWS spells like this, and HTTP/1.1 clients see like this.
	headerRequestID = "x-amzn-RequestId"
	headerErrorType = "x-amzn-ErrorType"
)

// contentTypes is the header of every answer: net/http copies what it is given.
var contentTypes = []string{contentType}

// Handler is the face as an http.Handler. It is safe for concurrent use.
type Handler struct {
	cfg        Config
	engine     Engine
	operations map[string]*operation
	refusals   *refusals
	metrics    *metrics
	bodies     atomic.Int64
	inFlight   atomic.Int64
	exchanges  sync.Pool
}

// operation is one of the engine's as this face has it.
type operation struct {
	*keyengine.Operation
	in, out *plan
}

// New returns a handler. It fails if an operation's input or output has no form
// in JSON.
func New(cfg Config) (*Handler, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = 1 << 20
	}
	if cfg.MaxBodies == 0 {
		cfg.MaxBodies = 64 << 20
	}
	if cfg.MaxInFlight == 0 {
		cfg.MaxInFlight = 4096
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	if cfg.RefusalPeriod == 0 {
		cfg.RefusalPeriod = 10 * time.Second
	}
	h := &Handler{cfg: cfg, engine: cfg.Engine, operations: make(map[string]*operation, len(cfg.Operations))}
	for _, op := range cfg.Operations {
		if _, ok := h.operations[op.Name]; ok {
			return nil, fmt.Errorf("awsapi: operation %s stands twice", op.Name)
		}
		in, err := planOf(op.NewInput())
		if err != nil {
			return nil, fmt.Errorf("awsapi: operation %s: %w", op.Name, err)
		}
		out, err := planOf(op.NewOutput())
		if err != nil {
			return nil, fmt.Errorf("awsapi: operation %s: %w", op.Name, err)
		}
		h.operations[op.Name] = &operation{op, in, out}
	}
	var err error
	if h.metrics, err = newMetrics(cfg.Metrics); err != nil {
		return nil, err
	}
	h.refusals = &refusals{log: cfg.Logger, period: cfg.RefusalPeriod, counter: h.metrics.refused}
	h.exchanges.New = func() any {
		return &exchange{body: make([]byte, 0, freeBody), canonical: make([]byte, 0, 1024), out: make([]byte, 0, 4096)}
	}
	return h, nil
}

// exchange is what one request needs besides what net/http made of it. It is
// reused; buffers that held bodies are overwritten before.
type exchange struct {
	id        keyengine.RequestID
	auth      authorization
	body      []byte
	charged   int64  // of Handler.bodies
	canonical []byte // and the proof
	out       []byte
	dec       decoder
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ex := h.exchanges.Get().(*exchange)
	ex.id = transport.NewRequestID()
	w.Header()[headerRequestID] = []string{transport.FormatRequestID(ex.id)}
	defer h.done(ex)
	defer h.recovered(w, ex)

	ctx, cancel := context.WithTimeout(r.Context(), h.cfg.Timeout)
	defer cancel()
	out, err := h.serve(ctx, r, ex)
	if err != nil {
		h.fail(w, r, ex, err)
		return
	}
	header := w.Header()
	header["Content-Type"] = contentTypes
	header["Content-Length"] = []string{strconv.Itoa(len(out))}
	w.WriteHeader(http.StatusOK)
	w.Write(out) // a client that has gone has no use for the error
}

// serve does the checks in AWS's order (signature, operation, JSON; the engine
// goes on from there) and returns the body of the answer.
func (h *Handler) serve(ctx context.Context, r *http.Request, ex *exchange) ([]byte, error) {
	if u := r.URL; u.Path != "/" || u.RawPath != "" || r.Method != http.MethodPost {
		return nil, errAddress
	}
	auth := &ex.auth
	if err := auth.read(r, h.cfg.Now()); err != nil {
		return nil, err
	}
	if u := r.URL; u.RawQuery != "" || u.ForceQuery {
		return nil, refuse(reasonSignature, keyengine.ErrInvalidSignature, "Requests have no query string.")
	}
	if err := h.readBody(r, ex); err != nil {
		return nil, err
	}
	if h.inFlight.Add(1) > h.cfg.MaxInFlight {
		h.inFlight.Add(-1)
		return nil, errBusy
	}
	defer h.inFlight.Add(-1)

	proof, canonical, err := auth.proof(ex.canonical, r, ex.body)
	if err != nil {
		return nil, err
	}
	ex.canonical = canonical
	identity, err := h.engine.AuthenticateSigV4(ctx, proof)
	if err != nil {
		return nil, unproven(err, canonical, proof)
	}

	op, err := h.operation(r.Header)
	if err != nil {
		return nil, err
	}
	in := op.NewInput()
	defer op.in.wipeInput(in)
	if err := ex.dec.decode(op.in, in, ex.body); err != nil {
		return nil, err
	}
	out, err := h.engine.Do(ctx, &keyengine.Caller{
		RequestID: ex.id,
		Identity:  identity,
		Region:    auth.region,
		SourceIP:  transport.SourceIP(r.RemoteAddr),
		UserAgent: transport.UserAgent(r.UserAgent()),
		Transport: "aws",
		TLS:       transport.TLSInfo(r.TLS),
	}, op.Operation, in)
	if err != nil {
		return nil, err
	}
	if !op.HasOutput() {
		return nil, nil
	}
	defer op.out.wipeOutput(out)
	ex.out, err = op.out.appendOutput(ex.out[:0], out)
	return ex.out, err
}

// unproven turns the engine's refusal of a signature into an answer. Errors that
// say nothing of the signature, as that the node is sealed, pass as they are.
func unproven(err error, canonical []byte, p keyengine.SigV4Proof) error {
	e, ok := errors.AsType[*keyengine.Error](err)
	if !ok {
		return err
	}
	switch e.Code {
	case keyengine.ErrInvalidSignature.Code:
		return mismatch(canonical, p)
	case keyengine.ErrUnrecognizedClient.Code:
		return refuse(reasonUnknownKey, keyengine.ErrUnrecognizedClient, badTokenText)
	case keyengine.ErrExpiredToken.Code:
		return &refusal{reasonOther, e}
	}
	return err
}

// operation finds what is asked for.
func (h *Handler) operation(header http.Header) (*operation, error) {
	v := header[headerTarget]
	if len(v) == 1 {
		if name, ok := strings.CutPrefix(v[0], targetPrefix); ok {
			if op, ok := h.operations[name]; ok {
				return op, isJSON(header)
			}
		}
	}
	return nil, errUnknownOperation
}

func isJSON(header http.Header) error {
	if v := header["Content-Type"]; len(v) == 1 {
		if v[0] == contentType {
			return nil
		}
		if t, _, err := mime.ParseMediaType(v[0]); err == nil && t == contentType {
			return nil
		}
	}
	return errContentType
}

// done gives an exchange back, with nothing of the request left in it.
func (h *Handler) done(ex *exchange) {
	h.bodies.Add(-ex.charged)
	clear(ex.body)
	clear(ex.out[:cap(ex.out)])
	if cap(ex.body) > maxKept || cap(ex.out) > maxKept || cap(ex.canonical) > maxKept {
		return
	}
	ex.auth, ex.body, ex.out, ex.charged = authorization{}, ex.body[:0], ex.out[:0], 0
	h.exchanges.Put(ex)
}

// recovered answers a request whose handling panicked. The panic's own words go
// to the log alone.
func (h *Handler) recovered(w http.ResponseWriter, ex *exchange) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler {
		panic(p)
	}
	h.metrics.panics.Inc()
	h.cfg.Logger.Error("request panicked", "request_id", transport.FormatRequestID(ex.id), "err", fmt.Sprint(p), "stack", string(debug.Stack()))
	h.answer(w, ex, transport.Lookup(keyengine.ErrInternal), 0)
}
