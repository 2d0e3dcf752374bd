package cluster

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/diskspace"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/fsm"
)

// spaceLook is how often the room on the disk is looked at.
const spaceLook = 200 * time.Millisecond

// watchSpace follows the room on the disk.
func (n *Node) watchSpace() {
	tick := time.NewTicker(spaceLook)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.lookAtSpace()
		case <-n.life.Context().Done():
			return
		}
	}
}

// lookAtSpace looks how much room the disk has, and shuts the store's gate while
// there is none.
func (n *Node) lookAtSpace() {
	level, changed, err := n.space.Look(time.Now())
	if err != nil && n.space.Complain(time.Now()) {
		n.log.Warn("how much room the disk has cannot be found out", "err", err)
	}
	if !changed {
		return
	}
	r := n.space.Room()
	log := n.log.Warn
	if level == diskspace.Ample {
		log = n.log.Info
	}
	log("the room on the disk changed", "space", level.String(), "free_bytes", r.Free, "total_bytes", r.Total,
		"free_inodes", r.FreeInodes, "total_inodes", r.TotalInodes)
	n.store.Gate().Set(level >= diskspace.Full)
}

// weighSpace decides, on the leader, whether the cluster may grow: every node stores
// everything, so when those with room are no majority, all have to refuse what only
// the others have refused so far.
func (n *Node) weighSpace(infos map[string]*clusterpb.ClockResponse) {
	voters := len(n.members.Voters())
	scarce := 0
	if n.space.Level() >= diskspace.Scarce {
		scarce++
	}
	for _, i := range infos {
		if diskspace.Level(i.Disk.GetSpace()) >= diskspace.Scarce {
			scarce++
		}
	}
	refuse := voters-scarce < voters/2+1
	if n.noGrowth.Swap(refuse) != refuse {
		n.log.Warn("room on the nodes' disks", "scarce_on", scarce, "of", voters, "growth_refused", refuse)
	}
	n.space.Told(refuse)
}

// Space is how little room this node's disk has.
func (n *Node) Space() diskspace.Level { return n.space.Level() }

// MayGrow reports whether this node may propose what makes the state grow.
func (n *Node) MayGrow() bool { return n.space.MayGrow() }

// errNoRoom is what is refused rather than begun without room for it.
var errNoRoom = errors.New("there is no room on the disk")

// roomySnapshots begins no snapshot, its own or the leader's, for which there may be
// no room.
type roomySnapshots struct {
	raft.SnapshotStore
	space *diskspace.Tracker
}

// Create implements raft.SnapshotStore.
func (s roomySnapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport) (raft.SnapshotSink, error) {
	list, err := s.List()
	if err != nil {
		return nil, err
	}
	var size uint64
	if len(list) > 0 {
		size = uint64(list[0].Size)
	}
	r, err := s.space.Stat()
	if err != nil {
		return nil, err
	}
	if s.space.Level() >= diskspace.Full || r.Free < s.space.FullBelow(r)+size+size/4 {
		return nil, fmt.Errorf("%w: a snapshot takes %d bytes, %d are free", errNoRoom, size, r.Free)
	}
	return s.SnapshotStore.Create(version, index, term, c, ci, t)
}

// gatedAudit notes how long the audit log takes on the apply goroutine, which every
// answer waits for, and begins nothing there for which the disk has no room: whoever
// reads the log meanwhile would wait with it.
type gatedAudit struct {
	fsm.AuditLog
	space *diskspace.Tracker
	meter *raftlog.Meter
	gate  *raftlog.Gate
}

// leastRoom is what an append to the audit log may need beyond the entries: tiles, the
// next segment, what the file system makes of them.
const leastRoom = 1 << 20

// Append implements fsm.AuditLog.
func (a gatedAudit) Append(entries []auditlog.Entry, leaves []auditlog.Hash) error {
	defer a.meter.Awaited()()
	need := uint64(leastRoom)
	for i := range entries {
		need += 2 * uint64(len(entries[i].Body))
	}
	for {
		r, err := a.space.Stat()
		if err != nil || r.Free >= need {
			break
		}
		if !a.gate.Wait(a.meter) {
			return fmt.Errorf("%w: %d bytes are free", errNoRoom, r.Free)
		}
	}
	return a.AuditLog.Append(entries, leaves)
}
