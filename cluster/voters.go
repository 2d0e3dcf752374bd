package cluster

import (
	"context"

	"github.com/conclavekms/conclave/fsm"
)

// votersNode implements voters.Node.
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
