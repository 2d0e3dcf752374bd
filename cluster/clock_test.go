package cluster

import (
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/fsm"
)

// TestClockGuard moves a leader's clock and asks what its entries would carry.
func TestClockGuard(t *testing.T) {
	clock := &fakeClock{}
	g := &clockGuard{clock: clock, self: "a"}
	state := fsm.New(fsm.Config{}).Current()
	stamps := func(want bool, when string) {
		t.Helper()
		if got := g.evidence(state, time.Millisecond).Wall != 0; got != want {
			t.Errorf("%s: an entry carries time: %v, want %v", when, got, want)
		}
	}
	read := func(offsets ...time.Duration) {
		var rs []reading
		for i, o := range offsets {
			rs = append(rs, reading{string(rune('b' + i)), o})
		}
		g.take(rs, time.Now(), 3)
	}
	stamps(true, "at first")
	clock.offset.Store(int64(time.Hour))
	stamps(false, "after a jump")
	stamps(false, "still")
	read()
	stamps(false, "without any other clock")
	read(-time.Hour, -time.Hour)
	stamps(false, "with all others against it")
	if !g.disagrees() {
		t.Error("the disagreement is not shown")
	}
	read(-time.Hour)
	stamps(false, "with one other against it")
	read(time.Second)
	stamps(true, "with one other, and so a majority, for it")
	read(time.Second, -time.Hour)
	stamps(true, "with one for and one against it")
	if g.disagrees() {
		t.Error("a disagreement is shown")
	}
	clock.offset.Store(0)
	stamps(false, "after a jump back")
	read(0, 0)
	stamps(true, "confirmed")
	// A slow drift is no jump, and shows in the readings.
	read(-6*time.Second, -6*time.Second)
	stamps(false, "drifted off")
	if c := g.evidence(state, 0); len(c.Readings) != 0 {
		t.Errorf("an entry without time has %d readings", len(c.Readings))
	}
}

// TestSealedForDays: an idle cluster whose nodes are sealed over a long weekend has the
// right time when one of them is unsealed, without an operator's word.
func TestSealedForDays(t *testing.T) {
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
		clustertest.Eventually(t, 10*time.Second, "the time is heard", func() bool { return n.State().Observed() > clock.Now().Add(-time.Minute).UnixNano() })
		if got := n.State().Time(); got != before {
			t.Fatalf("cluster time moved by %v while nobody signed", time.Duration(got-before))
		}
	}
	n.authority.sealed.Store(false)
	clustertest.Eventually(t, 10*time.Second, "the right cluster time", func() bool { return n.State().Time() > clock.Now().Add(-time.Minute).UnixNano() })
	clustertest.Eventually(t, 10*time.Second, "nothing left to carry", func() bool { return n.State().Observed() == 0 })
	mustPropose(t, n, clustertest.Record())
	c.noFaults()
}
