package raftlog

import (
	"fmt"
	"sync"
	"time"
)

// Gate keeps entries from being stored while there is no room for them. Whoever
// comes waits before anything is written: nothing is lost and nothing has failed, and
// it goes on when there is room. Raft waits with it, so the node votes for nobody and
// confirms nothing meanwhile.
type Gate struct {
	mu     sync.Mutex
	opened sync.Cond
	shut   bool
	gone   bool
	ended  chan struct{} // closed with gone
}

// NewGate returns an open gate.
func NewGate() *Gate {
	g := &Gate{ended: make(chan struct{})}
	g.opened.L = &g.mu
	return g
}

// Set shuts and opens the gate.
func (g *Gate) Set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	g.opened.Broadcast()
}

// Close lets nobody through any more.
func (g *Gate) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.gone {
		g.gone = true
		close(g.ended)
	}
	g.opened.Broadcast()
}

// pass returns when the gate is open.
func (g *Gate) pass(m *Meter) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut && !g.gone {
		w := m.begin(writeHeld)
		defer m.end(w)
	}
	for g.shut && !g.gone {
		g.opened.Wait()
	}
	if g.gone {
		return fmt.Errorf("%w: closed", ErrStorage)
	}
	return nil
}

// SpaceRetry is how often a write that found no space is tried again.
const SpaceRetry = 200 * time.Millisecond

// Wait is what a write waits with for which the disk had no space although the gate
// was open when it came: something else may fill a disk to the last byte at once. It
// reports false when nothing is waited for any more.
func (g *Gate) Wait(m *Meter) bool {
	defer m.spaceless()()
	select {
	case <-time.After(SpaceRetry):
		return true
	case <-g.ended:
		return false
	}
}
