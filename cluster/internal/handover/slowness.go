package handover

import (
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
)

const (
	// A leader hands over to another node if writes to its own disk take slowFactor times
	// as long as on the other node, and longer than slowFloor, for longer than slowFor or
	// Config.DiskYield, whichever is more.
	slowFactor = 10
	slowFloor  = 20 * time.Millisecond
	slowFor    = time.Second
	// slowPause is the minimum time between two handovers of this node because of its disk.
	// It doubles each time, up to slowPauseMax, and is reset after twice that time without
	// a handover, so that nodes with slow disks do not pass the leadership back and forth.
	slowPause    = 10 * time.Second
	slowPauseMax = 5 * time.Minute
)

// slowness decides when a leader whose disk answers slowly hands over. It belongs to the
// leader's goroutine and is kept across leadership terms.
type slowness struct {
	since time.Duration // by the pulse; 0 while the disk is not slow
	pause time.Duration
	last  time.Duration
}

// judge is given the duration of a write on this node and on the best node that could take
// over. It reports whether to hand over now, because this disk has been slow for longer
// than patience.
func (s *slowness) judge(now, own, best, patience time.Duration) bool {
	if own < slowFloor || best == 0 || own < slowFactor*best {
		s.since = 0
		return false
	}
	if s.since == 0 {
		s.since = now
	}
	if now-s.since < patience {
		return false
	}
	if s.last != 0 && now-s.last > 2*s.pause {
		s.pause = 0
	}
	if s.last != 0 && now-s.last < s.pause {
		return false
	}
	s.pause = min(max(2*s.pause, slowPause), slowPauseMax)
	s.last, s.since = now, 0
	return true
}

// quicker returns the node to which this leader should hand over because its own disk is so
// much slower, or "".
func (h *Handover) quicker(infos map[string]*clusterpb.ClockResponse) string {
	to := h.successor(infos, preferQuick)
	var best time.Duration
	if i := infos[to]; i != nil {
		best = time.Duration(i.Disk.GetWrite())
	}
	m := h.cfg.Meter
	own := max(m.Typical(), m.Behind())
	if !h.slow.judge(m.Ran(), own, best, max(slowFor, h.cfg.DiskYield)) {
		return ""
	}
	h.cfg.Log.Warn("this node's disk is much slower than another's", "write", own, "other", best, "node", to)
	return to
}
