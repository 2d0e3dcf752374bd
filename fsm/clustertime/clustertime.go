// Package clustertime decides how cluster time advances: never back, and forward only as
// far as the entries of the Raft log give evidence for it.
//
// A leader whose clock alone jumped ahead gains no more than a second on real time. A
// cluster whose clocks all jumped gains no more than a day, unless an operator confirms
// the time.
//
// The evidence in an entry that no unsealed node signed may be invented, including its
// readings of other clocks. A leader with a stolen node's identity could otherwise delete
// keys early, or give each node a different clock so that their states differ. Such an
// entry therefore changes nothing that nodes agree on. Its time becomes an observation of
// the node that applied it, which a signed entry can carry to the others; without that, a
// cluster that was sealed for more than a day could not go on by itself. Cluster time
// follows the evidence up to the newest clock of a signed entry.
//
// All times are Unix times and all durations are lengths of time, in nanoseconds. The
// package reads no clock: what it returns depends on its arguments alone.
package clustertime

import (
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Day is a day, and the longest step that clocks alone may decide.
const Day = 24 * 3600 * 1_000_000_000

const (
	// slack is how much a leader's wall clock alone may add to the time that
	// passed by its monotonic clock: in total over all entries until a majority of
	// clocks agrees again, since there are many entries.
	slack = 1_000_000_000
	// agreement is how far a voter's clock may differ from the leader's and still
	// confirm it.
	agreement = 5_000_000_000
	// sealedAllowance is how far unsigned entries may move what a node observes beyond
	// the newest signed clock. A cluster that was sealed for no longer than this goes
	// on by itself afterwards.
	sealedAllowance = 31 * Day
)

// Trust says what may confirm the clock of an entry.
type Trust struct {
	// Voters are the nodes a majority of whose clocks can.
	Voters []string
	// Confirmed is the time up to which an operator allowed steps of more than a day.
	Confirmed int64
}

// Evidence is what entries have shown about the time. The zero value is that of no
// entries. All nodes that applied the same entries have the same evidence, except for
// what Observed returns.
type Evidence struct {
	// heard is how far the evidence of signed entries goes, and vouched is their
	// newest clock.
	heard   heard
	vouched int64
	// observed is the time that this node observed from unsigned entries, while it
	// is later than heard.
	observed heard
}

// heard is the time up to which entries have given evidence.
type heard struct {
	at int64 // 0 for no time at all yet
	// unconfirmed is how far the leader's clock alone has moved it since a majority
	// of clocks last agreed: 0 to slack.
	unconfirmed int64
}

// Begin takes the clock of an entry before the cluster is initialised, when nobody can
// sign. It returns cluster time after the entry, or 0 as long as there is none.
func (e *Evidence) Begin(c *fsmpb.Clock, t Trust) int64 {
	e.hear(c, t)
	return e.heard.at
}

// Signed takes the clock of an entry that an unsealed node signed. It returns cluster
// time after the entry; now is that before it.
func (e *Evidence) Signed(now int64, c *fsmpb.Clock, t Trust) int64 {
	e.takeOver(c)
	e.vouched = max(e.vouched, c.GetWall())
	e.hear(c, t)
	return max(now, min(e.heard.at, e.vouched))
}

// Unsigned takes the clock of an entry that nobody signed. Cluster time stays as it is,
// and the time that this node observed may move.
func (e *Evidence) Unsigned(c *fsmpb.Clock, t Trust) {
	from := e.observed
	if from.at == 0 {
		from = e.heard
	}
	if o := from.hear(c, min(c.GetWall(), e.vouched+sealedAllowance), t); o.at > e.heard.at {
		e.observed = o
	}
}

func (e *Evidence) hear(c *fsmpb.Clock, t Trust) {
	e.heard = e.heard.hear(c, c.GetWall(), t)
	if e.observed.at <= e.heard.at {
		e.observed = heard{}
	}
}

// takeOver makes what the proposer of a signed entry observed evidence for all nodes,
// within the bounds of an observation and no further than the entry's own clock. How
// much of it rests on a single clock is unknown, so all of the slack counts as used.
func (e *Evidence) takeOver(c *fsmpb.Clock) {
	if at := min(c.GetHeard(), c.GetWall(), e.vouched+sealedAllowance); at > e.heard.at {
		e.heard = heard{at, slack}
	}
}

// hear returns h after the evidence of an entry for the time wall, which is the
// entry's clock or earlier.
func (h heard) hear(c *fsmpb.Clock, wall int64, t Trust) heard {
	if wall <= h.at {
		return h
	}
	proven := h.at
	if e := c.GetElapsed(); e > 0 && e <= Day {
		proven += e
	}
	short := h.at == 0 || wall-h.at <= Day
	switch {
	case wall <= proven && h.at != 0:
		h.at = wall
	case (short || wall <= t.Confirmed) && majorityAgrees(c, t.Voters):
		h = heard{at: wall}
	case h.at == 0:
		// There is no time yet: wait for a majority.
	default:
		h.at = min(wall, proven+slack-h.unconfirmed)
		h.unconfirmed += h.at - proven
	}
	return h
}

// majorityAgrees reports whether the clocks of more than half of the voters read about the
// leader's time. Each voter counts once, even if the entry repeats it.
func majorityAgrees(c *fsmpb.Clock, voters []string) bool {
	agree := make(map[string]bool)
	for _, r := range c.GetReadings() {
		d := r.GetWall() - c.GetWall()
		if slices.Contains(voters, r.GetNode()) && d <= agreement && d >= -agreement {
			agree[r.GetNode()] = true
		}
	}
	return len(agree) > len(voters)/2
}

// NeedsReadings reports whether a signed entry after cluster time prev, with that
// wall time and elapsed time, can move cluster time all the way only with
// readings of other voters' clocks or with what this node observed.
func (e Evidence) NeedsReadings(prev, wall, elapsed int64) bool {
	h := heard{max(prev, e.heard.at), e.heard.unconfirmed}
	return h.hear(&fsmpb.Clock{Wall: wall, Elapsed: elapsed}, wall, Trust{}).at < wall
}

// Observed returns the time that this node observed from unsigned entries, if it is later
// than that of the signed ones; otherwise 0. Nodes may differ in it, and only a signed
// entry that carries it can make it count; see [fsmpb.Clock].
func (e Evidence) Observed() int64 { return e.observed.at }

// AddTo puts the evidence of signed entries, which nodes agree on, into the header of a
// snapshot.
func (e Evidence) AddTo(h *fsmpb.SnapshotHeader) {
	h.Heard, h.Unconfirmed, h.Vouched = e.heard.at, e.heard.unconfirmed, e.vouched
}

// FromHeader returns what AddTo put into a header.
func FromHeader(h *fsmpb.SnapshotHeader) Evidence {
	return Evidence{heard: heard{h.Heard, h.Unconfirmed}, vouched: h.Vouched}
}

// Observation returns what this node observed, for a snapshot; nil if Observed is 0.
func (e Evidence) Observation() *fsmpb.Observation {
	if e.observed.at == 0 {
		return nil
	}
	return &fsmpb.Observation{Heard: e.observed.at, Unconfirmed: e.observed.unconfirmed}
}

// TakeObservation takes over what the node that made a snapshot had observed, after the
// evidence in the header. Nobody signs it, so it must be within the bounds to which
// unsigned entries could have moved it, and there must be none yet; otherwise
// TakeObservation reports false and changes nothing.
func (e *Evidence) TakeObservation(o *fsmpb.Observation) bool {
	if e.observed.at != 0 || o.Heard <= e.heard.at || o.Heard > e.vouched+sealedAllowance ||
		o.Unconfirmed < 0 || o.Unconfirmed > slack {
		return false
	}
	e.observed = heard{o.Heard, o.Unconfirmed}
	return true
}
