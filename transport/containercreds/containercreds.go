// Package containercreds serves credentials to containers, as the agents of Amazon ECS and of
// EKS do: an SDK in a container gets them with a GET of the URL in
// AWS_CONTAINER_CREDENTIALS_FULL_URI and needs no keys. The request has the token of a web
// identity in its header Authorization, such as that of a Kubernetes service account, whose
// file AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE names, and the role in its URL:
//
//	https://conclave.example.com/v1/credentials?role=arn:aws:iam::111122223333:role/app
//	https://conclave.example.com/v1/credentials/arn:aws:iam::111122223333:role/app
//
// The answer is that of AssumeRoleWithWebIdentity, and all of its rules apply. The name of the
// session is that in the parameter session, or "container".
//
// The reader may rely on what transport.HTTPFace promises. Requests are not authenticated
// before they reach the engine, which does it.
package containercreds

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/trace"
	"github.com/conclavekms/conclave/transport"
)

// Path is where the handler answers, and below which it answers with the role in the path.
const Path = "/v1/credentials"

const (
	operation       = "AssumeRoleWithWebIdentity"
	headerRequestID = "x-amzn-RequestId"
	defaultSession  = "container"
)

var (
	errMethod = kmsapi.Errorf(transport.ErrUnknownOperation, "Credentials are had with GET.")
	errRole   = kmsapi.Errorf(kmsapi.ErrValidation, "The role is missing: add its ARN as the parameter 'role'.")
	errToken  = kmsapi.Errorf(transport.ErrMissingAuthentication, "The header Authorization must have the token of a web identity.")
)

// Config configures a Handler. Engine is required.
type Config struct {
	Engine transport.Engine
	// Tracer may be nil.
	Tracer *trace.Tracer
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// Proxies, MaxInFlight, Timeout and RefusalPeriod are Proxies, MaxCalls, Timeout and
	// RefusalPeriod of transport.APIConfig.
	Proxies       transport.Proxies
	MaxInFlight   int64
	Timeout       time.Duration
	RefusalPeriod time.Duration
}

// Handler is an http.Handler. It is safe for concurrent use.
type Handler struct {
	op   *keyengine.Operation
	face *transport.HTTPFace
}

// New returns a handler.
func New(cfg Config) (*Handler, error) {
	h := &Handler{op: keyengine.OperationNamed(keyengine.STS, operation)}
	if h.op == nil {
		return nil, errors.New("containercreds: there is no operation " + operation)
	}
	api, err := transport.NewAPI(transport.APIConfig{
		Name: "container", Timeout: cfg.Timeout, MaxCalls: cfg.MaxInFlight, Proxies: cfg.Proxies, RefusalPeriod: cfg.RefusalPeriod, Tracer: cfg.Tracer, Logger: cfg.Logger, Metrics: cfg.Metrics,
	})
	if err != nil {
		return nil, err
	}
	h.face = api.HTTP(transport.HTTPFaceConfig{
		Engine: cfg.Engine, RequestIDHeader: headerRequestID, MaxBody: 1, MaxBodies: 1,
		NewExchange: func() transport.Exchange { return &exchange{op: h.op} },
	})
	return h, nil
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.face.ServeHTTP(w, r) }

// Before returns a handler that answers the requests to Path and below it, and leaves all
// others to next.
func (h *Handler) Before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := roleInPath(r.URL); ok {
			h.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// roleInPath returns what follows Path, "" for nothing. It reports false for other paths.
func roleInPath(u *url.URL) (role string, ok bool) {
	rest, ok := strings.CutPrefix(u.Path, Path)
	if !ok || rest != "" && rest[0] != '/' {
		return "", false
	}
	return strings.TrimPrefix(rest, "/"), true
}

// exchange is the transport.Exchange of this protocol.
type exchange struct {
	op  *keyengine.Operation
	in  *iamapi.AssumeRoleWithWebIdentityInput
	out any
}

// Reset implements transport.Exchange.
func (ex *exchange) Reset() {
	if ex.in != nil {
		ex.op.Input().WipeAll(ex.in)
	}
	if ex.out != nil {
		ex.op.Output().Wipe(ex.out)
	}
	ex.in, ex.out = nil, nil
}

// Accept implements transport.Exchange.
func (ex *exchange) Accept(r *http.Request) error {
	if _, ok := roleInPath(r.URL); !ok || r.Method != http.MethodGet {
		return errMethod
	}
	if len(r.Header["Authorization"]) != 1 || token(r) == "" {
		return errToken
	}
	return nil
}

func token(r *http.Request) string { return strings.TrimSpace(r.Header.Get("Authorization")) }

// Authenticate implements transport.Exchange. The engine does it.
func (ex *exchange) Authenticate(context.Context, *http.Request, []byte, *iam.Caller) (known bool, err error) {
	return false, nil
}

// Decode implements transport.Exchange.
func (ex *exchange) Decode(r *http.Request, _ []byte) (*keyengine.Operation, any, error) {
	query := r.URL.Query()
	inPath, _ := roleInPath(r.URL)
	role := cmp.Or(inPath, query.Get("role"))
	if role == "" {
		return nil, nil, errRole
	}
	ex.in = &iamapi.AssumeRoleWithWebIdentityInput{
		RoleArn: &role, RoleSessionName: new(cmp.Or(query.Get("session"), defaultSession)), WebIdentityToken: new(token(r)),
	}
	return ex.op, ex.in, nil
}

// credentials are the answer, in the form that SDKs read.
type credentials struct {
	RoleArn         string
	AccessKeyID     string `json:"AccessKeyId"`
	SecretAccessKey string
	Token           string
	AccountID       string `json:"AccountId"`
	Expiration      string
}

// Encode implements transport.Exchange.
func (ex *exchange) Encode(b []byte, h http.Header, out any) ([]byte, error) {
	ex.out = out
	answer := out.(*iamapi.AssumeRoleWithWebIdentityOutput)
	c := answer.Credentials
	setHeaders(h)
	doc, err := json.Marshal(credentials{
		RoleArn: *ex.in.RoleArn, AccessKeyID: *c.AccessKeyId, SecretAccessKey: *c.SecretAccessKey, Token: *c.SessionToken,
		AccountID: accountOf(*answer.AssumedRoleUser.Arn), Expiration: c.Expiration.UTC().Format(time.RFC3339),
	})
	b = append(transport.Grow(b, len(doc)), doc...)
	clear(doc)
	return b, err
}

// accountOf returns the account in an ARN.
func accountOf(arn string) string {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) < 6 {
		return ""
	}
	return parts[4]
}

func setHeaders(h http.Header) {
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
}

// failure is the answer to a request that failed, in the form that SDKs read.
type failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Refuse implements transport.Exchange.
func (ex *exchange) Refuse(b []byte, h http.Header, _ *http.Request, _ string, err error, a transport.Answer) ([]byte, int) {
	setHeaders(h)
	status := a.HTTP
	switch {
	case err == error(errMethod):
		h.Set("Allow", http.MethodGet)
		status = http.StatusMethodNotAllowed
	case a.GRPC == codes.Unauthenticated:
		status = http.StatusUnauthorized
	case a.GRPC == codes.PermissionDenied:
		status = http.StatusForbidden
	case a.Type == string(kmsapi.ErrThrottling.Code):
		status = http.StatusTooManyRequests
	}
	doc, _ := json.Marshal(failure{a.Type, a.Message}) // two texts are always valid
	return append(b, doc...), status
}
