package fsm

import (
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// All in nanoseconds.
const (
	// clockSlack is what one entry may add to the time that the leader's
	// monotonic clock says passed.
	clockSlack = 1_000_000_000
	// clockAgreement is how far a voter's clock may be from the leader's and
	// still vouch for it.
	clockAgreement = 5_000_000_000
	// maxClockStep is the longest step that clocks alone may decide.
	maxClockStep = 24 * 3600 * 1_000_000_000
)

// nextTime is the cluster time of an entry: never before the last, and forward
// only as far as the evidence goes. A leader whose clock jumped ahead alone can
// gain no more than a second an entry beyond real time; a cluster whose nodes
// all jumped, no more than a day without an operator.
func nextTime(prev, confirmed int64, c *fsmpb.Clock, voters []string) int64 {
	wall := c.GetWall()
	if wall <= prev {
		return prev
	}
	free := prev + clockSlack
	if e := c.GetElapsed(); e > 0 && e <= maxClockStep {
		free += e
	}
	if wall <= free {
		return wall
	}
	short := prev == 0 || wall-prev <= maxClockStep
	if (short || wall <= confirmed) && majorityAgrees(c, voters) {
		return wall
	}
	if prev == 0 {
		return 0 // no time at all yet: wait for a majority
	}
	return free
}

// NeedsReadings reports whether a clock with that wall time and elapsed time can
// move cluster time all the way only with readings of other voters.
func NeedsReadings(prev, wall, elapsed int64) bool {
	return nextTime(prev, 0, &fsmpb.Clock{Wall: wall, Elapsed: elapsed}, nil) < wall
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
