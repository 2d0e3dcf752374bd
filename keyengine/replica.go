package keyengine

import (
	"context"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Replica is the part of the replicated log that the engine uses. cluster.Node implements
// it; neither package imports the other.
type Replica interface {
	// State returns the newest state that this node has applied.
	State() *fsm.State
	// Propose commits a record and returns once its outcome is known. After an error the
	// record has not taken effect, except that after fsm.ErrOutcomeUnknown it may have.
	Propose(ctx context.Context, r *fsmpb.Record) (fsm.Decision, error)
	// ProposeExclusive builds a record on the leader, on a state that no other record can
	// overtake, and commits it.
	ProposeExclusive(ctx context.Context, build func(*fsm.State) (*fsmpb.Record, error)) (fsm.Decision, error)
	// ExecuteOnLeader calls ServeForwarded of the leader's engine with payload.
	ExecuteOnLeader(ctx context.Context, payload []byte) ([]byte, error)
	// WaitApplied waits until this node has applied the Raft entry with that index.
	WaitApplied(ctx context.Context, index uint64) error
	// Barrier waits until this node has applied everything that was committed before the
	// call.
	Barrier(ctx context.Context) error
	// IsLeader reports whether this node believes that it leads.
	IsLeader() bool
}
