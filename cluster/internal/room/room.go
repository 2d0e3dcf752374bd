// Package room follows the room on a node's disk, and has everything wait or be refused that
// would need more than there is.
//
// What may be relied on: nothing is begun, in the Raft log, in the audit log or as a
// snapshot, for which there was no room when it was last looked at; and what waits goes on
// by itself once there is room, or fails once the node stops.
package room

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/diskspace"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/fsm"
)

// look is how often the room on the disk is looked at.
const look = 200 * time.Millisecond

// Keeper follows the room on one disk, shuts the gate of the Raft log while there is none,
// and, on the leader, decides whether the cluster may grow.
type Keeper struct {
	*diskspace.Tracker
	gate     *raftlog.Gate
	log      *slog.Logger
	noGrowth atomic.Bool // what this node, as leader, tells the others
}

// New is a Keeper that has looked at nothing yet.
func New(t *diskspace.Tracker, gate *raftlog.Gate, log *slog.Logger) *Keeper {
	return &Keeper{Tracker: t, gate: gate, log: log}
}

// Watch follows the room until ctx ends.
func (k *Keeper) Watch(ctx context.Context) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			k.Look()
		case <-ctx.Done():
			return
		}
	}
}

// Look looks how much room the disk has, and shuts the gate while there is none.
func (k *Keeper) Look() {
	level, changed, err := k.Tracker.Look(time.Now())
	if err != nil && k.Complain(time.Now()) {
		k.log.Warn("how much room the disk has cannot be found out", "err", err)
	}
	if !changed {
		return
	}
	r := k.Room()
	log := k.log.Warn
	if level == diskspace.Ample {
		log = k.log.Info
	}
	log("the room on the disk changed", "space", level.String(), "free_bytes", r.Free, "total_bytes", r.Total,
		"free_inodes", r.FreeInodes, "total_inodes", r.TotalInodes)
	k.gate.Set(level >= diskspace.Full)
}

// Weigh decides, on the leader, whether the cluster may grow, from what the other voters
// say of their disks: every node stores everything, so when those with room are no
// majority, all have to refuse what only the others have refused so far.
func (k *Keeper) Weigh(infos map[string]*clusterpb.ClockResponse, voters int) {
	scarce := 0
	if k.Level() >= diskspace.Scarce {
		scarce++
	}
	for _, i := range infos {
		if diskspace.Level(i.Disk.GetSpace()) >= diskspace.Scarce {
			scarce++
		}
	}
	refuse := voters-scarce < voters/2+1
	if k.noGrowth.Swap(refuse) != refuse {
		k.log.Warn("room on the nodes' disks", "scarce_on", scarce, "of", voters, "growth_refused", refuse)
	}
	k.Told(refuse)
}

// NoGrowth is what Weigh decided last.
func (k *Keeper) NoGrowth() bool { return k.noGrowth.Load() }

// ErrNone is what is refused rather than begun without room for it.
var ErrNone = errors.New("there is no room on the disk")

// snapshots begins no snapshot, its own or the leader's, for which there may be
// no room.
type snapshots struct {
	raft.SnapshotStore
	space *diskspace.Tracker
}

// Snapshots is a store that begins none for which there may be no room.
func (k *Keeper) Snapshots(store raft.SnapshotStore) raft.SnapshotStore {
	return snapshots{store, k.Tracker}
}

// Create implements raft.SnapshotStore.
func (s snapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport) (raft.SnapshotSink, error) {
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
		return nil, fmt.Errorf("%w: a snapshot takes %d bytes, %d are free", ErrNone, size, r.Free)
	}
	return s.SnapshotStore.Create(version, index, term, c, ci, t)
}

// audit notes how long the audit log takes on the apply goroutine, which every
// answer waits for, and begins nothing there for which the disk has no room: whoever
// reads the log meanwhile would wait with it.
type audit struct {
	fsm.AuditLog
	space *diskspace.Tracker
	meter *raftlog.Meter
	gate  *raftlog.Gate
}

// leastRoom is what an append to the audit log may need beyond the entries: tiles, the
// next segment, what the file system makes of them.
const leastRoom = 1 << 20

// Audit is an audit log that waits for room.
func (k *Keeper) Audit(log fsm.AuditLog, meter *raftlog.Meter) fsm.AuditLog {
	return audit{log, k.Tracker, meter, k.gate}
}

// Append implements fsm.AuditLog.
func (a audit) Append(entries []auditlog.Entry, leaves []auditlog.Hash) error {
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
			return fmt.Errorf("%w: %d bytes are free", ErrNone, r.Free)
		}
	}
	return a.AuditLog.Append(entries, leaves)
}
