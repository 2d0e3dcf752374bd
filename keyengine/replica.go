package keyengine

import (
	"context"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Replica is what the engine needs of the replicated log; cluster.Node is
// one; neither package imports the other.
type Replica interface {
	// State is the newest state that this node applied.
	State() *fsm.State
	// Propose commits a record and returns once its outcome is known. After an
	// error nothing happened, except that after fsm.ErrOutcomeUnknown it may have.
	Propose(ctx context.Context, r *fsmpb.Record) (fsm.Decision, error)
	// ProposeExclusive, on the leader, builds a record on a state that nothing
	// can overtake, and commits it.
	ProposeExclusive(ctx context.Context, build func(*fsm.State) (*fsmpb.Record, error)) (fsm.Decision, error)
	// ExecuteOnLeader hands payload to ServeForwarded of the leader's engine.
	ExecuteOnLeader(ctx context.Context, payload []byte) ([]byte, error)
	// WaitApplied waits until State has applied the Raft entry of that index.
	WaitApplied(ctx context.Context, index uint64) error
	// Barrier waits until State has everything that was committed before.
	Barrier(ctx context.Context) error
	// IsLeader reports whether this node believes that it leads.
	IsLeader() bool
}
