package raftlog

import (
	"errors"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
)

// TestGate holds back who comes while there is no room. The node knows that it is
// behind, and takes the disk for one that answers.
func TestGate(t *testing.T) {
	g, m := NewGate(), NewMeter()
	clock := time.Now()
	run := func(d time.Duration) {
		for range d / pulseBeat {
			clock = clock.Add(pulseBeat)
			m.pulse.beat(clock)
		}
	}
	run(time.Second)
	if err := g.pass(m); err != nil {
		t.Fatalf("an open gate: %v", err)
	}
	g.Set(true)
	const writers = 8
	passed := make(chan error, writers)
	for range writers {
		go func() { passed <- g.pass(m) }()
	}
	clustertest.Eventually(t, 10*time.Second, "all to wait", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.writes) == writers
	})
	run(time.Hour)
	if m.stuck() != 0 {
		t.Errorf("what waits for room counts as a write that hangs, for %v", m.stuck())
	}
	if m.Behind() < time.Hour-time.Second {
		t.Errorf("behind = %v after an hour without room", m.Behind())
	}
	g.Set(true) // as each look at a full disk says
	select {
	case err := <-passed:
		t.Fatalf("one passed a shut gate: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	g.Set(false)
	for range writers {
		if err := <-passed; err != nil {
			t.Errorf("with room again: %v", err)
		}
	}
	if m.Behind() != 0 {
		t.Errorf("behind = %v with nothing under way", m.Behind())
	}

	g.Set(true)
	go func() { passed <- g.pass(m) }()
	g.Close()
	g.Close()
	if err := <-passed; !errors.Is(err, ErrStorage) {
		t.Errorf("who waited when the store was closed: %v", err)
	}
	g.Set(false)
	if err := g.pass(m); !errors.Is(err, ErrStorage) {
		t.Errorf("a closed gate lets pass: %v", err)
	}
	if g.Wait(m) {
		t.Error("a closed gate makes wait for space")
	}
}

// TestWaitingForSpaceIsNoHangingWrite: the watchdog counts neither the time in which a
// write waits for space nor that of others beside it, and all other time.
func TestWaitingForSpaceIsNoHangingWrite(t *testing.T) {
	m := NewMeter()
	clock := time.Now()
	run := func(d time.Duration) {
		for range d / pulseBeat {
			clock = clock.Add(pulseBeat)
			m.pulse.beat(clock)
		}
	}
	m.pulse.beat(clock)
	w := m.begin(writeCommit)
	run(2 * time.Second)
	if got := m.stuck(); got != 2*time.Second {
		t.Errorf("stuck for %v, want 2s", got)
	}
	end := m.spaceless()
	run(time.Minute)
	if got := m.stuck(); got != 0 {
		t.Errorf("stuck for %v while there is no space", got)
	}
	beside := m.begin(writeApart) // it came later
	run(10 * time.Second)
	end()
	run(3 * time.Second)
	if got := m.stuck(); got != 5*time.Second {
		t.Errorf("stuck for %v, want the 5s in which nothing waited for space", got)
	}
	if got := m.Behind(); got != 75*time.Second {
		t.Errorf("behind for %v, want all of the 75s: such a node should not lead", got)
	}
	m.end(w)
	if got := m.stuck(); got != 3*time.Second {
		t.Errorf("the write beside is stuck for %v, want 3s", got)
	}
	m.end(beside)
	m.begin(writeHeld)
	run(time.Minute)
	if got := m.stuck(); got != 0 {
		t.Errorf("a write that has not begun is stuck for %v", got)
	}
}
