package node

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// expiryWarning is how long before a certificate expires the log begins to
	// warn.
	expiryWarning = 30 * 24 * time.Hour
	// expiryInterval is the time between two warnings.
	expiryInterval = 24 * time.Hour
)

// expiring is a certificate that this node depends on.
type expiring struct {
	name string // label of the metric: node or ca
	end  func() time.Time
}

func (n *Node) certificates() []expiring {
	return []expiring{{"node", n.identity.NotAfter}, {"ca", n.identity.CANotAfter}}
}

// registerExpiry registers the metric for when certificates expire.
func (n *Node) registerExpiry() {
	for _, c := range n.certificates() {
		n.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "conclave_certificate_expiry_timestamp_seconds", Help: "When a certificate of this node expires, in Unix time.",
			ConstLabels: prometheus.Labels{"certificate": c.name},
		}, func() float64 { return float64(c.end().Unix()) }))
	}
}

// watchExpiry warns of certificates that expire soon, at once and then every
// interval.
func (n *Node) watchExpiry(ctx context.Context, interval time.Duration) {
	for {
		n.warnOfExpiry(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-time.After(interval):
		}
	}
}

func (n *Node) warnOfExpiry(now time.Time) {
	for _, c := range n.certificates() {
		left := c.end().Sub(now)
		switch {
		case left <= 0:
			n.log.Error("a certificate has expired: peers and clients refuse it; issue another and send SIGHUP", "certificate", c.name, "not_after", c.end())
		case left < expiryWarning:
			n.log.Warn("a certificate expires soon: issue another with `conclave cert issue` and send SIGHUP", "certificate", c.name, "not_after", c.end(), "days_left", int(left.Hours()/24))
		}
	}
}
