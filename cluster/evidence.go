package cluster

import "github.com/conclavekms/conclave/fsm/fsmpb"

// evidence makes the clock and the state hash that the leader adds to its entries.
type evidence struct {
	n        *Node
	proposed uint64 // the newest state hash that was put into an entry
}

// next returns the clock and the state check of the next entry. The Committer calls it.
func (e *evidence) next() (*fsmpb.Clock, *fsmpb.StateCheck) {
	clock := e.n.guard.Evidence(e.n.State(), e.n.applied.since())
	return clock, e.check()
}

// check returns the state hash that the next entry asks the other nodes to compare, or nil.
// Each hash is proposed once. A node whose own hash differs stops, so a hash is proposed
// only if a majority has it: this node's state may be the wrong one.
func (e *evidence) check() *fsmpb.StateCheck {
	c := e.n.applied.check.Load()
	if c == nil || c.Index <= e.proposed || !e.n.standings.Agree(c.Index, len(e.n.members.Voters())) {
		return nil
	}
	e.proposed = c.Index
	return c
}
