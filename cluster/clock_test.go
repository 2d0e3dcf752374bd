package cluster

import (
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
)

// TestSealedForDays: an idle cluster whose nodes are sealed over a long weekend has the
// right time when one of them is unsealed, without an operator's word.
func TestSealedForDays(t *testing.T) {
	t.Parallel()
	clock := &fakeClock{}
	c := startCluster(t, 1, func(_ string, cfg *Config) {
		cfg.Clock, cfg.Timeouts.ClockTick = clock, 50*time.Millisecond
	})
	n := c.leader()
	mustPropose(t, n, clustertest.Record())
	n.authority.sealed.Store(true)
	for range 4 {
		before := n.State().Time()
		clock.offset.Add(int64(20 * time.Hour))
		clustertest.Eventually(t, time.Minute, "the time is heard", func() bool { return n.State().Evidence().Observed() > clock.Now().Add(-time.Minute).UnixNano() })
		if got := n.State().Time(); got != before {
			t.Fatalf("cluster time moved by %v while nobody signed", time.Duration(got-before))
		}
	}
	n.authority.sealed.Store(false)
	clustertest.Eventually(t, time.Minute, "the right cluster time", func() bool { return n.State().Time() > clock.Now().Add(-time.Minute).UnixNano() })
	clustertest.Eventually(t, time.Minute, "nothing left to carry", func() bool { return n.State().Evidence().Observed() == 0 })
	mustPropose(t, n, clustertest.Record())
	c.noFaults()
}
