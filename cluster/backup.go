package cluster

import (
	"io"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/fsm"
)

// Snapshot returns the newest applied state and a function that writes its snapshot, with an
// unsealed node's attestation, for a backup. The function must be called once. It may take
// as long as it likes: nothing waits for it, and it pauses so that requests do not.
func (n *Node) Snapshot() (*fsm.State, func(io.Writer) error, error) {
	n.machine.mu.Lock()
	defer n.machine.mu.Unlock()
	s, err := n.machine.fsm.Snapshot()
	if err != nil {
		return nil, nil, err
	}
	return n.machine.fsm.Current(), func(to io.Writer) error {
		return s.Persist(&pacedSink{SnapshotSink: outsideSink{to}, since: time.Now()})
	}, nil
}

// outsideSink is the destination of a snapshot that Raft does not keep.
type outsideSink struct{ io.Writer }

var _ raft.SnapshotSink = outsideSink{}

// ID implements raft.SnapshotSink.
func (outsideSink) ID() string { return "" }

// Cancel implements raft.SnapshotSink.
func (outsideSink) Cancel() error { return nil }

// Close implements raft.SnapshotSink.
func (outsideSink) Close() error { return nil }
