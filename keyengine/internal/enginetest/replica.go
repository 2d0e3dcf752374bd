package enginetest

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// A Replica is one node's side of the replicated log. The fields that are not counters are
// set by tests while no request is in progress.
type Replica struct {
	// OnApply is called with each new state, and Serve with what other nodes forward to
	// this one. The node's engine sets both.
	OnApply func(*fsm.State, fsm.Events)
	Serve   func(ctx context.Context, from string, payload []byte) ([]byte, error)

	// BeforeCommit is called with each record between its evaluation and its commit.
	BeforeCommit func(*fsmpb.Record)
	// Err is the error with which Propose and Barrier fail. Nothing is committed.
	Err error
	// LoseOutcome has Propose and ProposeExclusive commit the record and then return
	// fsm.ErrOutcomeUnknown.
	LoseOutcome bool
	// LoseRecord has Propose return fsm.ErrOutcomeUnknown without committing anything.
	LoseRecord bool
	// LateAnswer has the decisions of records be late for their answers.
	LateAnswer bool
	// Outdated makes decisions late that Propose has returned already.
	Outdated atomic.Bool
	// Decide, if not nil, gives the verdicts instead of the state machine. Nothing is
	// committed.
	Decide func() fsm.Verdict

	// Proposals, Barriers and Forwarded count the calls of Propose, Barrier and
	// ExecuteOnLeader.
	Proposals, Barriers, Forwarded atomic.Int64

	cluster *Cluster
	id      string
	mu      sync.Mutex
	old     *fsm.State // what State returns; nil for the newest state
}

// Cluster returns the cluster of the replica.
func (r *Replica) Cluster() *Cluster { return r.cluster }

// FallBehind has State return the state of now until CatchUp is called or the node waits for
// a newer state.
func (r *Replica) FallBehind() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.old = r.cluster.State()
}

// CatchUp ends FallBehind.
func (r *Replica) CatchUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.old = nil
}

// State returns the newest state that the node has applied.
func (r *Replica) State() *fsm.State {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.old != nil {
		return r.old
	}
	return r.cluster.State()
}

// Propose commits a record.
func (r *Replica) Propose(ctx context.Context, rec *fsmpb.Record) (fsm.Decision, error) {
	r.Proposals.Add(1)
	if err := ctx.Err(); err != nil {
		return fsm.Decision{}, err
	}
	if r.Err != nil {
		return fsm.Decision{}, r.Err
	}
	if r.BeforeCommit != nil {
		r.BeforeCommit(rec)
	}
	if r.Decide != nil {
		return fsm.Decision{Verdict: r.Decide(), Index: r.cluster.State().Index()}, nil
	}
	if r.LoseRecord {
		return fsm.Decision{}, fsm.ErrOutcomeUnknown
	}
	r.cluster.mu.Lock()
	d := r.cluster.propose(r.id, rec)
	r.cluster.mu.Unlock()
	if d.Verdict == 0 {
		return d, fsm.ErrNoLeader
	}
	if r.LoseOutcome {
		return fsm.Decision{}, fsm.ErrOutcomeUnknown
	}
	late := r.LateAnswer
	d.Late = func() bool { return late || r.Outdated.Load() }
	return d, nil
}

// ProposeExclusive builds a record on the leader while nothing else is committed, and commits
// it.
func (r *Replica) ProposeExclusive(_ context.Context, build func(*fsm.State) (*fsmpb.Record, error)) (fsm.Decision, error) {
	if r.cluster.Leader != r {
		return fsm.Decision{}, fsm.ErrNoLeader
	}
	r.cluster.mu.Lock()
	defer r.cluster.mu.Unlock()
	rec, err := build(r.cluster.State())
	if err != nil {
		return fsm.Decision{}, err
	}
	d := r.cluster.propose(r.id, rec)
	if r.LoseOutcome {
		return fsm.Decision{}, fsm.ErrOutcomeUnknown
	}
	return d, nil
}

// ExecuteOnLeader calls Serve of the leader's replica.
func (r *Replica) ExecuteOnLeader(ctx context.Context, payload []byte) ([]byte, error) {
	r.Forwarded.Add(1)
	l := r.cluster.Leader
	if l == nil || l.Serve == nil {
		return nil, fsm.ErrNoLeader
	}
	// Only the end of the context reaches another node, not its values.
	there, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	return l.Serve(there, r.id, bytes.Clone(payload))
}

// WaitApplied waits until State has the entry with the given index.
func (r *Replica) WaitApplied(ctx context.Context, index uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.old != nil && r.old.Index() < index {
		r.old = nil
	}
	return ctx.Err()
}

// Barrier waits until State has everything that was committed before the call.
func (r *Replica) Barrier(ctx context.Context) error {
	r.Barriers.Add(1)
	if r.Err != nil {
		return r.Err
	}
	r.cluster.Commit(&fsmpb.Entry{})
	r.CatchUp()
	return ctx.Err()
}

// IsLeader reports whether the node leads.
func (r *Replica) IsLeader() bool { return r.cluster.Leader == r }
