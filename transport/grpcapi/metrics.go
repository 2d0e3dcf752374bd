package grpcapi

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	unauthenticated *prometheus.CounterVec
	panics          prometheus.Counter
}

// newMetrics registers with r, which may be nil.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		unauthenticated: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_grpc_unauthenticated_total",
			Help: "gRPC calls refused because they did not prove who makes them, by the error that they were told.",
		}, []string{"error"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "conclave_grpc_panics_total",
			Help: "gRPC calls that ended in a panic.",
		}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.unauthenticated, m.panics} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// summaryEvery is how often unauthenticated calls make a line in the log.
const summaryEvery = 10 * time.Second

// summary counts what would flood the log if each one made a line.
type summary struct {
	count atomic.Int64
	last  atomic.Int64 // Unix nanoseconds of the last line
}

// add counts one more and returns how many a line is due for now, or 0.
func (s *summary) add(now time.Time) int64 {
	s.count.Add(1)
	last := s.last.Load()
	if now.UnixNano()-last < int64(summaryEvery) || !s.last.CompareAndSwap(last, now.UnixNano()) {
		return 0
	}
	return s.count.Swap(0)
}

// unauthenticated notes a call whose caller did not prove who it is. The errors'
// names are few.
func (s *Server) unauthenticated(name string) {
	s.metrics.unauthenticated.WithLabelValues(name).Inc()
	if n := s.refused.add(s.cfg.Clock.Now()); n > 0 {
		s.log.Warn("unauthenticated calls refused", "count", n, "last", name)
	}
}
