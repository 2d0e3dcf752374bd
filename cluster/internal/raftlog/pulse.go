package raftlog

import (
	"sync"
	"time"
)

const (
	// pulseBeat is how often a pulse is felt.
	pulseBeat = 50 * time.Millisecond
	// pulseSkip is the most that one beat counts: what lies between two beats
	// beyond it is time in which this process did not run.
	pulseSkip = 4 * pulseBeat
)

// pulse measures time for as long as this process runs, and no more. A process can
// be stopped by a signal, by its container's freezer, by the migration of its
// machine or by a laptop's lid; the clocks, even the monotonic one, may go on
// meanwhile, and what it waits for may have come to pass long ago. So whatever this
// node does about others, or about its disk, for having waited too long it measures
// with a pulse: after a pause it waits on from where it was.
type pulse struct {
	mu   sync.Mutex
	last time.Time // of a beat
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

// now is how long this process was seen to run. Only differences mean something.
func (p *pulse) now() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ran
}
