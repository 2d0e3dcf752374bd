package transport

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/trace"
	"github.com/conclavekms/conclave/transport/admission"
	"github.com/conclavekms/conclave/transport/sigv4"
)

// APIConfig describes an API. Zero fields stand for the defaults.
type APIConfig struct {
	// Name is that of the API in audit records, in the log, and in the label api of
	// metrics.
	Name string
	// Timeout bounds the time from a request's arrival to its answer; 30 s.
	Timeout time.Duration
	// MaxCalls is how many requests, once they are complete and authenticated, are
	// worked on at once; 4,096. Others are answered with Busy.
	MaxCalls int64
	// MaxStrangers is how many requests that are not authenticated may be in flight,
	// 512, and MaxStrangersFrom how many of these from one source, 128.
	MaxStrangers, MaxStrangersFrom int64
	// Busy is the answer to a request for which there is no room. The default makes
	// clients repeat the request.
	Busy *kmsapi.Error
	// Proxies are those that are trusted to say where requests come from. Limits apply to
	// connections, and so to proxies, nevertheless.
	Proxies Proxies
	// RefusalPeriod is how often requests that could not be authenticated are summed up
	// in the log; 10 s.
	RefusalPeriod time.Duration
	// Tracer may be nil.
	Tracer *trace.Tracer
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
}

// API is what all requests to one API have in common, whatever the protocol: ids and
// deadlines, limits, the handling of panics and errors, metrics and logging. A face
// adds only parsing and rendering; a face over HTTP is an Exchange, see API.HTTP.
//
// An API is safe for concurrent use.
type API struct {
	// Strangers has a place for each request in flight that is not authenticated yet.
	Strangers *admission.Pool
	// Calls bounds the requests that are worked on.
	Calls admission.Gate

	cfg     APIConfig
	metrics apiMetrics
	refused refusals
}

// NewAPI returns an API. It fails if the registry already has metrics of an API
// with that name.
func NewAPI(cfg APIConfig) (*API, error) {
	cfg.Timeout = cmp.Or(cfg.Timeout, 30*time.Second)
	cfg.MaxCalls = cmp.Or(cfg.MaxCalls, 4096)
	cfg.MaxStrangers = cmp.Or(cfg.MaxStrangers, 512)
	cfg.MaxStrangersFrom = cmp.Or(cfg.MaxStrangersFrom, 128)
	cfg.RefusalPeriod = cmp.Or(cfg.RefusalPeriod, 10*time.Second)
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default()).With("api", cfg.Name)
	if cfg.Busy == nil {
		cfg.Busy = &kmsapi.Error{Code: kmsapi.ErrUnavailable.Code, Message: "The node has too many requests to answer. Try again."}
	}
	a := &API{cfg: cfg}
	if err := a.metrics.register(cfg); err != nil {
		return nil, err
	}
	a.refused = refusals{log: cfg.Logger, period: cfg.RefusalPeriod, counter: a.metrics.refused}
	a.Strangers = a.Pool(cfg.MaxStrangers, cfg.MaxStrangersFrom)
	a.Calls.SetLimit(cfg.MaxCalls)
	return a, nil
}

// Pool returns a pool whose evictions are counted in the API's metrics.
func (a *API) Pool(total, each int64) *admission.Pool {
	p := admission.NewPool(total, each)
	p.OnEvict(a.metrics.evicted.Inc)
	return p
}

// Answer returns the answer to a request that failed with err, which must not be nil,
// and counts and logs the error. If the request was evicted, the answer says so,
// whatever err is.
func (a *API) Answer(r *Request, err error) Answer {
	err = r.failure(err)
	answer := Lookup(err)
	r.Trace.Failed(answer.Type, answer.HTTP >= http.StatusInternalServerError)
	// The engine logs its internal errors itself, with their cause.
	if answer.Internal && !errors.Is(err, kmsapi.ErrInternal) {
		a.cfg.Logger.Error("request failed", "method", r.Method, "request_id", FormatRequestID(r.ID), "err", err)
	}
	if answer.GRPC == codes.Unauthenticated {
		reason := answer.Type
		if e, ok := errors.AsType[*sigv4.Error](err); ok {
			reason = e.Reason
		}
		a.refused.note(reason, r.SourceIP)
	}
	a.metrics.errors.WithLabelValues(answer.Type).Inc()
	return answer
}

// Panicked logs a panic in the handling of a request, and returns the error to
// answer it with. The logged stack has addresses, never the contents of messages.
func (a *API) Panicked(r *Request, p any) error {
	a.metrics.panics.Inc()
	a.cfg.Logger.Error("request panicked", "method", r.Method, "request_id", FormatRequestID(r.ID),
		"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return kmsapi.ErrInternal
}

// apiMetrics are the metrics of an API. Requests that reach the engine are
// counted there.
type apiMetrics struct {
	errors, refused *prometheus.CounterVec
	panics, evicted prometheus.Counter
}

func (m *apiMetrics) register(cfg APIConfig) error {
	api := prometheus.Labels{"api": cfg.Name}
	m.errors = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "conclave_api_errors_total", ConstLabels: api,
		Help: "Errors answered by an API, by the name of the error.",
	}, []string{"type"})
	m.refused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "conclave_api_unauthenticated_total", ConstLabels: api,
		Help: "Requests that were refused because they did not prove who sent them, by reason.",
	}, []string{"reason"})
	m.panics = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "conclave_api_panics_total", ConstLabels: api,
		Help: "Requests whose handling panicked.",
	})
	m.evicted = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "conclave_api_evicted_total", ConstLabels: api,
		Help: "Requests that were incomplete or not authenticated, and health watches, that were evicted for newer ones.",
	})
	if cfg.Metrics == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{m.errors, m.refused, m.panics, m.evicted} {
		if err := cfg.Metrics.Register(c); err != nil {
			return fmt.Errorf("API %s: %w", cfg.Name, err)
		}
	}
	return nil
}

// refusals sums up in the log the requests that could not be authenticated: one
// line for each period, so that strangers can fill neither this log nor the
// replicated one.
type refusals struct {
	log     *slog.Logger
	period  time.Duration
	counter *prometheus.CounterVec

	mu      sync.Mutex
	waiting bool // a line will be written at the end of the period
	count   map[string]int
	last    string
}

func (s *refusals) note(reason, source string) {
	s.counter.WithLabelValues(reason).Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count == nil {
		s.count = make(map[string]int)
	}
	s.count[reason]++
	s.last = source
	if !s.waiting {
		s.waiting = true
		time.AfterFunc(s.period, s.sumUp)
	}
}

func (s *refusals) sumUp() {
	s.mu.Lock()
	count, last := s.count, s.last
	s.count, s.waiting = nil, false
	s.mu.Unlock()
	total := 0
	reasons := make([]slog.Attr, 0, len(count))
	for reason, n := range count {
		total += n
		reasons = append(reasons, slog.Int(reason, n))
	}
	s.log.Warn("requests refused before authentication", "total", total,
		slog.GroupAttrs("reasons", reasons...), "period", s.period, "last_source", last)
}
