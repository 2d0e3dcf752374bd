package raftlog

import (
	"fmt"
	"sync"
	"time"
)

// Gate delays the storing of entries while there is no space for them. The wait is before
// anything is written, so nothing is lost and nothing fails, and it ends when there is
// space. Raft is blocked meanwhile, so the node neither votes nor acknowledges entries.
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

// Close makes every wait at the gate fail, now and later.
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

// SpaceRetry is the interval at which a write that found no space is tried again.
const SpaceRetry = 200 * time.Millisecond

// Wait is called by a write that passed the open gate but found no space on the disk,
// because something else may have filled the disk in the meantime. It returns true when the
// write should be tried again, and false once the gate is closed.
func (g *Gate) Wait(m *Meter) bool {
	defer m.spaceless()()
	select {
	case <-time.After(SpaceRetry):
		return true
	case <-g.ended:
		return false
	}
}
