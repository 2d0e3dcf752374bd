package keyengine

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/iamapi"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/keyengine/trailapi"
)

// metrics counts what the engine answers. Label values come from closed sets and never from
// a caller's input.
type metrics struct {
	requests  *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	conflicts *prometheus.CounterVec
	lates     *prometheus.CounterVec
	forwarded *prometheus.CounterVec
	// forged counts uses of credentials that no unsealed node wrote.
	forged prometheus.Counter
	// refused counts records that violated a rule of the state machine, by the node that
	// proposed them.
	refused *prometheus.CounterVec
	// breakGlass counts access keys of break-glass ceremonies.
	breakGlass prometheus.Counter
	// unopenable counts records that were read and could not be decrypted.
	unopenable prometheus.Counter
	// unsealParts counts what this node gave to unseal others, and unsealSuspects the
	// questions for it that it refused because they may not be from the node.
	unsealParts, unsealSuspects prometheus.Counter
	// alerts counts the alerts that this node has recorded, by rule.
	alerts *prometheus.CounterVec
}

func newMetrics(cfg Config, e *Engine) *metrics {
	f := promauto.With(cfg.Metrics)
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "conclave_sealed", Help: "1 while this node is sealed, 0 while it can use keys.",
	}, func() float64 {
		if e.vault.Sealed() {
			return 1
		}
		return 0
	})
	f.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "conclave_cached_keys", Help: "Versions of KMS keys that this node holds in the clear, in locked memory.",
	}, func() float64 { return float64(e.vault.CachedKeys()) })
	return &metrics{
		requests: f.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_requests_total", Help: "Requests answered, by operation, outcome and transport.",
		}, []string{"operation", "outcome", "transport"}),
		duration: f.NewHistogramVec(prometheus.HistogramOpts{
			Name: "conclave_request_duration_seconds", Help: "Time to answer, commit of the record included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"operation"}),
		conflicts: f.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_request_conflicts_total", Help: "Evaluations thrown away because what they read had changed.",
		}, []string{"operation"}),
		lates: f.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_request_late_total", Help: "Answers withheld because they were held up for too long.",
		}, []string{"operation"}),
		forged: f.NewCounter(prometheus.CounterOpts{
			Name: "conclave_credential_forged_total", Help: "Uses of credentials in the state that no unsealed node wrote.",
		}),
		refused: f.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_records_refused_total", Help: "Records of unsealed nodes that broke a rule and changed nothing. " +
				"Anything but 0 means that the node has a bug or was taken over.",
		}, []string{"node"}),
		breakGlass: f.NewCounter(prometheus.CounterOpts{
			Name: "conclave_break_glass_keys_total", Help: "Access keys for an account's root user that the custodians had made, on any node.",
		}),
		unopenable: f.NewCounter(prometheus.CounterOpts{
			Name: "conclave_audit_unopenable_total", Help: "Records of the audit log that were read and could not be opened.",
		}),
		unsealParts: f.NewCounter(prometheus.CounterOpts{
			Name: "conclave_peer_unseal_parts_total", Help: "Parts that this node gave to other nodes to unseal them.",
		}),
		unsealSuspects: f.NewCounter(prometheus.CounterOpts{
			Name: "conclave_peer_unseal_suspects_total", Help: "Processes that this node refused to help unseal because they may not be the node that they say they are, " +
				"counted at most once a minute for each node. Anything but 0 means that a disk or an identity may have been copied.",
		}),
		alerts: f.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_alerts_total", Help: "Alerts that this node recorded as the leader.",
		}, []string{"rule"}),
		forwarded: f.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_request_forwarded_total", Help: "Requests that the leader had to execute, after too many conflicts.",
		}, []string{"operation"}),
	}
}

func (m *metrics) operation(op *request.Operation, c *iam.Caller, err error, took time.Duration) {
	m.requests.WithLabelValues(op.Name, outcomeLabel(err), transportLabel(c.Transport)).Inc()
	m.duration.WithLabelValues(op.Name).Observe(took.Seconds())
}

func (m *metrics) conflict(op *request.Operation) { m.conflicts.WithLabelValues(op.Name).Inc() }
func (m *metrics) late(operation string)          { m.lates.WithLabelValues(operation).Inc() }
func (m *metrics) forward(op *request.Operation)  { m.forwarded.WithLabelValues(op.Name).Inc() }

// outcomeLabel returns the error code of an outcome, or "ok". A code that this binary does
// not know, from a newer node, becomes "other".
func outcomeLabel(err error) string {
	if err == nil {
		return "ok"
	}
	for _, list := range [][]*kmsapi.Error{kmsapi.Errors(), iamapi.Errors(), trailapi.Errors()} {
		for _, known := range list {
			if errors.Is(err, known) {
				return string(known.Code)
			}
		}
	}
	return "other"
}

func transportLabel(t string) string {
	if t == "aws" || t == "query" || t == "grpc" {
		return t
	}
	return "other"
}
