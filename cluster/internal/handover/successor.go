package handover

import (
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/diskspace"
)

// transferLag is how many entries the log of a successor may be behind.
const transferLag = 512

// poorDisk reports whether a node should not lead because of its disk.
func poorDisk(d *clusterpb.Disk, yield time.Duration) bool {
	return d.GetBehind() >= int64(yield) || diskspace.Level(d.GetSpace()) >= diskspace.Yield
}

// choice is the criterion by which a successor is chosen.
type choice int

const (
	// anyNode accepts all nodes: fit ones first, and those with a poor disk last.
	anyNode choice = iota
	// onlyFit accepts only nodes that report to be fit to lead.
	onlyFit
	// preferFit accepts nodes whose disk answers and has space, fit ones first.
	preferFit
	// preferQuick accepts fit nodes, the one with the fastest disk first.
	preferQuick
)

// candidates are the answers of the voters, and what a successor must satisfy.
type candidates struct {
	infos map[string]*clusterpb.ClockResponse
	last  uint64        // the newest index in the leader's log
	yield time.Duration // how long a write may take
}

// successor returns the node that is best placed to take over, among those whose log is
// nearly as long as this node's, or "" if there is none.
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

// better reports whether r is better placed than the other node.
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
