package fsm

import (
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// All durations are in nanoseconds.
const (
	// clockSlack is how much a leader's wall clock alone may add to the time that
	// passed by its monotonic clock: in total over all entries until a majority of
	// clocks agrees again, since there are many entries.
	clockSlack = 1_000_000_000
	// clockAgreement is how far a voter's clock may differ from the leader's
	// and still confirm it.
	clockAgreement = 5_000_000_000
	// maxClockStep is the longest step that clocks alone may decide.
	maxClockStep = 24 * 3600 * 1_000_000_000
)

// sealedAllowance is how far unsigned entries may move what a node observes beyond
// the newest signed clock. A cluster that was sealed for no longer than this goes on
// by itself afterwards.
const sealedAllowance = 31 * maxClockStep

// heardTime is the time up to which entries have given evidence.
type heardTime struct {
	at int64 // 0 for no time at all yet
	// unconfirmed is how far the leader's clock alone has moved it since a majority
	// of clocks last agreed: 0 to clockSlack.
	unconfirmed int64
}

// advance moves cluster time to that of an entry: never back, and forward only as
// far as there is evidence for it. A leader whose clock alone jumped ahead gains
// no more than a second on real time. A cluster whose clocks all jumped gains no
// more than a day, unless an operator confirms the time.
//
// The evidence in an entry that no unsealed node signed may be invented, including its
// readings of other clocks. A leader with a stolen node's identity could otherwise delete
// keys early, or give each node a different clock so that their states differ. Such an
// entry therefore changes nothing that nodes agree on. Its time becomes an observation of
// the node that applied it, which a signed entry can carry to the others; without that, a
// cluster that was sealed for more than a day could not go on by itself. Cluster time
// follows the evidence up to the newest clock of a signed entry.
func (s *State) advance(c *fsmpb.Clock, initialised, signed bool) {
	if initialised && !signed {
		s.observe(c)
		return
	}
	if initialised {
		s.takeOver(c)
		s.vouched = max(s.vouched, c.GetWall())
	}
	s.heard = s.heard.hear(c, c.GetWall(), s)
	if s.observed.at <= s.heard.at {
		s.observed = heardTime{}
	}
	if !initialised {
		s.time = s.heard.at
		return
	}
	s.time = max(s.time, min(s.heard.at, s.vouched))
}

// observe moves the time that this node observed from unsigned entries.
func (s *State) observe(c *fsmpb.Clock) {
	from := s.observed
	if from.at == 0 {
		from = s.heard
	}
	if o := from.hear(c, min(c.GetWall(), s.vouched+sealedAllowance), s); o.at > s.heard.at {
		s.observed = o
	}
}

// takeOver makes what the proposer of a signed entry observed evidence for all nodes,
// within the bounds of an observation and no further than the entry's own clock. How
// much of it rests on a single clock is unknown, so all of the slack counts as used.
func (s *State) takeOver(c *fsmpb.Clock) {
	if at := min(c.GetHeard(), c.GetWall(), s.vouched+sealedAllowance); at > s.heard.at {
		s.heard = heardTime{at, clockSlack}
	}
}

// hear returns h after the evidence of an entry for the time wall, which is the
// entry's clock or earlier. It depends on the voters of s and on the time that an
// operator confirmed.
func (h heardTime) hear(c *fsmpb.Clock, wall int64, s *State) heardTime {
	if wall <= h.at {
		return h
	}
	proven := h.at
	if e := c.GetElapsed(); e > 0 && e <= maxClockStep {
		proven += e
	}
	short := h.at == 0 || wall-h.at <= maxClockStep
	switch {
	case wall <= proven && h.at != 0:
		h.at = wall
	case (short || wall <= s.confirmed) && majorityAgrees(c, s.voters):
		h = heardTime{at: wall}
	case h.at == 0:
		// There is no time yet: wait for a majority.
	default:
		h.at = min(wall, proven+clockSlack-h.unconfirmed)
		h.unconfirmed += h.at - proven
	}
	return h
}

// NeedsReadings reports whether a signed entry after cluster time prev, with that
// wall time and elapsed time, can move cluster time all the way only with
// readings of other voters' clocks or with what this node observed.
func (s *State) NeedsReadings(prev, wall, elapsed int64) bool {
	h := heardTime{max(prev, s.heard.at), s.heard.unconfirmed}
	return h.hear(&fsmpb.Clock{Wall: wall, Elapsed: elapsed}, wall, s).at < wall
}

// Observed returns the time that this node observed from unsigned entries, in Unix
// nanoseconds, if it is later than that of the signed ones; otherwise 0. It is not part of
// the state that nodes agree on. A signed entry carries it to them; see fsmpb.Clock.
func (s *State) Observed() int64 { return s.observed.at }

// majorityAgrees reports whether the clocks of more than half of the voters read about the
// leader's time. Each voter counts once, even if the entry repeats it.
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
