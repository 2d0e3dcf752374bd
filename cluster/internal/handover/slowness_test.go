package handover

import (
	"testing"
	"time"
)

func TestSlownessIsJudgedWithPatience(t *testing.T) {
	var s slowness
	const ms = time.Millisecond
	now := time.Hour
	at := func(d time.Duration, own, best time.Duration) bool { now += d; return s.judge(now, own, best, slowFor) }
	for _, v := range []struct {
		what            string
		after, own, was time.Duration
		want            bool
	}{
		{"quick", 0, 2 * ms, 1 * ms, false},
		{"ten times slower, but quick enough", 2 * time.Second, 15 * ms, 1 * ms, false},
		{"slow since now", time.Second, 300 * ms, 2 * ms, false},
		{"slow for half a second", 500 * ms, 300 * ms, 2 * ms, false},
		{"the other is as slow", 0, 300 * ms, 200 * ms, false},
		{"slow again", 0, 300 * ms, 2 * ms, false},
		{"slow for a second", time.Second, 300 * ms, 2 * ms, true},
		{"leading again at once", 500 * ms, 300 * ms, 2 * ms, false},
		{"still within the pause", 5 * time.Second, 300 * ms, 2 * ms, false},
		{"after the pause", 6 * time.Second, 300 * ms, 2 * ms, true},
		{"slow once more", 500 * ms, 300 * ms, 2 * ms, false},
		{"the pause has doubled", 15 * time.Second, 300 * ms, 2 * ms, false},
		{"after twice the pause", 6 * time.Second, 300 * ms, 2 * ms, true},
		{"nobody to compare with", 100 * time.Second, 300 * ms, 0, false},
	} {
		if got := at(v.after, v.own, v.was); got != v.want {
			t.Errorf("%s: %v, want %v", v.what, got, v.want)
		}
	}
}
