package cluster

import (
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/cluster/internal/bootstrap"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/peers"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/fsm"
)

// What can become of a call. Only ErrOutcomeUnknown leaves open whether
// something happened.
var (
	// ErrNoLeader: no leader could be reached, and nothing was submitted.
	ErrNoLeader = fsm.ErrNoLeader
	// ErrNotLeader: the call is for the leader, and this node is not it.
	ErrNotLeader = commit.ErrNotLeader
	// ErrOverloaded: too much is waiting already, and nothing was submitted.
	ErrOverloaded = fsm.ErrOverloaded
	// ErrFenced: the node took itself out of the cluster; see Config.OnFault.
	ErrFenced = fmt.Errorf("%w: node is fenced", fsm.ErrNodeStopped)
	// ErrShutdown: the node is stopping, and nothing was submitted.
	ErrShutdown = commit.ErrShutdown
	// ErrOutcomeUnknown: it was submitted, and whether it took effect could not
	// be learnt in time. It may still take effect.
	ErrOutcomeUnknown = fsm.ErrOutcomeUnknown
	// ErrRecord: the record can never be proposed: too large or malformed.
	ErrRecord = commit.ErrRecord
	// ErrUnreachable: the node that was asked did not answer; whether it acted
	// is unknown.
	ErrUnreachable = peerport.ErrUnreachable
	// ErrRemote: the other node's handler refused; its message follows.
	ErrRemote = peers.ErrRemote
	// ErrSealed: only an unsealed node can do it.
	ErrSealed = commit.ErrSealed
	// ErrNoTransfer: no other node is fit to take over the leadership.
	ErrNoTransfer = errors.New("no node can take over")
)

// What stops a node for good. Config.OnFault receives them, wrapped.
var (
	// ErrCorrupt: something on the disk is not what was stored.
	ErrCorrupt = raftlog.ErrCorrupt
	// ErrStorage: a write failed. What reached the disk is not known, so the
	// node may neither go on nor try again.
	ErrStorage = raftlog.ErrStorage
	// ErrDiskStuck: a write has not returned for too long.
	ErrDiskStuck = raftlog.ErrDiskStuck
	// ErrIncarnation: a newer start of this node is registered.
	ErrIncarnation = commit.ErrIncarnation
	// ErrWipedDisk: the cluster knows this node, whose disk is empty.
	ErrWipedDisk = bootstrap.ErrWipedDisk
	// ErrRolledBack: the cluster knows this node's disk to have held more.
	ErrRolledBack = bootstrap.ErrRolledBack
	// ErrDataDir: the data directory is another node's, or damaged.
	ErrDataDir = errors.New("unusable data directory")
	// ErrTransferStuck: the leader refuses writes because of a leadership
	// transfer that never ends (hashicorp/raft issue 696).
	ErrTransferStuck = errors.New("leadership transfer does not end")
	// ErrSnapshotLoop: the leader sends the same snapshot over and over
	// (hashicorp/raft issue 697).
	ErrSnapshotLoop = errors.New("the same snapshot was installed repeatedly")
)
