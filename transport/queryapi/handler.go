// Package queryapi implements the protocol of AWS's IAM and STS, so that unmodified SDKs
// and tools work with Conclave: the query protocol, with the operation and its members in a
// form, answers in XML, and requests signed with SigV4, in a header or in the query string.
//
// The reader may rely on this, in addition to what transport.HTTPFace promises. A request
// reaches Engine.Do only after the engine has verified its signature, unless its operation
// is one whose input proves who sends it (Operation.Unsigned); then the caller's Identity
// is zero. The signature covers everything that determines the request: host, date and the
// form. The form is decoded in time and memory that its size bounds, whatever its names
// are. No value in an answer can look like markup.
package queryapi

import (
	"context"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/keyengine"
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

// Config configures a Handler. Engine and Operations are required. Operations of services
// other than IAM and STS are left out.
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
	// MaxBodies is as in transport.HTTPFaceConfig; 16 MiB if 0.
	MaxBodies int64
	// Proxies, MaxInFlight, Timeout and RefusalPeriod are Proxies, MaxCalls, Timeout and
	// RefusalPeriod of transport.APIConfig.
	Proxies       transport.Proxies
	MaxInFlight   int64
	Timeout       time.Duration
	RefusalPeriod time.Duration
}

const (
	formType = "application/x-www-form-urlencoded"

	// maxBody is the size of the largest request: a policy document of the longest
	// permitted length is within it, even if every character is encoded.
	maxBody = 1 << 20
	// maxUnsigned is the size of the largest request without a signature. A web
	// identity token has up to 20,000 bytes.
	maxUnsigned = 64 << 10
)

// headerRequestID is spelled as AWS spells it, which HTTP/1.1 clients can see.
var headerRequestID = "x-amzn-RequestId"

// contentTypes is the header of every answer. It can be shared, as net/http does not
// change it.
var contentTypes = []string{"text/xml"}

// Handler is the face as an http.Handler. It is safe for concurrent use.
type Handler struct {
	cfg        Config
	operations map[*service]map[string]*keyengine.Operation
	face       *transport.HTTPFace
}

// New returns a handler. It fails if the configuration is invalid, or if an operation
// is listed twice.
func New(cfg Config) (*Handler, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MaxBodies == 0 {
		cfg.MaxBodies = 16 << 20
	}
	h := &Handler{cfg: cfg, operations: map[*service]map[string]*keyengine.Operation{iamService: {}, stsService: {}}}
	for _, op := range cfg.Operations {
		s := serviceNamed(string(op.Service))
		if s == nil {
			continue
		}
		if _, ok := h.operations[s][op.Name]; ok {
			return nil, fmt.Errorf("queryapi: operation %s is listed twice", op.Name)
		}
		h.operations[s][op.Name] = op
	}
	api, err := transport.NewAPI(transport.APIConfig{
		Name: "query", Timeout: cfg.Timeout, MaxCalls: cfg.MaxInFlight, Proxies: cfg.Proxies, RefusalPeriod: cfg.RefusalPeriod, Tracer: cfg.Tracer, Logger: cfg.Logger, Metrics: cfg.Metrics,
	})
	if err != nil {
		return nil, err
	}
	h.face = api.HTTP(transport.HTTPFaceConfig{
		Engine: cfg.Engine, RequestIDHeader: headerRequestID, MaxBody: maxBody, MaxBodies: cfg.MaxBodies,
		NewExchange: func() transport.Exchange { return &exchange{handler: h, canonical: make([]byte, 0, 1024)} },
	})
	return h, nil
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.face.ServeHTTP(w, r) }

// Before returns a handler that answers the requests for this face (see Handles) and leaves
// all others to next.
func (h *Handler) Before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if Handles(r) {
			h.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Handles reports whether a request is for this face: it is signed for IAM or STS, or it is
// signed for no service and names an operation as the query protocol does. It looks at
// headers and the query string only, and anything in them may be wrong.
func Handles(r *http.Request) bool {
	if name := sigv4.ServiceOf(r); name != "" {
		return serviceNamed(name) != nil
	}
	if r.Method == http.MethodGet {
		return r.URL.Path == "/" && strings.Contains("&"+r.URL.RawQuery, "&Action=")
	}
	return r.Method == http.MethodPost && isForm(r)
}

func isForm(r *http.Request) bool {
	v := r.Header["Content-Type"]
	if len(v) != 1 {
		return false
	}
	t, _, err := mime.ParseMediaType(v[0])
	return err == nil && t == formType
}

// exchange is the transport.Exchange of the query protocol.
type exchange struct {
	handler   *Handler
	service   *service // once it is known
	unsigned  bool
	claim     sigv4.Claim
	canonical []byte // and the proof
	form      form
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
	canonical := ex.canonical
	if cap(canonical) > maxKept {
		canonical = nil
	}
	// The service and the operation are left for Refuse, which comes later.
	*ex = exchange{handler: ex.handler, canonical: canonical, service: ex.service, op: ex.op}
}

// Accept implements transport.Exchange.
func (ex *exchange) Accept(r *http.Request) error {
	ex.service, ex.op = serviceNamed(sigv4.ServiceOf(r)), nil
	if r.URL.Path != "/" || r.URL.RawPath != "" || r.Method != http.MethodPost && r.Method != http.MethodGet {
		return errAddress
	}
	if len(r.Header[sigv4.HeaderAuthorization]) == 0 && !sigv4.IsPresigned(r) {
		ex.unsigned = true
		if r.ContentLength > maxUnsigned {
			return errUnsignedTooLarge
		}
		return nil
	}
	if ex.service == nil { // whatever is wrong with the signature
		return stsService.verifier.Read(&ex.claim, r, ex.handler.cfg.Now())
	}
	return ex.service.verifier.Read(&ex.claim, r, ex.handler.cfg.Now())
}

// Authenticate implements transport.Exchange.
func (ex *exchange) Authenticate(ctx context.Context, r *http.Request, body []byte, c *iam.Caller) (known bool, err error) {
	if ex.unsigned {
		return false, ex.unsignedOperation(r, body)
	}
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

// unsignedOperation refuses a request without a signature unless its operation takes such
// requests. Anybody can send it, so only a short form is decoded.
func (ex *exchange) unsignedOperation(r *http.Request, body []byte) error {
	if len(body) > maxUnsigned {
		return errUnsignedTooLarge
	}
	if err := ex.parse(r, body, maxUnsignedParameters); err != nil {
		return err
	}
	op, err := ex.operation()
	if err != nil {
		return err
	}
	if !op.Unsigned {
		return transport.ErrMissingAuthentication
	}
	return nil
}

// parse parses the form. It is the body of a POST, or else the query string, where signers of
// presigned requests move it.
func (ex *exchange) parse(r *http.Request, body []byte, most int) error {
	switch {
	case len(body) == 0 && (r.Method == http.MethodGet || sigv4.IsPresigned(r)):
		return ex.form.parse(r.URL.RawQuery, most)
	case r.Method == http.MethodGet:
		return malformed("A GET request has no body.")
	case !isForm(r):
		return malformed("The Content-Type of a POST request is %s.", formType)
	case r.URL.RawQuery != "" && !sigv4.IsPresigned(r):
		return malformed("A POST request has its parameters in the body.")
	}
	return ex.form.parse(string(body), most)
}

// operation returns the operation that the form names. If the request is not signed, the
// form's version tells for which service it is.
func (ex *exchange) operation() (*keyengine.Operation, error) {
	action, ok := ex.form.value("Action")
	if !ok || action == "" {
		return nil, errNoAction
	}
	version, _ := ex.form.value("Version")
	if ex.unsigned {
		ex.service = serviceOfVersion(version)
	}
	if ex.service == nil || ex.service.version != version {
		return nil, noVersion(version)
	}
	op := ex.handler.operations[ex.service][action]
	if op == nil {
		return nil, noAction(action, version)
	}
	return op, nil
}

// Decode implements transport.Exchange.
func (ex *exchange) Decode(r *http.Request, body []byte) (*keyengine.Operation, any, error) {
	if !ex.unsigned {
		if err := ex.parse(r, body, maxParameters); err != nil {
			return nil, nil, err
		}
	}
	op, err := ex.operation()
	if err != nil {
		return nil, nil, err
	}
	ex.op, ex.in = op, op.NewInput()
	return op, ex.in, ex.form.decode(op.Input(), ex.in)
}

// Encode implements transport.Exchange.
func (ex *exchange) Encode(b []byte, h http.Header, out any) ([]byte, error) {
	h["Content-Type"] = contentTypes
	if ex.op.HasOutput() {
		ex.out = out
	}
	return appendAnswer(b, ex.service, ex.op, out, h[headerRequestID][0])
}
