package clockguard

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/fsm"
)

// fakeClock is off by a number of nanoseconds.
type fakeClock struct{ offset atomic.Int64 }

func (f *fakeClock) Now() time.Time { return time.Now().Add(time.Duration(f.offset.Load())) }

// TestGuard moves a leader's clock and asks what its entries would carry.
func TestClockGuard(t *testing.T) {
	clock := &fakeClock{}
	g := New(clock, "a")
	state := fsm.New(fsm.Config{}).Current()
	stamps := func(want bool, when string) {
		t.Helper()
		if got := g.Evidence(state, time.Millisecond).Wall != 0; got != want {
			t.Errorf("%s: an entry carries time: %v, want %v", when, got, want)
		}
	}
	read := func(offsets ...time.Duration) {
		var rs []Reading
		for i, o := range offsets {
			rs = append(rs, Reading{string(rune('b' + i)), o})
		}
		g.Take(rs, time.Now(), 3)
	}
	stamps(true, "at first")
	clock.offset.Store(int64(time.Hour))
	stamps(false, "after a jump")
	stamps(false, "still")
	read()
	stamps(false, "without any other clock")
	read(-time.Hour, -time.Hour)
	stamps(false, "with all others against it")
	if !g.Disagrees() {
		t.Error("the disagreement is not shown")
	}
	read(-time.Hour)
	stamps(false, "with one other against it")
	read(time.Second)
	stamps(true, "with one other, and so a majority, for it")
	read(time.Second, -time.Hour)
	stamps(true, "with one for and one against it")
	if g.Disagrees() {
		t.Error("a disagreement is shown")
	}
	clock.offset.Store(0)
	stamps(false, "after a jump back")
	read(0, 0)
	stamps(true, "confirmed")
	// A slow drift is no jump, and shows in the readings.
	read(-6*time.Second, -6*time.Second)
	stamps(false, "drifted off")
	if c := g.Evidence(state, 0); len(c.Readings) != 0 {
		t.Errorf("an entry without time has %d readings", len(c.Readings))
	}
}
