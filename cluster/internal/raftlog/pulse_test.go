package raftlog

import (
	"testing"
	"time"
)

// TestPulseLeavesPausesOut has a process run, be stopped for a minute, and run on.
func TestPulseLeavesPausesOut(t *testing.T) {
	var p pulse
	now := time.Now()
	for range 100 {
		now = now.Add(pulseBeat)
		p.beat(now)
	}
	before := p.now()
	if want := 99 * pulseBeat; before != want {
		t.Errorf("100 beats counted %v, want %v", before, want)
	}
	now = now.Add(time.Minute)
	p.beat(now)
	if got := p.now() - before; got > pulseSkip {
		t.Errorf("a pause of a minute counted %v", got)
	}
	p.beat(now.Add(-time.Hour)) // no clock that is used does that
	if p.now() < before {
		t.Error("time went back")
	}
}

// TestPausedProcessKeepsItsDisk stops the pulse, as a pause of the process does, in
// the middle of a write: the time is not held against the disk. Time in which the
// process runs is.
func TestPausedProcessKeepsItsDisk(t *testing.T) {
	m := NewMeter()
	now := time.Now()
	m.pulse.beat(now)
	w := m.begin(writeCommit)
	now = now.Add(time.Minute)
	m.pulse.beat(now)
	if got := m.stuck(); got > pulseSkip {
		t.Errorf("after a pause the write counts %v", got)
	}
	for range 200 {
		now = now.Add(pulseBeat)
		m.pulse.beat(now)
	}
	if got := m.stuck(); got < 200*pulseBeat {
		t.Errorf("after %v of running the write counts %v", 200*pulseBeat, got)
	}
	m.end(w)
	if m.stuck() != 0 || m.Behind() != 0 {
		t.Error("the write has ended")
	}
}

func TestDiskMeterIsOfTheNewestWrites(t *testing.T) {
	m := NewMeter()
	now := time.Now()
	add := func(age, took time.Duration) {
		m.took[m.next] = writeTime{now.Add(-age), took}
		m.next = (m.next + 1) % meterKept
	}
	if m.Typical() != 0 {
		t.Error("nothing was written yet")
	}
	for range 3 * meterKept {
		add(2*time.Second, time.Millisecond)
	}
	add(500*time.Millisecond, 300*time.Millisecond)
	add(200*time.Millisecond, 310*time.Millisecond)
	add(0, 290*time.Millisecond)
	if got := m.Typical(); got != 300*time.Millisecond {
		t.Errorf("typical = %v, want the median of the last second", got)
	}
}
