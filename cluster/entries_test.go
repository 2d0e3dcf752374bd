package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

func histogram(t testing.TB, h prometheus.Histogram) *dto.Histogram {
	t.Helper()
	var m dto.Metric
	if err := h.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.Histogram
}

// TestEntriesFillUp holds the bar of the design: with 64 clients in closed loops
// on three nodes, an entry carries 16 records or more.
func TestEntriesFillUp(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	l := c.leader()
	before := histogram(t, l.metrics.entryRecords)
	var done atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex
	var latencies []time.Duration
	ctx := within(t, 2*time.Second)
	start := time.Now()
	for i := range 64 {
		n := c.up()[i%3]
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				began := time.Now()
				v, err := n.Propose(context.Background(), clustertest.Record())
				if err != nil || v.Verdict != fsm.Accepted {
					t.Errorf("Propose = %+v, %v", v, err)
					return
				}
				d := time.Since(began)
				mu.Lock()
				latencies = append(latencies, d)
				mu.Unlock()
				done.Add(1)
			}
		}()
	}
	wg.Wait()
	took := time.Since(start)
	after := histogram(t, l.metrics.entryRecords)
	entries := after.GetSampleCount() - before.GetSampleCount()
	records := after.GetSampleSum() - before.GetSampleSum()
	slices.Sort(latencies)
	t.Logf("%d records in %v: %.0f/s, %.1f records an entry, p50 %v, p99 %v", done.Load(), took,
		float64(done.Load())/took.Seconds(), records/float64(entries), latencies[len(latencies)/2], latencies[len(latencies)*99/100])
	if records/float64(entries) < 16 {
		t.Errorf("%.1f records an entry, want 16", records/float64(entries))
	}
	c.noFaults()
}

func TestExclusiveNeverConflicts(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, func(_ string, cfg *Config) {
		cfg.Timeouts.Heartbeat, cfg.Timeouts.Election, cfg.Timeouts.Lease = 1500*time.Millisecond, 1500*time.Millisecond, 750*time.Millisecond
	})
	l := c.leader()
	term := l.term()
	id := fsm.KeyID{Region: "eu-central-1", ID: [16]byte{1}}
	ctx := within(t, 1500*time.Millisecond)
	var wg sync.WaitGroup
	var conflicts, wins, exclusive atomic.Int64
	for i, n := range c.up() { // ordinary writers that fight for the same object
		for j := range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for ctx.Err() == nil {
					v, err := n.Propose(context.Background(), clustertest.PolicyChange(n.State(), id, fmt.Sprint(i, j)))
					if err != nil {
						t.Error(err)
						return
					}
					if v.Verdict == fsm.Conflict {
						conflicts.Add(1)
					} else {
						wins.Add(1)
					}
				}
			}()
		}
	}
	for range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				v, err := l.ProposeExclusive(context.Background(), func(s *fsm.State) (*fsmpb.Record, error) {
					return clustertest.PolicyChange(s, id, "exclusive"), nil
				})
				if l.term() != term {
					t.Error("void: this machine is so slow that another node leads now")
					return
				}
				if err != nil || v.Verdict != fsm.Accepted {
					t.Errorf("ProposeExclusive = %+v, %v", v, err)
					return
				}
				exclusive.Add(1)
			}
		}()
	}
	wg.Wait()
	t.Logf("%d conflicts and %d wins of others, %d exclusive", conflicts.Load(), wins.Load(), exclusive.Load())
	if conflicts.Load() == 0 || exclusive.Load() < 10 {
		t.Error("the test did not put ProposeExclusive under pressure")
	}
	if _, err := c.followers()[0].ProposeExclusive(within(t, time.Second), nil); err == nil {
		t.Error("ProposeExclusive worked on a follower")
	}
	c.converged()
	c.noFaults()
}

func TestRepeatedSnapshotIsNoticed(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	n := c.leader()
	for range 10 {
		n.restored(41)
	}
	select {
	case err := <-n.faults:
		if !errors.Is(err, ErrSnapshotLoop) {
			t.Errorf("fault = %v", err)
		}
	case <-time.After(time.Second):
		t.Error("not noticed")
	}
}

// TestStuckTransferStopsTheNode is hashicorp/raft issue 696 as it shows: a leader that
// refuses everything.
func TestStuckTransferStopsTheNode(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1, nil)
	n := c.leader()
	n.committer.Observe(raft.ErrLeadershipTransferInProgress)
	select {
	case err := <-n.faults:
		if !errors.Is(err, ErrTransferStuck) {
			t.Errorf("fault = %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("not noticed")
	}
}
