package auditfeed

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	now := time.Unix(1000, 0)
	var p Pace
	for _, c := range []struct {
		grown  uint64 // in a second
		worked time.Duration
		want   time.Duration
	}{
		{1e6, 5 * time.Millisecond, 45 * time.Millisecond}, // the first time: nothing is known
		{0, 5 * time.Millisecond, 45 * time.Millisecond},
		{49, 5 * time.Millisecond, 45 * time.Millisecond},
		{50, 5 * time.Millisecond, 145 * time.Millisecond},
		{500, 5 * time.Millisecond, 495 * time.Millisecond},
		{5000, time.Second, maxRest},
		{0, 5 * time.Millisecond, 45 * time.Millisecond},
	} {
		now = now.Add(time.Second)
		if got := p.Rest(c.worked, p.size+c.grown, now); got != c.want {
			t.Errorf("after %v, with %d records in the last second: a rest of %v, want %v", c.worked, c.grown, got, c.want)
		}
	}
}
