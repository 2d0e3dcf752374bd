package cluster

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm"
)

// self is this node's part in its judgement of others.
func (n *Node) self() standing.Self {
	me := standing.Self{Node: n.cfg.NodeID, Fit: n.unsealed() && n.canLead(), Voters: n.voters()}
	if r := n.raft.Load(); r != nil {
		me.Last = r.LastIndex()
	}
	return me
}

// watchStandings asks the other voters while this node does not lead; a leader asks
// them for its own needs more often than that.
func (n *Node) watchStandings() {
	every := standing.Every * n.cfg.Timeouts.Heartbeat
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		n.lookAtStandings(every)
		select {
		case <-tick.C:
		case <-n.ctx.Done():
			return
		}
	}
}

// lookAtStandings asks the others once, for as long as wait, and judges the leader.
func (n *Node) lookAtStandings(wait time.Duration) {
	if n.faulted.Load() != nil {
		return
	}
	leader, _ := n.Leader()
	if leader != n.cfg.NodeID {
		ctx, cancel := context.WithTimeout(n.ctx, wait)
		defer cancel()
		n.askVoters(ctx)
	}
	if n.initialised() && n.standings.Judge(leader, n.self(), time.Now()) {
		n.log.Warn("the leader does not prove that it is unsealed, and another node that is could lead: it is not followed any more. "+
			"If it does not step aside, its identity may be stolen", "leader", leader)
	}
}

// compareStates compares this node's state with another's, which says to have that
// hash at that index. The other one may be ahead by a moment.
func (n *Node) compareStates(ctx context.Context, node string, index uint64, hash []byte) {
	if !n.initialised() || index == 0 || len(hash) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeouts.Heartbeat)
	defer cancel()
	if n.WaitApplied(ctx, index) != nil {
		return
	}
	s := n.machine.fsm.StateAt(index)
	if s == nil {
		return
	}
	own := s.Hash()
	same := bytes.Equal(own[:], hash)
	if n.standings.Compare(node, index, same, time.Now()) {
		if same {
			n.log.Info("another node's state is this node's again", "node", node, "index", index)
		} else {
			n.log.Error("another node's state differs from this node's", "node", node, "index", index)
		}
	}
	if !same && n.standings.Outvoted(len(n.voters()), n.unsealed(), time.Now()) {
		n.fault(fmt.Errorf("%w: at Raft index %d, like most nodes that can tell", fsm.ErrDiverged, index))
	}
}

// cutOff refuses another node for a while, because of something that no honest
// node sends. The log, the metric and the audit log name it, once a period.
func (n *Node) cutOff(from standing.Sender, reason string) {
	node := from.Node
	n.metrics.forgeries.WithLabelValues(node).Inc()
	if !n.cutOffs.Add(from, time.Now()) {
		return
	}
	n.log.Error("another node sent what only an unsealed node can, and is not one: it is refused. Its disk or identity may be stolen",
		"node", node, "reason", reason, "for", standing.CutOffFor)
	if n.cfg.OnForgery != nil {
		n.cfg.OnForgery(node, reason)
	}
}
