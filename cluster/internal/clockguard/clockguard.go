// Package clockguard keeps a leader from stamping entries with a clock that the others do
// not share. The state machine bounds what one entry can do; entries are many, so a leader
// must not even try.
//
// What may be relied on: an entry carries a time only while this node's clock keeps pace
// with the monotonic one, or was confirmed by a majority since it last did not, and no
// majority has another time.
package clockguard

import (
	"sync"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

const (
	// agreement is how far another voter's clock may be off and still
	// confirm this one. fsm holds entries against the same bound.
	agreement = 5 * time.Second
	// jump is how far the wall clock may leave the monotonic one between
	// two looks before it needs to be confirmed anew.
	jump = time.Second
	// readingAge is how old a reading of another clock may be.
	readingAge = time.Second
)

// Clock is the node's wall clock.
type Clock interface{ Now() time.Time }

// Guard looks after one node's clock. Its methods are safe for concurrent use.
type Guard struct {
	clock Clock
	self  string // this node

	mu       sync.Mutex
	lastWall time.Time // without its monotonic part
	lastMono time.Time
	suspect  bool // jumped, and not confirmed since
	differs  bool // a majority said so
	readings []Reading
	readAt   time.Time // when the oldest of them was taken
	// The newest entry that this node proposed: when, and its wall time.
	stamped     time.Time
	stampedWall int64
}

// Reading is another voter's wall clock.
type Reading struct {
	Node   string
	Offset time.Duration // its clock less ours
}

// New is the guard of a node's clock.
func New(clock Clock, node string) *Guard { return &Guard{clock: clock, self: node} }

// look reads this node's clock and says whether entries may carry it.
func (g *Guard) look() (time.Time, bool) {
	mono := time.Now()
	wall := g.clock.Now().Round(0)
	if !g.lastMono.IsZero() {
		drift := wall.Sub(g.lastWall) - mono.Sub(g.lastMono)
		if drift > jump || drift < -jump {
			g.suspect = true
			g.readings = nil // taken against the clock as it was
		}
	}
	g.lastWall, g.lastMono = wall, mono
	return wall, !g.suspect && !g.differs
}

// Disagrees reports whether a majority has another time.
func (g *Guard) Disagrees() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.differs
}

// Take takes over readings of other voters, made since the given time, and
// reports whether a majority of voters agrees and whether one disagrees.
func (g *Guard) Take(rs []Reading, since time.Time, voters int) (agree, differ bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	suspect := g.suspect
	g.suspect = false
	g.look() // a jump while the readings were made spoils them
	if g.suspect {
		return false, g.differs
	}
	yes, no := 1, 0 // this node's own
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
		// A majority was heard, and it does not confirm this clock.
		g.differs = true
	}
	g.suspect = suspect
	return false, g.differs
}

// Evidence is the clock of an entry that is proposed now, on a node that applied
// the newest entry since ago.
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
	needs := state.NeedsReadings(g.stampedWall, c.Wall, c.Elapsed)
	g.stamped, g.stampedWall = g.lastMono, c.Wall
	if !needs {
		return c
	}
	// An entry that falls short is followed by others: what is in flight may not
	// come to be.
	g.stampedWall = 0
	c.Heard = state.Observed()
	c.Readings = []*fsmpb.ClockReading{{Node: g.self, Wall: c.Wall}}
	if time.Since(g.readAt) <= readingAge {
		for _, r := range g.readings {
			c.Readings = append(c.Readings, &fsmpb.ClockReading{Node: r.Node, Wall: wall.Add(r.Offset).UnixNano()})
		}
	}
	return c
}
