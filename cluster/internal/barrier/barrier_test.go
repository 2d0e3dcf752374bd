package barrier

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/lifecycle"
	"github.com/conclavekms/conclave/fsm"
)

// TestBarriersAreShared: who comes while one is under way waits for the next, all of them
// for the same one.
func TestBarriersAreShared(t *testing.T) {
	asked, answer := make(chan string, 10), make(chan uint64)
	var applied []uint64
	life := lifecycle.New(func(error) {})
	b := New(Config{
		ID: "a", LeaderWait: time.Minute, Life: life,
		Leader: func() string { return "b" },
		Here:   func(context.Context) (uint64, error) { t.Error("this node does not lead"); return 0, nil },
		There: func(_ context.Context, leader string) (uint64, error) {
			asked <- leader
			return <-answer, nil
		},
		WaitApplied: func(_ context.Context, index uint64) error { applied = append(applied, index); return nil },
	})
	var waiting sync.WaitGroup
	wait := func() {
		waiting.Go(func() {
			if err := b.Wait(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wait()
	if leader := <-asked; leader != "b" {
		t.Errorf("%s was asked", leader)
	}
	for range 5 {
		wait()
	}
	clustertest.Eventually(t, 10*time.Second, "the next barrier", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.next != nil
	})
	answer <- 7
	<-asked
	answer <- 9
	done := make(chan struct{})
	go func() { waiting.Wait(); close(done) }()
	for {
		select {
		case <-asked: // some may have come later than the rest
			answer <- 11
			continue
		case <-done:
		}
		break
	}
	if len(applied) < 2 || len(applied) > 3 || applied[0] != 7 || applied[1] != 9 {
		t.Errorf("waited for %v", applied)
	}
	life.Stop()
	life.Wait()
}

// TestBarrierOnTheLeader asks nobody else, and tells why it fails.
func TestBarrierOnTheLeader(t *testing.T) {
	life := lifecycle.New(func(error) {})
	why := errors.New("no majority")
	b := New(Config{
		ID: "a", LeaderWait: 50 * time.Millisecond, Life: life,
		Leader:      func() string { return "a" },
		Here:        func(context.Context) (uint64, error) { return 0, why },
		There:       func(context.Context, string) (uint64, error) { t.Error("another node is asked"); return 0, nil },
		WaitApplied: func(context.Context, uint64) error { return nil },
	})
	if err := b.Wait(t.Context()); !errors.Is(err, fsm.ErrNoLeader) || !errors.Is(err, why) {
		t.Errorf("Wait = %v", err)
	}
	life.Drain()
	if err := b.Wait(t.Context()); !errors.Is(err, fsm.ErrNodeStopped) {
		t.Errorf("Wait on a node that stops = %v", err)
	}
}
