package auditsink

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// collector shows the sinks of a node. All but the leader have no lag.
type collector struct {
	service                      *Service
	records, age, sent, failures *prometheus.Desc
}

func newCollector(s *Service) *collector {
	describe := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("conclave_audit_sink_"+name, help, []string{"sink"}, nil)
	}
	return &collector{
		s,
		describe("lag_records", "Audit records that a sink has not confirmed yet, on the node that leads."),
		describe("lag_seconds", "Age of the oldest audit record that a sink has not confirmed yet, or how long it has failed, on the node that leads."),
		describe("sent_total", "Audit records that a sink has confirmed to this node."),
		describe("failures_total", "Failed attempts of this node to send audit records to a sink."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.records, c.age, c.sent, c.failures} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	for _, st := range c.service.streams {
		lag, age := 0.0, 0.0
		st.mu.Lock()
		s := st.status
		if size := st.cfg.Feed.Size(); st.running && size > s.next {
			lag = float64(size - s.next)
		}
		if st.running && !s.since.IsZero() {
			age = max(0, time.Since(s.since).Seconds())
		}
		st.mu.Unlock()
		give := func(d *prometheus.Desc, kind prometheus.ValueType, v float64) {
			to <- prometheus.MustNewConstMetric(d, kind, v, st.sink.Name)
		}
		give(c.records, prometheus.GaugeValue, lag)
		give(c.age, prometheus.GaugeValue, age)
		give(c.sent, prometheus.CounterValue, float64(s.sent))
		give(c.failures, prometheus.CounterValue, float64(s.failures))
	}
}
