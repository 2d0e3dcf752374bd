package handover

import (
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/diskspace"
)

// transferLag is how far behind the log a node may be that takes over.
const transferLag = 512

// poorDisk reports whether a node should not lead for its disk's sake.
func poorDisk(d *clusterpb.Disk, yield time.Duration) bool {
	return d.GetBehind() >= int64(yield) || diskspace.Level(d.GetSpace()) >= diskspace.Yield
}

// choice is what a successor is chosen by.
type choice int

const (
	// anyNode: fit ones first, and those with a poor disk last.
	anyNode choice = iota
	// onlyFit: one that says that it is fit.
	onlyFit
	// preferFit: one whose disk answers and has room, fit ones first.
	preferFit
	// preferQuick: a fit one, the quickest disk first.
	preferQuick
)

// candidates are what voters said of themselves, and what a successor must have.
type candidates struct {
	infos map[string]*clusterpb.ClockResponse
	last  uint64        // the newest index in the leader's log
	yield time.Duration // how long a write may take
}

// successor is the node that is best placed to take over, of those whose log is
// about as long as this one's; "" when there is none.
func (h *Handover) successor(infos map[string]*clusterpb.ClockResponse, by choice) string {
	return candidates{infos, h.cfg.Raft().LastIndex(), h.cfg.DiskYield}.best(by)
}

func (c candidates) best(by choice) string {
	var best *clusterpb.ClockResponse
	for _, r := range c.infos {
		poor := poorDisk(r.Disk, c.yield)
		switch {
		case r.LastIndex+transferLag < c.last:
		case by != anyNode && poor, (by == onlyFit || by == preferQuick) && !r.CanLead:
		case by == preferQuick && r.Disk.GetWrite() == 0:
		case best == nil || c.better(r, best, by):
			best = r
		}
	}
	if best == nil {
		return ""
	}
	return best.Node
}

// better reports whether one of them is better placed than another.
func (c candidates) better(r, than *clusterpb.ClockResponse, by choice) bool {
	if a, b := poorDisk(r.Disk, c.yield), poorDisk(than.Disk, c.yield); a != b {
		return b
	}
	if r.CanLead != than.CanLead {
		return r.CanLead
	}
	if a, b := r.Disk.GetWrite(), than.Disk.GetWrite(); by == preferQuick && a != b {
		return a < b
	}
	if r.LastIndex != than.LastIndex {
		return r.LastIndex > than.LastIndex
	}
	return r.Node < than.Node
}
