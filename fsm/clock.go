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

// sealedAllowance is how far entries that nobody signed may move what a node
// observes beyond what is vouched for: a cluster may be sealed for so long, and goes
// on by itself afterwards.
const sealedAllowance = 31 * maxClockStep

// heardTime is how far the evidence of entries goes.
type heardTime struct {
	at int64 // 0 for no time at all yet
	// unconfirmed is how far it was moved on a leader's word alone since a majority
	// of clocks last agreed: 0 to clockSlack.
	unconfirmed int64
}

// advance moves cluster time to that of an entry: never back, and forward only
// as far as the evidence goes. A leader whose clock jumped ahead alone gains no
// more than a second on real time; a cluster whose nodes all jumped, no more than
// a day without an operator.
//
// The evidence of an entry that no unsealed node signed may be made up, readings of
// other clocks and all: whoever has a stolen node's identity and leads could delete
// keys early, or give each node another clock so that their states differ. So such an
// entry changes nothing that nodes agree on. What it says is an observation of the
// node that applied it, which a signed entry can carry to the others; without it, a
// cluster that was sealed for more than a day could not go on by itself. Cluster time
// follows what was heard up to the newest clock of a signed entry.
func (s *State) advance(c *fsmpb.Clock, founded, signed bool) {
	if founded && !signed {
		s.observe(c)
		return
	}
	if founded {
		s.takeOver(c)
		s.vouched = max(s.vouched, c.GetWall())
	}
	s.heard = s.heard.hear(c, c.GetWall(), s)
	if s.observed.at <= s.heard.at {
		s.observed = heardTime{}
	}
	if !founded {
		s.time = s.heard.at
		return
	}
	s.time = max(s.time, min(s.heard.at, s.vouched))
}

// observe moves what this node heard from entries that nobody signed.
func (s *State) observe(c *fsmpb.Clock) {
	from := s.observed
	if from.at == 0 {
		from = s.heard
	}
	if o := from.hear(c, min(c.GetWall(), s.vouched+sealedAllowance), s); o.at > s.heard.at {
		s.observed = o
	}
}

// takeOver has all nodes hear what the proposer of a signed entry observed, within
// the bounds of an observation and no further than the entry's own clock. How much of
// it rests on one clock alone is not known, so the slack counts as used.
func (s *State) takeOver(c *fsmpb.Clock) {
	if at := min(c.GetHeard(), c.GetWall(), s.vouched+sealedAllowance); at > s.heard.at {
		s.heard = heardTime{at, clockSlack}
	}
}

// hear is h after the evidence of an entry, for wall, which is the entry's clock or
// earlier. It depends on the voters of s and on what an operator confirmed.
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
		// No time at all yet: wait for a majority.
	default:
		h.at = min(wall, proven+clockSlack-h.unconfirmed)
		h.unconfirmed += h.at - proven
	}
	return h
}

// NeedsReadings reports whether a signed entry after cluster time prev, with that
// wall time and elapsed time, needs readings of other voters, or what this node
// observed, to move cluster time all the way.
func (s *State) NeedsReadings(prev, wall, elapsed int64) bool {
	h := heardTime{max(prev, s.heard.at), s.heard.unconfirmed}
	return h.hear(&fsmpb.Clock{Wall: wall, Elapsed: elapsed}, wall, s).at < wall
}

// Observed is the time that this node heard from entries that nobody signed, Unix
// nanoseconds, if it is later than what the signed ones say; else 0. It is no part of
// the state that nodes agree on: a signed entry carries it to them, see fsmpb.Clock.
func (s *State) Observed() int64 { return s.observed.at }

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
