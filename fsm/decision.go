package fsm

import "errors"

// Decision is what became of one record: the answer of cluster.Node's Propose
// and ProposeExclusive to the engine.
type Decision struct {
	Verdict Verdict
	// Index of the Raft entry that decided.
	Index uint64
	// Late reports, whenever it is asked, whether the decision may be older by then
	// than the release deadline: an answer that rests on authority must not be given
	// any more. nil for no deadline.
	Late func() bool
}

// TooLate asks Late.
func (d Decision) TooLate() bool { return d.Late != nil && d.Late() }

// Errors of proposing, which the cluster returns and the engine tells apart.
var (
	// ErrNoLeader: nothing was submitted, nobody leads.
	ErrNoLeader = errors.New("no leader")
	// ErrOverloaded: nothing was submitted, too much is waiting.
	ErrOverloaded = errors.New("too much is waiting to be committed")
	// ErrOutcomeUnknown: the record was submitted, and whether it was applied did
	// not become known in time. It may be applied yet.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrNodeStopped: this node is stopping or was fenced.
	ErrNodeStopped = errors.New("node stopped")
)
