package fsm

import (
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// All in nanoseconds.
const (
	// clockSlack is what a leader's wall clock may add, alone, to the time that
	// its monotonic clock says passed: over all entries until a majority of clocks
	// agrees again, since entries are many.
	clockSlack = 1_000_000_000
	// clockAgreement is how far a voter's clock may be from the leader's and
	// still vouch for it.
	clockAgreement = 5_000_000_000
	// maxClockStep is the longest step that clocks alone may decide.
	maxClockStep = 24 * 3600 * 1_000_000_000
)

// advance moves cluster time to that of an entry: never back, and forward only
// as far as the evidence goes. A leader whose clock jumped ahead alone gains no
// more than a second on real time; a cluster whose nodes all jumped, no more than
// a day without an operator.
func (s *State) advance(c *fsmpb.Clock) {
	wall := c.GetWall()
	if wall <= s.time {
		return
	}
	proven := s.time
	if e := c.GetElapsed(); e > 0 && e <= maxClockStep {
		proven += e
	}
	short := s.time == 0 || wall-s.time <= maxClockStep
	switch {
	case wall <= proven && s.time != 0:
		s.time = wall
	case (short || wall <= s.confirmed) && majorityAgrees(c, s.voters):
		s.time, s.unconfirmed = wall, 0
	case s.time == 0:
		// No time at all yet: wait for a majority.
	default:
		s.time = min(wall, proven+clockSlack-s.unconfirmed)
		s.unconfirmed += s.time - proven
	}
}

// NeedsReadings reports whether an entry after cluster time prev, with that wall
// time and elapsed time, needs readings of other voters to move cluster time all
// the way.
func (s *State) NeedsReadings(prev, wall, elapsed int64) bool {
	next := State{time: max(prev, s.time), unconfirmed: s.unconfirmed}
	next.advance(&fsmpb.Clock{Wall: wall, Elapsed: elapsed})
	return next.time < wall
}

// majorityAgrees reports whether more than half of the voters read about the
// leader's time. Each voter counts once, whatever the entry repeats.
func majorityAgrees(c *fsmpb.Clock, voters []string) bool {
	agree := make(map[string]bool)
	for _, r := range c.GetReadings() {
		d := r.GetWall() - c.GetWall()
		if slices.Contains(voters, r.GetNode()) && d <= clockAgreement && d >= -clockAgreement {
			agree[r.GetNode()] = true
		}
	}
	return len(agree) > len(voters)/2
}
