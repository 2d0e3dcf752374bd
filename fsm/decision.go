package fsm

import "errors"

// Decision is what apply decided about one record. Propose and ProposeExclusive
// of cluster.Node return it to the engine.
type Decision struct {
	Verdict Verdict
	// Index is that of the Raft entry that decided.
	Index uint64
	// Record is the index in the audit log of an accepted record. It is unknown, nil, if
	// the decision was made at feature level 1, for an earlier submission of the same batch.
	Record *uint64
	// Late reports whether the decision may by now be older than the release
	// deadline. An answer that rests on authority must not be given after that. It
	// is nil if there is no deadline.
	Late func() bool
}

// TooLate reports whether there is a deadline that may have passed; see Late.
func (d Decision) TooLate() bool { return d.Late != nil && d.Late() }

// Errors that the cluster returns from proposing, and that the engine tells
// apart.
var (
	// ErrNoLeader: nothing was submitted, as there is no leader.
	ErrNoLeader = errors.New("no leader")
	// ErrOverloaded: nothing was submitted, as too much is waiting.
	ErrOverloaded = errors.New("too much is waiting to be committed")
	// ErrOutcomeUnknown: the record was submitted, but the outcome did not become
	// known in time. It may have been applied, or be applied later.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrNodeStopped: this node is stopping or was fenced.
	ErrNodeStopped = errors.New("node stopped")
)
