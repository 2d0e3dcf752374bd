// Package room tracks the free space on a node's disk and delays or refuses whatever would
// need more than there is.
//
// It guarantees that nothing is begun in the Raft log, in the audit log or as a snapshot
// unless there was space for it at the last look. What waits continues by itself once there
// is space, or fails once the node stops.
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

// look is the interval between two looks at the free space.
const look = 200 * time.Millisecond

// Keeper tracks the free space on one disk, shuts the gate of the Raft log while the disk
// is full, and decides on the leader whether the cluster may grow.
type Keeper struct {
	*diskspace.Tracker
	gate     *raftlog.Gate
	log      *slog.Logger
	noGrowth atomic.Bool // whether this node, as leader, refuses growth
}

// New returns a Keeper that has not looked yet.
func New(t *diskspace.Tracker, gate *raftlog.Gate, log *slog.Logger) *Keeper {
	return &Keeper{Tracker: t, gate: gate, log: log}
}

// Watch tracks the free space until ctx ends.
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

// Look measures the free space, and shuts the gate while the disk is full.
func (k *Keeper) Look() {
	level, changed, err := k.Tracker.Look(time.Now())
	if err != nil && k.Complain(time.Now()) {
		k.log.Warn("could not read the free space of the disk", "err", err)
	}
	if !changed {
		return
	}
	r := k.Room()
	log := k.log.Warn
	if level == diskspace.Ample {
		log = k.log.Info
	}
	log("the level of free disk space changed", "space", level.String(), "free_bytes", r.Free, "total_bytes", r.Total,
		"free_inodes", r.FreeInodes, "total_inodes", r.TotalInodes)
	k.gate.Set(level >= diskspace.Full)
}

// Weigh decides, on the leader, whether the cluster may grow, from the levels that the
// other voters report. Every node stores everything. So once the nodes with enough space
// are not a majority, growth is refused on all nodes, and no longer only on those whose
// disks are short of space.
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
		k.log.Warn("free space on the nodes' disks", "scarce_on", scarce, "of", voters, "growth_refused", refuse)
	}
	k.Told(refuse)
}

// NoGrowth reports the last decision of Weigh.
func (k *Keeper) NoGrowth() bool { return k.noGrowth.Load() }

// ErrNone is returned for what is not begun because there is no space for it.
var ErrNone = errors.New("there is not enough free space on the disk")

// snapshots begins no snapshot for which there may not be enough space, whether it is this
// node's or the leader's.
type snapshots struct {
	raft.SnapshotStore
	space *diskspace.Tracker
}

// Snapshots wraps a store so that it begins no snapshot for which there may not be enough
// space.
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

// audit measures the time that the audit log takes on the apply goroutine, which every
// answer waits for. It also waits for space before an append begins: if the append itself
// waited, it would block the readers of the log.
type audit struct {
	fsm.AuditLog
	space *diskspace.Tracker
	meter *raftlog.Meter
	gate  *raftlog.Gate
}

// leastRoom is the space that an append to the audit log may need beyond the entries: for
// tiles, the next segment, and the file system's metadata.
const leastRoom = 1 << 20

// Audit wraps an audit log so that appends wait for space.
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
