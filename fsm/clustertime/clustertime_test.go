package clustertime

import (
	"testing"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

const (
	second = 1_000_000_000
	start  = 1_700_000_000 * second
)

// clock is cluster time with what moves it.
type clock struct {
	now int64
	Evidence
	Trust
}

func (c *clock) signed(entry *fsmpb.Clock) { c.now = c.Signed(c.now, entry, c.Trust) }

// at is the evidence of signed entries up to a time.
func at(t, vouched int64) Evidence { return Evidence{heard: heard{at: t}, vouched: vouched} }

func TestSigned(t *testing.T) {
	voters := []string{"a", "b", "c"}
	read := func(wall int64, nodes ...string) (rs []*fsmpb.ClockReading) {
		for _, n := range nodes {
			rs = append(rs, &fsmpb.ClockReading{Node: n, Wall: wall})
		}
		return rs
	}
	const now = start
	for _, tt := range []struct {
		name            string
		prev, confirmed int64
		clock           *fsmpb.Clock
		want            int64
	}{
		{"backwards", now, 0, &fsmpb.Clock{Wall: now - Day}, now},
		{"little", now, 0, &fsmpb.Clock{Wall: now + second/2}, now + second/2},
		{"jump without evidence", now, 0, &fsmpb.Clock{Wall: now + 30*Day}, now + second},
		{"as the monotonic clock says", now, 0, &fsmpb.Clock{Wall: now + 5*second, Elapsed: 5 * second}, now + 5*second},
		{"further than the monotonic clock says", now, 0, &fsmpb.Clock{Wall: now + 30*Day, Elapsed: 5 * second}, now + 6*second},
		{"absurd monotonic clock", now, 0, &fsmpb.Clock{Wall: now + 30*Day, Elapsed: 31 * Day}, now + second},
		{"negative monotonic clock", now, 0, &fsmpb.Clock{Wall: now + 30*Day, Elapsed: -5}, now + second},
		{"outage, majority agrees", now, 0, &fsmpb.Clock{Wall: now + Day/2, Readings: read(now+Day/2+2*second, "a", "b")}, now + Day/2},
		{"outage, one clock only", now, 0, &fsmpb.Clock{Wall: now + Day/2, Readings: read(now+Day/2, "a")}, now + second},
		{"one voter twice", now, 0, &fsmpb.Clock{Wall: now + Day/2, Readings: read(now+Day/2, "a", "a")}, now + second},
		{"strangers", now, 0, &fsmpb.Clock{Wall: now + Day/2, Readings: read(now+Day/2, "x", "y", "z")}, now + second},
		{"others disagree", now, 0, &fsmpb.Clock{Wall: now + Day/2, Readings: append(read(now+Day/2, "a"), read(now, "b", "c")...)}, now + second},
		{"two Days, all agree", now, 0, &fsmpb.Clock{Wall: now + 2*Day, Readings: read(now+2*Day, "a", "b", "c")}, now + second},
		{"two Days, operator agrees", now, now + 3*Day, &fsmpb.Clock{Wall: now + 2*Day, Readings: read(now+2*Day, "a", "b", "c")}, now + 2*Day},
		{"operator alone", now, now + 3*Day, &fsmpb.Clock{Wall: now + 2*Day}, now + second},
		{"first time, majority", 0, 0, &fsmpb.Clock{Wall: now, Readings: read(now, "a", "c")}, now},
		{"first time, alone", 0, 0, &fsmpb.Clock{Wall: now}, 0},
		{"no clock", now, 0, nil, now},
	} {
		s := clock{now: tt.prev, Evidence: at(tt.prev, 0), Trust: Trust{voters, tt.confirmed}}
		s.signed(tt.clock)
		if s.now != tt.want {
			t.Errorf("%s: got %d (%+ds), want %+ds", tt.name, s.now, (s.now-tt.prev)/second, (tt.want-tt.prev)/second)
		}
	}
	s := clock{now: now, Evidence: at(now, 0)}
	if s.NeedsReadings(now, now+second, 0) || s.NeedsReadings(now, now+9*second, 9*second) || !s.NeedsReadings(now, now+2*second, 0) {
		t.Error("NeedsReadings disagrees with Signed")
	}
}

// What a leader's clock alone can gain is bounded in total over all entries,
// until a majority agrees.
func TestLeaderAloneGainsOneSecond(t *testing.T) {
	s := clock{now: start, Evidence: at(start, 0), Trust: Trust{Voters: []string{"a", "b", "c"}}}
	for range 10_000 {
		s.signed(&fsmpb.Clock{Wall: start + 30*Day, Elapsed: 1000})
	}
	if got, want := s.now-start, int64(second+10_000*1000); got != want {
		t.Fatalf("gained %d, want %d", got, want)
	}
	if !s.NeedsReadings(0, s.now+1, 0) {
		t.Error("the leader is not told to ask the others")
	}
	wall := s.now + 5*second
	s.signed(&fsmpb.Clock{Wall: wall, Readings: []*fsmpb.ClockReading{{Node: "a", Wall: wall}, {Node: "c", Wall: wall}}})
	if s.now != wall || s.NeedsReadings(0, wall+second, 0) {
		t.Error("a majority's agreement does not give the slack back")
	}
}

// A sealed cluster observes the time, so that it goes on by itself when it is
// unsealed. What it observes moves cluster time only once somebody signs, and
// within bounds.
func TestClusterTimeOfASealedCluster(t *testing.T) {
	confirmed := func(wall int64) *fsmpb.Clock {
		return &fsmpb.Clock{Wall: wall, Readings: []*fsmpb.ClockReading{{Node: "a", Wall: wall}}}
	}
	begin := func() *clock {
		s := &clock{Trust: Trust{Voters: []string{"a"}}}
		s.signed(confirmed(start))
		return s
	}
	s := begin()
	for hour := range int64(72) { // a weekend
		s.Unsigned(confirmed(start+hour*3600*second), s.Trust)
		if s.now != start {
			t.Fatalf("cluster time moved by %ds while nobody signed", (s.now-start)/second)
		}
	}
	monday := int64(start + 72*3600*second)
	s.signed(&fsmpb.Clock{Wall: monday, Elapsed: 3600 * second, Heard: s.Observed()})
	if s.now != monday {
		t.Errorf("unsealed, cluster time is %ds behind", (monday-s.now)/second)
	}
	// A thief who leads claims a future time; only the honest clock counts.
	s = begin()
	for range 1000 {
		s.Unsigned(confirmed(max(start, s.Observed())+Day), s.Trust)
	}
	if got := s.Observed() - start; got != sealedAllowance {
		t.Errorf("observed %ds ahead, want %ds", got/second, int64(sealedAllowance)/second)
	}
	s.signed(&fsmpb.Clock{Wall: start + second, Heard: s.Observed()})
	if s.now != start+second {
		t.Errorf("cluster time moved by %ds, by the thief's word", (s.now-start)/second)
	}
}

// What the proposer of a signed entry observed moves cluster time within bounds.
func TestHeardTimeIsBounded(t *testing.T) {
	const now = start
	for _, tt := range []struct {
		name  string
		clock *fsmpb.Clock
		want  int64
	}{
		{"no further than its own clock", &fsmpb.Clock{Wall: now + 3*Day, Heard: now + 20*Day}, now + 3*Day},
		{"and on from there as ever", &fsmpb.Clock{Wall: now + 4*Day, Heard: now + 3*Day, Elapsed: 5 * second}, now + 3*Day + 5*second},
		{"no further than a cluster may be sealed", &fsmpb.Clock{Wall: now + 40*Day, Heard: now + 40*Day}, now + 31*Day},
		{"without a clock of its own", &fsmpb.Clock{Heard: now + 3*Day}, now},
		{"with a clock that is behind", &fsmpb.Clock{Wall: now - Day, Heard: now + 3*Day}, now},
		{"an earlier time", &fsmpb.Clock{Wall: now + Day/2, Heard: now - Day}, now + second},
		{"a time before all", &fsmpb.Clock{Wall: now + Day/2, Heard: -1 << 63}, now + second},
		{"the end of time", &fsmpb.Clock{Wall: 1<<63 - 1, Heard: 1<<63 - 1}, now + 31*Day},
	} {
		s := clock{now: now, Evidence: at(now, now), Trust: Trust{Voters: []string{"a", "b", "c"}}}
		s.signed(tt.clock)
		if s.now != tt.want {
			t.Errorf("%s: cluster time moved by %ds, want %ds", tt.name, (s.now-now)/second, (tt.want-now)/second)
		}
	}
	// A single clock adds nothing to it until a majority agrees.
	s := clock{now: now, Evidence: at(now, now), Trust: Trust{Voters: []string{"a"}}}
	s.signed(&fsmpb.Clock{Wall: now + 3*Day, Heard: now + 3*Day})
	wall := s.now + second
	s.signed(&fsmpb.Clock{Wall: wall, Heard: s.Observed()})
	if s.now != now+3*Day || !s.NeedsReadings(0, wall, 0) {
		t.Errorf("cluster time moved by %dns on one clock's word", s.now-now-3*Day)
	}
	s.signed(&fsmpb.Clock{Wall: wall, Readings: []*fsmpb.ClockReading{{Node: "a", Wall: wall}}})
	if s.now != wall || s.NeedsReadings(0, wall+second, 0) {
		t.Error("a majority's agreement does not give the slack back")
	}
}

// Before there is a signature, a majority of clocks begins cluster time, and it never
// runs back.
func TestBegin(t *testing.T) {
	trust := Trust{Voters: []string{"a", "b", "c"}}
	entry := func(wall int64, nodes ...string) *fsmpb.Clock {
		c := &fsmpb.Clock{Wall: wall}
		for _, n := range nodes {
			c.Readings = append(c.Readings, &fsmpb.ClockReading{Node: n, Wall: wall})
		}
		return c
	}
	var e Evidence
	for _, tt := range []struct {
		clock *fsmpb.Clock
		want  int64
	}{
		{nil, 0},
		{entry(start, "a"), 0},
		{entry(start, "a", "b"), start},
		{entry(start-Day, "a", "b", "c"), start},
		{entry(start+Day, "a"), start + second},
	} {
		if got := e.Begin(tt.clock, trust); got != tt.want {
			t.Errorf("after %v: cluster time %d, want %d", tt.clock, got, tt.want)
		}
	}
}

// A snapshot carries the evidence of signed entries in its header and the observation
// beside it.
func TestSnapshots(t *testing.T) {
	c := clock{now: start, Evidence: at(start, start), Trust: Trust{Voters: []string{"a"}}}
	c.signed(&fsmpb.Clock{Wall: start + second/2})
	if c.Observation() != nil {
		t.Errorf("observation %v of nothing", c.Observation())
	}
	c.Unsigned(&fsmpb.Clock{Wall: start + Day/2, Readings: []*fsmpb.ClockReading{{Node: "a", Wall: start + Day/2}}}, c.Trust)
	var h fsmpb.SnapshotHeader
	c.AddTo(&h)
	e := FromHeader(&h)
	if e.Observed() != 0 {
		t.Error("the header has an observation")
	}
	for name, o := range map[string]*fsmpb.Observation{
		"none":           {},
		"not later":      {Heard: start + second/2},
		"too late":       {Heard: start + second/2 + 31*Day + 1},
		"too much slack": {Heard: start + Day, Unconfirmed: second + 1},
		"less than none": {Heard: start + Day, Unconfirmed: -1},
	} {
		if e.TakeObservation(o) || e.Observed() != 0 {
			t.Errorf("%s: taken", name)
		}
	}
	if !e.TakeObservation(c.Observation()) || e != c.Evidence {
		t.Errorf("read back as %+v, was %+v", e, c.Evidence)
	}
	if e.TakeObservation(&fsmpb.Observation{Heard: start + Day}) {
		t.Error("a second observation is taken")
	}
}
