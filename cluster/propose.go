package cluster

import (
	"context"
	"fmt"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// dialLeader opens the Proposer's link to the leader, or returns nil.
func (n *Node) dialLeader(answer func(*clusterpb.SubmitResponse)) commit.Link {
	if n.life.Context().Err() != nil || n.life.Fenced() != nil {
		return nil
	}
	leader, _ := n.Leader()
	switch leader {
	case "":
		return nil
	case n.cfg.NodeID:
		return n.committer.Link(leader, func(r *clusterpb.SubmitResponse) {
			if drop := n.cfg.Hooks.DropAnswer; drop == nil || !drop(leader, r) {
				answer(r)
			}
		})
	}
	link, err := n.peers.Link(n.life.Context(), leader, answer)
	if err != nil {
		return nil
	}
	return link
}

// State returns the newest applied state.
func (n *Node) State() *fsm.State { return n.machine.fsm.Current() }

// Propose submits a record and returns its verdict. ctx only limits the time until the
// record is submitted. After that Propose waits for the outcome for up to Timeouts.Outcome.
//
// Nothing was submitted if the error is that of ctx, ErrNoLeader, ErrOverloaded, ErrFenced,
// ErrShutdown or ErrRecord. After ErrOutcomeUnknown the record may still take effect.
func (n *Node) Propose(ctx context.Context, r *fsmpb.Record) (fsm.Decision, error) {
	return n.propose(ctx, r, false)
}

func (n *Node) propose(ctx context.Context, r *fsmpb.Record, exclusive bool) (fsm.Decision, error) {
	if err := n.life.Usable(); err != nil {
		return fsm.Decision{}, err
	}
	if n.auth.Powerless() {
		return fsm.Decision{}, fmt.Errorf("%w: %w", ErrNoLeader, ErrSealed)
	}
	return n.proposer.Propose(ctx, r, exclusive)
}

// WaitApplied returns once State().Index() is at least index. The index must be that of a
// command, as in a Decision: the state does not advance for other entries.
func (n *Node) WaitApplied(ctx context.Context, index uint64) error {
	return n.applied.wait(ctx, index, n.life.Context().Done())
}

// ProposeExclusive builds a record on the newest state and proposes it while nothing else
// can change that state, so that it meets no conflict. It works on the leader only. All
// other proposals of the cluster wait meanwhile, so build must be quick.
func (n *Node) ProposeExclusive(ctx context.Context, build func(*fsm.State) (*fsmpb.Record, error)) (fsm.Decision, error) {
	if err := n.life.Usable(); err != nil {
		return fsm.Decision{}, err
	}
	// The record goes through the Proposer like any other, so the Proposer's link must lead
	// to this node.
	if n.proposer.Leader() != n.cfg.NodeID {
		if !n.IsLeader() {
			return fsm.Decision{}, ErrNotLeader
		}
		return fsm.Decision{}, ErrNoLeader
	}
	release, err := n.committer.Hold(ctx)
	if err != nil {
		return fsm.Decision{}, err
	}
	defer release()
	r, err := build(n.State())
	if err != nil {
		return fsm.Decision{}, err
	}
	return n.propose(ctx, r, true)
}
