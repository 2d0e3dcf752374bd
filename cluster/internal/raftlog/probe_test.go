package raftlog

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
)

// TestProbeIsOneWriteForAll asks a node many times at once, and again, whether its disk
// answers. The disk gets one write of it at a time, and none while an answer is fresh.
func TestProbeIsOneWriteForAll(t *testing.T) {
	var probes atomic.Int64
	gate := make(chan struct{})
	s, err := Open(t.TempDir(), time.Minute, Hooks{Before: func(op string) error {
		if op == "probe" {
			probes.Add(1)
			<-gate
		}
		return nil
	}}, nil, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const callers = 50
	answers := make(chan error, callers)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for range callers {
		go func() { answers <- s.Probe(ctx) }()
	}
	clustertest.Eventually(t, 10*time.Second, "a probe", func() bool { return probes.Load() > 0 })
	short, stop := context.WithTimeout(context.Background(), time.Millisecond)
	defer stop()
	if err := s.Probe(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a disk that hangs answered %v", err)
	}
	clustertest.Eventually(t, 10*time.Second, "the store to know that its disk hangs", func() bool { return s.Meter().Behind() > 0 })
	close(gate)
	for range callers {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	if got := probes.Load(); got > 2 { // a caller may have come when the first one's answer had aged
		t.Errorf("%d callers made %d writes", callers, got)
	}
	start, before := time.Now(), probes.Load()
	for range 1000 {
		if err := s.Probe(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if got, most := probes.Load()-before, int64(time.Since(start)/probeGood)+1; got > most {
		t.Errorf("%d writes in %v", got, time.Since(start))
	}
}

// TestProbeThatFailsStopsNothing: the log's own writes decide about that.
func TestProbeThatFailsStopsNothing(t *testing.T) {
	s, faults := testStore(t, t.TempDir(), Hooks{Before: func(op string) error {
		if op == "probe" {
			return errors.New("no")
		}
		return nil
	}})
	if err := s.Probe(context.Background()); err == nil {
		t.Error("a probe that failed says that the disk answers")
	}
	if err := s.StoreLogs(someLogs(1, 4, 100)); err != nil {
		t.Error(err)
	}
	select {
	case err := <-faults:
		t.Errorf("a probe that failed stopped the store: %v", err)
	default:
	}
}
