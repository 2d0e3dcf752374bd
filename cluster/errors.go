package cluster

import (
	"errors"

	"github.com/conclavekms/conclave/cluster/internal/bootstrap"
	"github.com/conclavekms/conclave/cluster/internal/changes"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/handover"
	"github.com/conclavekms/conclave/cluster/internal/lifecycle"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/peers"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/fsm"
)

// Errors of a call. Only after ErrOutcomeUnknown is it unknown whether the call took
// effect.
var (
	// ErrNoLeader is returned when no leader could be reached. Nothing was submitted.
	ErrNoLeader = fsm.ErrNoLeader
	// ErrNotLeader is returned by calls that only the leader serves, on other nodes.
	ErrNotLeader = commit.ErrNotLeader
	// ErrOverloaded is returned when too much is waiting already. Nothing was submitted.
	ErrOverloaded = fsm.ErrOverloaded
	// ErrFenced is returned after the node took itself out of the cluster; see
	// Config.OnFault.
	ErrFenced = lifecycle.ErrFenced
	// ErrShutdown is returned while the node is stopping. Nothing was submitted.
	ErrShutdown = commit.ErrShutdown
	// ErrOutcomeUnknown is returned when the record was submitted but its outcome was not
	// known in time. It may still take effect.
	ErrOutcomeUnknown = fsm.ErrOutcomeUnknown
	// ErrRecord is returned for a record that is too large or malformed and can never be
	// proposed.
	ErrRecord = commit.ErrRecord
	// ErrUnreachable is returned when another node did not answer. It is unknown whether
	// that node acted.
	ErrUnreachable = peerport.ErrUnreachable
	// ErrRemote is returned when the handler of another node refused. It is followed by
	// that node's message.
	ErrRemote = peers.ErrRemote
	// ErrSealed is returned for what only an unsealed node can do.
	ErrSealed = commit.ErrSealed
	// ErrNoTransfer is returned when no other node is fit to take over the leadership.
	ErrNoTransfer = handover.ErrNoTransfer
	// ErrRefused is returned for a change of the members that is not possible.
	ErrRefused = changes.ErrRefused
	// ErrNotReady is returned for a change of the members that would weaken the cluster at
	// the moment.
	ErrNotReady = changes.ErrNotReady
)

// Errors that stop a node for good. Config.OnFault receives them, wrapped.
var (
	// ErrCorrupt means that data on the disk differs from what was stored.
	ErrCorrupt = raftlog.ErrCorrupt
	// ErrStorage means that a write failed. It is unknown what reached the disk, so the
	// node may neither continue nor try again.
	ErrStorage = raftlog.ErrStorage
	// ErrDiskStuck means that a write has not returned for too long.
	ErrDiskStuck = raftlog.ErrDiskStuck
	// ErrIncarnation means that a newer incarnation of this node is registered.
	ErrIncarnation = commit.ErrIncarnation
	// ErrWipedDisk means that the cluster knows this node, but its disk is empty.
	ErrWipedDisk = bootstrap.ErrWipedDisk
	// ErrRolledBack means that this node's disk has held newer data than it does now.
	ErrRolledBack = bootstrap.ErrRolledBack
	// ErrRelease means that the cluster writes what this release cannot read.
	ErrRelease = bootstrap.ErrRelease
	// ErrRemoved means that this node was removed from the cluster.
	ErrRemoved = changes.ErrRemoved
	// ErrDataDir means that the data directory is damaged or belongs to another node.
	ErrDataDir = errors.New("unusable data directory")
	// ErrTransferStuck means that the leader refuses writes because of a leadership
	// transfer that never ends (hashicorp/raft issue 696).
	ErrTransferStuck = handover.ErrTransferStuck
	// ErrSnapshotLoop means that the leader sends the same snapshot over and over
	// (hashicorp/raft issue 697).
	ErrSnapshotLoop = errors.New("the same snapshot was installed repeatedly")
)
