package faults

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/conclavekms/conclave/integration/harness"
)

// TestPauses stops the process of a random node, round after round, for a second to a
// minute with CONCLAVE_FAULTS=1, and lets it go on. The others serve on, the node does
// not end or seal itself and catches up, and nothing that a client was told is lost.
func TestPauses(t *testing.T) {
	seed := harness.NewSeed(t)
	random := rand.New(rand.NewPCG(seed, 0))
	// One is longer than a disk may take that is given up on, were a pause not told
	// from it.
	pauses := []time.Duration{1500 * time.Millisecond, 7 * time.Second}
	if harness.AtLength() {
		pauses = nil
		for range 10 {
			pauses = append(pauses, time.Second+time.Duration(random.Int64N(int64(59*time.Second))))
		}
		pauses[random.IntN(10)] = time.Minute
	}
	c := harness.NewCluster(t, 3, harness.Options{Processes: true})
	h := harness.NewHistory()
	c.Finalize()
	w := harness.StartSteadyWorkload(t, c, h, seed, 9)
	w.AwaitAnswers(100)
	for round, pause := range pauses {
		victim := c.Nodes[random.IntN(len(c.Nodes))]
		leads := c.Leader() == victim
		from := h.Now()
		if err := victim.Pause(pause); err != nil {
			t.Fatal(err)
		}
		awake := h.Now()
		answersAgain(t, c, h, victim)
		back := h.Now() - awake
		c.NoFaults()
		var others time.Duration
		for _, nd := range c.Nodes {
			if nd != victim {
				others = max(others, silence(h.Ops(), nd, from, awake))
			}
		}
		t.Logf("round %d: paused %s for %v, leader: %v; the others were silent for %v at most, and it answered %v after it went on",
			round+1, victim.ID, pause.Round(time.Millisecond), leads, others.Round(time.Millisecond), back.Round(time.Millisecond))
		if others > 2*recoveryBar {
			t.Errorf("the others did not answer for %v; the bar is %v", others, recoveryBar)
		}
		w.AwaitAnswers(100)
	}
	w.Finish()
	for _, nd := range c.Nodes {
		if s, err := nd.Status(t.Context()); err != nil || s.GetSeal().GetSealed() || len(s.GetFaults()) > 0 {
			t.Errorf("%s after the pauses: %v, %v", nd.ID, s, err)
		}
	}
	w.OpensEverywhere(random)
	keysAreThere(t, c, h, w)
	harness.Witnessed(t, c, h)
}

// answersAgain waits until a node answers a request that needs the cluster.
func answersAgain(t *testing.T, c *harness.Cluster, h *harness.History, nd *harness.Node) {
	t.Helper()
	c.Eventually(nd.ID+" to answer again", func(ctx context.Context) error {
		if _, o := h.At(nd).CreateKey(ctx, "answers again"); o.Code != "" {
			return errors.New(o.String())
		}
		return nil
	})
}

// silence is the longest time between two moments in which clients had no definite
// answer of a node.
func silence(ops []harness.Op, nd *harness.Node, from, to time.Duration) time.Duration {
	var longest time.Duration
	last := from
	for _, o := range ops { // in the order in which they returned
		if o.Node != nd.ID || !o.Definite() || o.Returned < from {
			continue
		}
		longest = max(longest, min(o.Returned, to)-last)
		if last = o.Returned; last >= to {
			return longest
		}
	}
	return max(longest, to-last)
}
