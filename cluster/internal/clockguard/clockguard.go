// Package clockguard keeps a leader from stamping entries with a clock that differs from
// the others'. The state machine limits the effect of one entry, but there are many
// entries, so a leader must not even try.
//
// It guarantees that an entry carries a time only if this node's wall clock keeps pace with
// the monotonic clock, or was confirmed by a majority since it last did not, and if no
// majority has a different time.
package clockguard

import (
	"sync"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

const (
	// agreement is how far another voter's clock may differ and still confirm this one.
	// Package fsm applies the same bound to entries.
	agreement = 5 * time.Second
	// jump is how far the wall clock may deviate from the monotonic one between two looks
	// before it has to be confirmed again.
	jump = time.Second
	// readingAge is the maximum age of a reading of another clock.
	readingAge = time.Second
)

// Clock is the node's wall clock.
type Clock interface{ Now() time.Time }

// Guard supervises one node's clock. Its methods are safe for concurrent use.
type Guard struct {
	clock Clock
	self  string // id of this node

	mu       sync.Mutex
	lastWall time.Time // without its monotonic part
	lastMono time.Time
	suspect  bool // the clock jumped and has not been confirmed since
	differs  bool // a majority has a different time
	readings []Reading
	readAt   time.Time // when the oldest of them was taken
	// When this node proposed its newest entry, and the wall time in it.
	stamped     time.Time
	stampedWall int64
}

// Reading is the reading of another voter's wall clock.
type Reading struct {
	Node   string
	Offset time.Duration // its clock minus this node's
}

// New returns the guard of a node's clock.
func New(clock Clock, node string) *Guard { return &Guard{clock: clock, self: node} }

// look reads this node's clock and reports whether entries may carry it.
func (g *Guard) look() (time.Time, bool) {
	mono := time.Now()
	wall := g.clock.Now().Round(0)
	if !g.lastMono.IsZero() {
		drift := wall.Sub(g.lastWall) - mono.Sub(g.lastMono)
		if drift > jump || drift < -jump {
			g.suspect = true
			g.readings = nil // they were taken before the clock jumped
		}
	}
	g.lastWall, g.lastMono = wall, mono
	return wall, !g.suspect && !g.differs
}

// Disagrees reports whether a majority has a different time.
func (g *Guard) Disagrees() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.differs
}

// Take records the readings of other voters, all taken after since. It reports whether a
// majority of voters agrees with this clock and whether a majority differs.
func (g *Guard) Take(rs []Reading, since time.Time, voters int) (agree, differ bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	suspect := g.suspect
	g.suspect = false
	g.look() // a jump while the readings were taken makes them useless
	if g.suspect {
		return false, g.differs
	}
	yes, no := 1, 0 // this node's own clock
	for _, r := range rs {
		if r.Offset <= agreement && r.Offset >= -agreement {
			yes++
		} else {
			no++
		}
	}
	g.readings, g.readAt = rs, since
	switch {
	case yes > voters/2:
		g.differs = false
		return true, false
	case yes+no > voters/2:
		// A majority answered and does not confirm this clock.
		g.differs = true
	}
	g.suspect = suspect
	return false, g.differs
}

// Evidence returns the clock of an entry that is proposed now. since is the time since this
// node applied the newest entry.
func (g *Guard) Evidence(state *fsm.State, since time.Duration) *fsmpb.Clock {
	g.mu.Lock()
	defer g.mu.Unlock()
	wall, ok := g.look()
	if !ok {
		return &fsmpb.Clock{} // cluster time stands still
	}
	if !g.stamped.IsZero() {
		since = min(since, g.lastMono.Sub(g.stamped)) // entries in flight count it already
	}
	c := &fsmpb.Clock{Wall: wall.UnixNano(), Elapsed: int64(since)}
	needs := state.Evidence().NeedsReadings(g.stampedWall, c.Wall, c.Elapsed)
	g.stamped, g.stampedWall = g.lastMono, c.Wall
	if !needs {
		return c
	}
	// The next entries carry readings as well, because this one may never be committed.
	g.stampedWall = 0
	c.Heard = state.Evidence().Observed()
	c.Readings = []*fsmpb.ClockReading{{Node: g.self, Wall: c.Wall}}
	if time.Since(g.readAt) <= readingAge {
		for _, r := range g.readings {
			c.Readings = append(c.Readings, &fsmpb.ClockReading{Node: r.Node, Wall: wall.Add(r.Offset).UnixNano()})
		}
	}
	return c
}
