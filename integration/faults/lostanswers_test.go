package faults

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cmd/conclave/node"
	"github.com/conclavekms/conclave/integration/harness"
)

// TestLostAnswers loses every tenth of the leader's answers to batches that it
// applied, and ends the leader in the middle of its work several times. What was
// asked once must happen once all the same, and everybody who was told an outcome
// was told the one in the log.
func TestLostAnswers(t *testing.T) {
	seed := harness.NewSeed(t)
	kills, between := 2, int64(150)
	if harness.Full() {
		kills, between = 4, 400
	}
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 0))
	var lost, answered atomic.Int64
	dropping := atomic.Bool{}
	c := harness.NewCluster(t, 3, harness.Options{Configure: func(_ *harness.Node, cfg *node.Config) {
		cfg.Timeouts.Resubmit = 300 * time.Millisecond
		cfg.Test.Cluster.DropAnswer = func(_ string, r *clusterpb.SubmitResponse) bool {
			if r.Seq == 0 || r.Status != clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED {
				return false
			}
			answered.Add(1)
			mu.Lock()
			defer mu.Unlock()
			if !dropping.Load() || random.IntN(10) > 0 {
				return false
			}
			lost.Add(1)
			return true
		}
	}})
	c.Finalize()
	h := harness.NewHistory()
	w := harness.StartWorkload(t, c, h, seed, 24)
	dropping.Store(true)
	for range kills {
		w.AwaitAnswers(between)
		leader := c.Leader()
		leader.Kill()
		w.AwaitAnswers(between / 2)
		leader.Start()
		leader.Unseal()
	}
	w.AwaitAnswers(between)
	dropping.Store(false)
	w.Finish()
	c.WaitReady()
	t.Logf("%d of %d answers to batches were lost, %d leaders killed", lost.Load(), answered.Load(), kills)
	if lost.Load() < 20 {
		t.Error("void: too few answers were lost to mean anything")
	}
	w.OpensEverywhere(random)
	harness.Witnessed(t, c, h)
}
