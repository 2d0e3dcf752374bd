package cluster

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/changes"
)

// Health is what all members of the cluster answered when they were asked.
type Health = changes.Health

// Standing is what one member answered.
type Standing = changes.Standing

// ChangesSince is the feature level from which on the members can be changed.
const ChangesSince = changes.Since

// Changes changes the members of the cluster. Its methods are safe for concurrent use.
type Changes struct{ n *Node }

// Changes returns what changes the members of the cluster.
func (n *Node) Changes() Changes { return Changes{n} }

// Health asks all members how they are. It works on every node.
func (c Changes) Health(ctx context.Context) Health { return c.n.changes.Look(ctx) }

// Add adds a node without a vote, on the leader. If it is a member already, at the same
// address, nothing changes.
func (c Changes) Add(ctx context.Context, node, address string) error {
	return c.n.changes.Add(ctx, node, address)
}

// MayAdd returns an error if a node cannot be added: its id or address is malformed, or is that
// of a member, or its id was that of one. It works on every node.
func (c Changes) MayAdd(node, address string) error { return c.n.changes.MayAdd(node, address) }

// Move changes the address of a member, on the leader, which must be another one. It returns
// ErrNotReady, and nothing changes, if the others have no majority that is ready.
func (c Changes) Move(ctx context.Context, node, address string) error {
	return c.n.changes.Move(ctx, node, address)
}

// Promote gives a node a vote, on the leader. It returns ErrNotReady, and nothing changes, if
// the node is not ready or if the voters with it would have no majority that is.
func (c Changes) Promote(ctx context.Context, node string) error {
	return c.n.changes.Promote(ctx, node)
}

// Remove removes a node, on the leader, which must be another one. It returns ErrNotReady, and
// nothing changes, if the voters that remain would have no majority that is ready.
func (c Changes) Remove(ctx context.Context, node string) error {
	return c.n.changes.Remove(ctx, node)
}

// RemoveDead removes a node that does not answer, on the leader, without an operator who decides
// it. It returns ErrNotReady, and nothing changes, unless at least three voters are left, of
// which as many may fail as before.
func (c Changes) RemoveDead(ctx context.Context, node string) error {
	return c.n.changes.RemoveDead(ctx, node)
}

// TransferLeadership hands the leadership to the given voter, or to the best placed one if to
// is empty, and returns when this node has stopped leading. Only one transfer runs at a time.
func (c Changes) TransferLeadership(ctx context.Context, to string) error {
	return c.n.handover.Transfer(ctx, to)
}

// memberNode is what the members of the cluster mean to their node.
type memberNode struct{ n *Node }

// newChanges returns the part that changes the members.
func (m memberNode) newChanges() *changes.Changes {
	n := m.n
	return changes.New(changes.Config{
		ID: n.cfg.NodeID, Raft: n.raft.Load, RaftEnd: n.raftEnd, Members: n.members,
		Here: m.clock, Ask: n.voters.AskMember, Unsealed: n.auth.Unsealed, Initialised: n.auth.Initialised,
		Level: func() uint32 { return n.State().Level() },
		Registered: func(node string) bool {
			r, _ := n.State().Node(node)
			return r != nil
		},
		Tell: m.tellRemoved, Log: n.log,
	})
}

// clock returns this node's answer to the question how it is, without the proof.
func (m memberNode) clock() *clusterpb.ClockResponse {
	n := m.n
	r := &clusterpb.ClockResponse{
		Node: n.cfg.NodeID, Wall: n.cfg.Clock.Now().UnixNano(), CanLead: n.handover.CanLead(), Disk: n.handover.Disk(),
		StateIndex: n.State().Index(),
	}
	if from, to, ok := n.cfg.Audit.Missing(); ok && to > n.auth.Cluster().GetLineage().GetAuditSize() {
		r.AuditMissing = to - from // otherwise the cluster was restored without its audit log, and nobody has it
	}
	if rf := n.raft.Load(); rf != nil {
		r.LastIndex, r.Term, r.Leads = rf.LastIndex(), rf.CurrentTerm(), n.IsLeader()
		r.ConfigurationIndex, _ = n.members.Latest()
	}
	return r
}

const (
	// tellTimeout bounds how long a removed node is told.
	tellTimeout = 2 * time.Second
	// meetEvery is how often this node finds out about a node that is not a member, and maxMet
	// how many such nodes it remembers.
	meetEvery = 5 * time.Second
	maxMet    = 256
	// healthEvery is how often the leader asks all members how they are, for its metrics.
	healthEvery = 5 * time.Second
	// membersEvery is how often the node looks whether its configuration has changed.
	membersEvery = 100 * time.Millisecond
)

// tellRemoved prepares to tell a node that it was removed, over a connection from before.
func (m memberNode) tellRemoved(node string) func(index uint64) {
	client, err := m.n.peers.Client(node)
	return func(index uint64) {
		if err == nil {
			err = m.tell(client, node, index)
		}
		if err != nil {
			m.n.log.Warn("a removed node did not confirm that it knows it; it takes no part any more, and is told again when it connects", "node", node, "err", err)
		}
		m.n.peers.Keep(m.n.members.Has)
	}
}

// tell tells a node that it was removed by the configuration of that index.
func (m memberNode) tell(client clusterpb.PeerClient, node string, index uint64) error {
	ctx, cancel := context.WithTimeout(m.n.life.Context(), tellTimeout)
	defer cancel()
	return m.n.peers.TellRemoved(ctx, client, node, index, m.n.auth.Sign)
}

// stranger notes that a node wants to connect that is not a member as far as this node knows.
func (m memberNode) stranger(node string) {
	select {
	case m.n.strangers <- node:
	default: // it will come again
	}
}

// meetStrangers finds out about the nodes that this node refused. Either this node has missed
// that they were added, as it was cut off, and their connections, which may be those of the
// leader, are its only way to learn that. Or they have missed that they were removed, as they
// did not run, and nobody admits them so that they could ask. Whoever has a node's certificate
// can cause this, so it is done for one at a time, and for each from time to time.
func (m memberNode) meetStrangers() {
	n := m.n
	met := make(map[string]time.Time)
	for {
		var node string
		select {
		case node = <-n.strangers:
		case <-n.life.Context().Done():
			return
		}
		if time.Since(met[node]) < meetEvery {
			continue
		}
		if len(met) >= maxMet {
			clear(met)
		}
		met[node] = time.Now()
		ctx, cancel := context.WithTimeout(n.life.Context(), tellTimeout)
		n.boot.Relearn(ctx)
		cancel()
		// A node registers after it was added. So if its registration is in this node's state,
		// the configuration that added it is in the log, and a later one without it removed it.
		index, conf := n.members.Committed()
		if index == 0 || slices.ContainsFunc(conf.Servers, func(s raft.Server) bool { return string(s.ID) == node }) {
			continue
		}
		if r, _ := n.State().Node(node); r == nil {
			continue
		}
		client, err := n.peers.Client(node)
		if err == nil {
			err = m.tell(client, node, index)
		}
		n.log.Info("a node that was removed wanted to connect", "peer", node, "err", err)
		n.peers.Keep(n.members.Has)
	}
}

// registered returns the address that a node registered, or "".
func (m memberNode) registered(node string) string {
	r, _ := m.n.State().Node(node)
	return r.GetPeerAddress()
}

// removed handles the notice of an unsealed node that this node was removed.
func (m memberNode) removed(index uint64) {
	n := m.n
	if own, _ := n.members.Latest(); own > index && n.members.Has(n.cfg.NodeID) {
		return // it is about an earlier time
	}
	n.life.Fence(ErrRemoved)
}

// watch closes the connections of nodes that are removed, and stops this node when it
// is removed itself.
func (m memberNode) watch() {
	n := m.n
	tick := time.NewTicker(membersEvery)
	defer tick.Stop()
	var seen uint64
	member := false
	for {
		select {
		case <-tick.C:
		case <-n.life.Context().Done():
			return
		}
		index, conf := n.members.Latest()
		if len(conf.Servers) == 0 || index == seen && member {
			continue
		}
		r := n.raft.Load()
		was := member
		member = n.members.Has(n.cfg.NodeID)
		if was && !member && r.CommitIndex() >= index {
			n.life.Fence(fmt.Errorf("%w (by the configuration of index %d)", ErrRemoved, index))
			return
		}
		if was && !member {
			member = was // the removal may yet be replaced
			continue
		}
		if index != seen {
			seen = index
			n.port.Keep(n.members.Has)
			if !n.IsLeader() { // a leader may have to tell the removed node first
				n.peers.Keep(n.members.Has)
			}
		}
	}
}

// learn prepares to record a configuration that another node will tell.
func (m memberNode) learn() func(index uint64, c raft.Configuration, proven bool) {
	own, _ := m.n.members.Latest()
	return func(index uint64, c raft.Configuration, proven bool) {
		if proven {
			m.n.members.Learn(index, c.Servers, own)
		} else {
			m.n.members.Hint(c.Servers)
		}
	}
}

// count returns how many members vote and how many do not.
func (m memberNode) count() (voters, replicas int) {
	_, c := m.n.members.Latest()
	for _, s := range c.Servers {
		if s.Suffrage == raft.Voter {
			voters++
		} else {
			replicas++
		}
	}
	return voters, replicas
}

// lastHealth is what the members answered last; none on a node that does not lead.
type lastHealth struct{ atomic.Pointer[Health] }

// on returns f of the last answers, or NaN.
func (l *lastHealth) on(f func(Health) float64) float64 {
	if h := l.Load(); h != nil {
		return f(*h)
	}
	return math.NaN()
}

// watchHealth asks the members from time to time, while this node leads.
func (m memberNode) watchHealth() {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-m.n.life.Context().Done():
			return
		}
		if !m.n.IsLeader() {
			m.n.health.Store(nil)
			continue
		}
		h := m.n.changes.Look(m.n.life.Context())
		m.n.health.Store(&h)
	}
}
