package auditfeed

import (
	"context"
	"time"
)

// Pace says how long background work on the log rests, so that requests come first. It uses
// a tenth of one processor on a quiet node, a thirtieth while there are requests, and a
// hundredth on a busy one, where it may fall behind until there are fewer. It is for one
// goroutine.
type Pace struct {
	size uint64
	at   time.Time
}

const (
	// From fewRequests a second on there are requests, and from manyRequests on a node is busy.
	fewRequests, manyRequests = 50, 500
	maxRest                   = 2 * time.Second
)

// Rest returns how long to rest after work that took some time, for a log that now has so many
// records.
func (p *Pace) Rest(worked time.Duration, size uint64, now time.Time) time.Duration {
	var perSecond float64
	if passed := now.Sub(p.at).Seconds(); !p.at.IsZero() && passed > 0 && size > p.size {
		perSecond = float64(size-p.size) / passed
	}
	p.size, p.at = size, now
	times := 9
	switch {
	case perSecond >= manyRequests:
		times = 99
	case perSecond >= fewRequests:
		times = 29
	}
	return min(time.Duration(times)*worked, maxRest)
}

// Wait waits for a time, or until ctx ends or a channel is closed, which may be nil.
func Wait(ctx context.Context, d time.Duration, until <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-until:
	case <-timer.C:
	}
}
