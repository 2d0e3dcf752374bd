package cluster

import (
	"context"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// votersNode is the node as it asks the other voters: a voters.Node.
type votersNode struct{ n *Node }

func (v votersNode) Voters() []string { return v.n.members.Voters() }
func (v votersNode) Leader() string {
	leader, _ := v.n.Leader()
	return leader
}
func (v votersNode) LastIndex() uint64 {
	if r := v.n.raft.Load(); r != nil {
		return r.LastIndex()
	}
	return 0
}
func (v votersNode) CanLead() bool  { return v.n.handover.CanLead() }
func (v votersNode) NoGrowth() bool { return v.n.space.NoGrowth() }
func (v votersNode) WaitApplied(ctx context.Context, index uint64) error {
	return v.n.WaitApplied(ctx, index)
}
func (v votersNode) StateAt(index uint64) *fsm.State { return v.n.machine.fsm.StateAt(index) }
func (v votersNode) Initialised() bool               { return v.n.auth.Initialised() }
func (v votersNode) Unsealed() bool                  { return v.n.auth.Unsealed() }

// evidence is what a leader's entries say of time and of the state.
type evidence struct {
	n        *Node
	proposed uint64 // the newest state hash that an entry had
}

// next is the evidence for the next entry. The Committer asks for it.
func (e *evidence) next() (*fsmpb.Clock, *fsmpb.StateCheck) {
	clock := e.n.guard.Evidence(e.n.State(), e.n.applied.since())
	return clock, e.check()
}

// check is the state hash that the next entry asks the others to compare,
// once for each. The others stop if theirs is another, so a majority must have it:
// it may be this node whose state is wrong.
func (e *evidence) check() *fsmpb.StateCheck {
	c := e.n.applied.check.Load()
	if c == nil || c.Index <= e.proposed || !e.n.standings.Agree(c.Index, len(e.n.members.Voters())) {
		return nil
	}
	e.proposed = c.Index
	return c
}
