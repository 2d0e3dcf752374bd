package awsapi

import (
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport"
)

var (
	errUnknownOperation = transport.ErrUnknownOperation
	// errAddress is the answer to what is not a POST to "/".
	errAddress     = &keyengine.Error{Code: transport.ErrUnknownOperation.Code, Message: "Requests are POST / HTTP/1.1 or HTTP/2."}
	errContentType = &keyengine.Error{Code: transport.ErrUnknownOperation.Code, Message: "The Content-Type of a request is " + contentType + "."}
)

// fail answers a request with an error.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, ex *exchange, err error) {
	if ref, ok := errors.AsType[*refusal](err); ok {
		h.refusals.note(ref.reason, r.RemoteAddr)
	}
	a := transport.Lookup(err)
	if a.Internal {
		h.cfg.Logger.Error("request failed", "request_id", transport.FormatRequestID(ex.id), "err", err)
	}
	status := a.HTTP
	if err == errAddress {
		// The two cases that plain HTTP has words for.
		status = http.StatusNotFound
		if r.URL.Path == "/" && r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			status = http.StatusMethodNotAllowed
		}
	}
	if a.HTTP == http.StatusRequestEntityTooLarge || err == errBody {
		w.Header().Set("Connection", "close") // there may be much more of the body
	}
	h.answer(w, ex, a, status)
}

// answer writes an error. status replaces the table's if it is not 0.
func (h *Handler) answer(w http.ResponseWriter, ex *exchange, a transport.Answer, status int) {
	if status == 0 {
		status = a.HTTP
	}
	b := append(ex.out[:0], `{"__type":`...)
	b = appendText(b, a.Type)
	if a.Message != "" {
		b = append(b, `,"message":`...)
		b = appendText(b, a.Message)
	}
	b = append(b, '}')
	ex.out = b
	h.metrics.errors.WithLabelValues(a.Type).Inc()
	header := w.Header()
	header["Content-Type"] = contentTypes
	header["Content-Length"] = []string{strconv.Itoa(len(b))}
	header[headerErrorType] = []string{a.Type}
	if a.HTTP == http.StatusServiceUnavailable || a.Type == string(keyengine.ErrThrottling.Code) {
		header.Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	w.Write(b) // as above
}

// metrics of the face. The engine counts what reaches it.
type metrics struct {
	errors  *prometheus.CounterVec
	refused *prometheus.CounterVec
	panics  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_aws_errors_total",
			Help: "Errors answered on the AWS face, by their name.",
		}, []string{"type"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_aws_auth_failures_total",
			Help: "Requests on the AWS face that were refused before it was known who sent them, by reason.",
		}, []string{"reason"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "conclave_aws_panics_total",
			Help: "Requests on the AWS face whose handling panicked.",
		}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.errors, m.refused, m.panics} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// refusals sums up in the log who could not be made out, so that strangers fill
// neither it nor the replicated log: one line a period, however many there are.
type refusals struct {
	log     *slog.Logger
	period  time.Duration
	counter *prometheus.CounterVec

	mu      sync.Mutex
	waiting bool // a line will be written at the end of the period
	count   map[string]int
	last    string
}

func (s *refusals) note(reason, remote string) {
	s.counter.WithLabelValues(reason).Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count == nil {
		s.count = make(map[string]int)
	}
	s.count[reason]++
	s.last = remote
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
	s.log.Warn("requests refused before authentication", "face", "aws", "total", total,
		slog.GroupAttrs("reasons", reasons...), "period", s.period, "last_source", transport.SourceIP(last))
}
