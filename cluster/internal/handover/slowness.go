package handover

import (
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
)

const (
	// A leader whose disk takes slowFactor times what another's does, and more than
	// slowFloor, for longer than slowFor (or Config.DiskYield, if that is more),
	// hands over to it.
	slowFactor = 10
	slowFloor  = 20 * time.Millisecond
	slowFor    = time.Second
	// slowPause lies between two times that this node hands over because of its
	// disk; it doubles up to slowPauseMax, and is forgotten after a quiet time as
	// long, so that nodes with poor disks do not pass the leadership around.
	slowPause    = 10 * time.Second
	slowPauseMax = 5 * time.Minute
)

// slowness decides when a leader whose disk is slow, but answers, hands over. The
// leader's goroutine owns it; it outlives a leadership term.
type slowness struct {
	since time.Duration // by the pulse; 0 when it is not slow
	pause time.Duration
	last  time.Duration
}

// judge takes what a write takes here and at the quickest node that could take over,
// and reports whether it should, now: this disk has been slow for longer than patience.
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

// quicker is the node to which this leader should hand over because its own disk is
// so much slower; "" for none.
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
