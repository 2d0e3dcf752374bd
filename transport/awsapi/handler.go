// Package awsapi implements the protocol of AWS KMS and CloudTrail, JSON 1.1 over HTTP,
// signed with SigV4, so that unmodified SDKs and tools work with Conclave.
//
// The reader may rely on this, in addition to what transport.HTTPFace promises. A
// request reaches Engine.Do only after the engine has verified its signature. The
// signature covers everything that determines the request: host, date, target and
// body. A body is read only if the headers are well formed for a signed request.
package awsapi

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"time"

	"github.com/conclavekms/conclave/keyengine"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/trace"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/sigv4"
)

// Engine is what the face needs from the engine; *keyengine.Engine implements it.
// It must not retain a proof, whose bytes are reused.
type Engine interface {
	transport.Engine
	AuthenticateSigV4(context.Context, sigv4.Proof) (iam.Identity, error)
}

// Config configures a Handler. Engine and Operations are required. Operations of other
// services are left out.
type Config struct {
	Engine     Engine
	Operations []*keyengine.Operation
	// Now is the clock that signatures are checked against; time.Now if nil.
	Now func() time.Time
	// Tracer may be nil.
	Tracer *trace.Tracer
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// Origins are the origins whose pages may use this face from a browser,
	// each of the form that CheckOrigin accepts; none if empty.
	Origins []string
	// MaxBody and MaxBodies are as in transport.HTTPFaceConfig.
	MaxBody   int
	MaxBodies int64
	// Proxies, MaxInFlight, Timeout and RefusalPeriod are Proxies, MaxCalls, Timeout and
	// RefusalPeriod of transport.APIConfig.
	Proxies       transport.Proxies
	MaxInFlight   int64
	Timeout       time.Duration
	RefusalPeriod time.Duration
}

const (
	contentType  = "application/x-amz-json-1.1"
	headerTarget = "X-Amz-Target"

	// Spelled as AWS spells it, which HTTP/1.1 clients can see.
	headerRequestID = "x-amzn-RequestId"
	headerErrorType = "x-amzn-ErrorType"
)

// contentTypes is the header of every answer. It can be shared, as net/http
// does not change it.
var contentTypes = []string{contentType}

// Handler is the face as an http.Handler. It is safe for concurrent use.
type Handler struct {
	cfg        Config
	operations map[operationName]*keyengine.Operation
	api        *transport.API
	face       *transport.HTTPFace
	origins    map[string]bool // nil if there are none
}

type operationName struct {
	service *service
	name    string
}

// New returns a handler. It fails if the configuration is invalid, or if an operation
// is listed twice.
func New(cfg Config) (*Handler, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	h := &Handler{cfg: cfg, operations: make(map[operationName]*keyengine.Operation, len(cfg.Operations))}
	for _, o := range cfg.Origins {
		if err := CheckOrigin(o); err != nil {
			return nil, fmt.Errorf("awsapi: %w", err)
		}
		if h.origins == nil {
			h.origins = make(map[string]bool)
		}
		h.origins[o] = true
	}
	for _, op := range cfg.Operations {
		s := serviceNamed(string(op.Service))
		if s == nil {
			continue
		}
		name := operationName{s, op.Name}
		if _, ok := h.operations[name]; ok {
			return nil, fmt.Errorf("awsapi: operation %s is listed twice", op.Name)
		}
		h.operations[name] = op
	}
	var err error
	h.api, err = transport.NewAPI(transport.APIConfig{
		Name: "aws", Timeout: cfg.Timeout, MaxCalls: cfg.MaxInFlight, Proxies: cfg.Proxies, RefusalPeriod: cfg.RefusalPeriod, Tracer: cfg.Tracer, Logger: cfg.Logger, Metrics: cfg.Metrics,
	})
	if err != nil {
		return nil, err
	}
	h.face = h.api.HTTP(transport.HTTPFaceConfig{
		Engine: cfg.Engine, RequestIDHeader: headerRequestID, MaxBody: cfg.MaxBody, MaxBodies: cfg.MaxBodies,
		NewExchange: func() transport.Exchange { return &exchange{handler: h, canonical: make([]byte, 0, 1024)} },
	})
	return h, nil
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.origins != nil && h.cors(w, r) {
		return
	}
	h.face.ServeHTTP(w, r)
}

// exchange is the transport.Exchange of AWS's protocol.
type exchange struct {
	handler   *Handler
	service   *service // that the request is signed for
	claim     sigv4.Claim
	canonical []byte // and the proof
	dec       decoder
	op        *keyengine.Operation // once it is known
	in, out   any                  // of op
}

// maxKept is the largest buffer that is kept for the next request.
const maxKept = 64 << 10

// Reset implements transport.Exchange.
func (ex *exchange) Reset() {
	if ex.in != nil {
		ex.op.Input().WipeAll(ex.in)
	}
	if ex.out != nil {
		ex.op.Output().Wipe(ex.out)
	}
	if cap(ex.canonical) > maxKept {
		ex.canonical = nil
	}
	ex.service, ex.claim, ex.op, ex.in, ex.out = nil, sigv4.Claim{}, nil, nil, nil
}

// Accept implements transport.Exchange.
func (ex *exchange) Accept(r *http.Request) error {
	if u := r.URL; u.Path != "/" || u.RawPath != "" || r.Method != http.MethodPost {
		return cmp.Or(forAnother(r), error(errAddress))
	}
	ex.service = cmp.Or(serviceNamed(sigv4.ServiceOf(r)), kmsService) // whatever is wrong with the signature
	if err := ex.service.verifier.Read(&ex.claim, r, ex.handler.cfg.Now()); err != nil {
		return cmp.Or(forAnother(r), err)
	}
	return nil
}

// Authenticate implements transport.Exchange.
func (ex *exchange) Authenticate(ctx context.Context, r *http.Request, body []byte, c *iam.Caller) (known bool, err error) {
	proof, canonical, err := ex.claim.Proof(ex.canonical, r, body)
	if err != nil {
		return false, err
	}
	ex.canonical = canonical
	if c.Identity, err = ex.handler.cfg.Engine.AuthenticateSigV4(ctx, proof); err != nil {
		return false, transport.Unproven(err, canonical, &proof)
	}
	c.Region = ex.claim.Region
	return true, nil
}

// Decode implements transport.Exchange.
func (ex *exchange) Decode(r *http.Request, body []byte) (*keyengine.Operation, any, error) {
	op, err := ex.handler.operation(ex.service, r.Header, ex.claim.Parameter(headerTarget))
	if err != nil {
		return nil, nil, err
	}
	ex.op, ex.in = op, op.NewInput()
	return op, ex.in, ex.dec.decode(op.Input(), ex.in, body)
}

// Encode implements transport.Exchange.
func (ex *exchange) Encode(b []byte, h http.Header, out any) ([]byte, error) {
	h["Content-Type"] = contentTypes
	if !ex.op.HasOutput() {
		return b, nil
	}
	ex.out = out
	return appendOutput(b, ex.op.Output(), out)
}

// operation returns the requested operation of a service, which is named by the target of a
// presigned URL or else by the header.
func (h *Handler) operation(s *service, header http.Header, target string) (*keyengine.Operation, error) {
	v := header[headerTarget]
	if target != "" {
		v = []string{target}
	}
	if len(v) == 1 {
		if op, ok := h.operations[operationName{s, s.operation(v[0])}]; ok {
			return op, isJSON(header)
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
