package raftlog

import (
	"sync"
	"time"
)

const (
	// pulseBeat is the interval between two beats.
	pulseBeat = 50 * time.Millisecond
	// pulseSkip is the longest time that one beat counts for. If more time has passed, this
	// process did not run during the rest.
	pulseSkip = 4 * pulseBeat
)

// pulse measures the time during which this process runs. A process can be stopped by a
// signal, by its container's freezer, by the migration of its virtual machine or by closing
// a laptop's lid. Even the monotonic clock may run meanwhile, and what the process waits
// for may have happened long before it runs again. So the timeouts after which this node
// acts against other nodes or its own disk are measured with a pulse: after a pause the
// remaining time is the same as before.
type pulse struct {
	mu   sync.Mutex
	last time.Time // of the last beat
	ran  time.Duration
}

// beat counts the time since the last beat.
func (p *pulse) beat(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.last.IsZero() {
		p.ran += max(0, min(now.Sub(p.last), pulseSkip))
	}
	p.last = now
}

// now returns the time that this process has run. Only differences are meaningful.
func (p *pulse) now() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ran
}
