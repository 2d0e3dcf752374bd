package auditwitness

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// collector shows the witnesses of a node. All but the leader have no lag.
type collector struct {
	service                            *Service
	newest, cosigned, behind, failures *prometheus.Desc
}

func newCollector(s *Service) *collector {
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("conclave_audit_"+name, help, labels, nil)
	}
	return &collector{
		s,
		describe("cosigned_records", "Audit records that the newest checkpoint covers which a quorum of the witnesses has cosigned, as far as this node knows."),
		describe("witness_cosigned_records", "Audit records that the newest checkpoint covers which a witness has cosigned for this node.", "witness"),
		describe("witness_lag_seconds", "How long a witness has not cosigned what it was asked for, on the node that leads.", "witness"),
		describe("witness_failures_total", "Failed attempts of this node to get a cosignature, by reason: unreachable, refused, invalid, and conflict, "+
			"which means that the witness knows another log than this node has.", "witness", "reason"),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.newest, c.cosigned, c.behind, c.failures} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	s := c.service
	if !s.Enabled() {
		return
	}
	give := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	give(c.newest, prometheus.GaugeValue, float64(s.newest.size))
	for i, st := range s.status {
		name, lag := s.clients[i].keys.Name(), 0.0
		if !st.since.IsZero() {
			lag = max(0, time.Since(st.since).Seconds())
		}
		give(c.cosigned, prometheus.GaugeValue, float64(st.size), name)
		give(c.behind, prometheus.GaugeValue, lag, name)
		for _, reason := range reasons {
			give(c.failures, prometheus.CounterValue, float64(st.failures[reason]), name, reason)
		}
	}
}
