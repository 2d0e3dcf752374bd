package auditarchive

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/auditlog"
)

// metrics are the metrics of the archive. They exist also where there is none.
type metrics struct {
	service                     *Service
	segments, failures, altered prometheus.Counter
	lag, removed                *prometheus.Desc
}

func newMetrics(s *Service) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "conclave_audit_archive_" + name, Help: help})
	}
	return &metrics{
		service:  s,
		segments: counter("segments_total", "Segments of the audit log that this node has copied to the archive."),
		failures: counter("failures_total", "Failed attempts of this node to archive a segment of the audit log, or to remove one that is archived."),
		altered:  counter("altered_total", "Attempts that found something else in the archive than the audit log has: somebody has altered it."),
		lag: prometheus.NewDesc("conclave_audit_archive_lag_segments",
			"Full segments of the audit log that are not in the archive yet; 0 if there is no archive.", nil, nil),
		removed: prometheus.NewDesc("conclave_audit_removed_segments",
			"Segments of the audit log that this node has removed from its disk, as they are in the archive.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(to chan<- *prometheus.Desc) {
	for _, c := range []prometheus.Counter{m.segments, m.failures, m.altered} {
		c.Describe(to)
	}
	to <- m.lag
	to <- m.removed
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(to chan<- prometheus.Metric) {
	for _, c := range []prometheus.Counter{m.segments, m.failures, m.altered} {
		c.Collect(to)
	}
	lag, removed := uint64(0), uint64(0)
	if cfg := m.service.cfg; cfg.Store != nil {
		state := cfg.Replica.State()
		frontier, _ := state.Audit()
		lag = frontier.Size() / auditlog.SegmentSize
		p, err := progressOf(state)
		if err == nil && p.Place == cfg.Store.String() {
			lag -= min(lag, p.Segments)
		}
	}
	if m.service.cfg.Log != nil {
		removed = m.service.cfg.Log.Removed().Segments
	}
	to <- prometheus.MustNewConstMetric(m.lag, prometheus.GaugeValue, float64(lag))
	to <- prometheus.MustNewConstMetric(m.removed, prometheus.GaugeValue, float64(removed))
}
