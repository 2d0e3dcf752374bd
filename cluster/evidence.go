package cluster

import "github.com/conclavekms/conclave/fsm/fsmpb"

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
