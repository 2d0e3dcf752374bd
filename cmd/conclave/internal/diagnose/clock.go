package diagnose

import (
	"context"
	"time"
)

// released is before any clock that is right can be.
var released = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	clockCheck = "clock"
	// step is a jump of the wall clock, against the monotonic one, that no time service
	// makes that only slews.
	step = 100 * time.Millisecond
)

const mendClock = "set the clock and let a time service keep it, such as chrony: a wrong clock makes certificates invalid, and the cluster does not follow it"

func clock(_ context.Context, s *subject, r *report) {
	now := s.now.UTC().Format(time.RFC3339)
	if s.now.Before(released) {
		r.add(clockCheck, Problem, mendClock, "it says %s, which is before this program was made", now)
		return
	}
	switch kept, known := synchronised(); {
	case !known:
		r.ok(clockCheck, "%s; whether a time service keeps it is not known here", now)
	case kept:
		r.ok(clockCheck, "%s, kept by a time service", now)
	default:
		r.add(clockCheck, Warning, "install a time service, such as chrony, on this machine or on the host of this container", "%s, and the kernel knows of no time service that keeps it", now)
	}
}

// stepped finds a wall clock that jumped while the checks ran.
func stepped(s *subject, r *report) {
	end := time.Now()
	// Round strips the monotonic reading.
	jump := end.Round(0).Sub(s.now.Round(0)) - end.Sub(s.now)
	if jump.Abs() > step {
		r.add(clockCheck, Warning, "find out what sets the clock, and let it slew instead", "the clock jumped by %v while this ran", jump.Round(time.Millisecond))
	}
}
