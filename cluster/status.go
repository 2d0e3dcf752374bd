package cluster

import (
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/diskspace"
	"github.com/conclavekms/conclave/cluster/internal/leadership"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Status describes a node as it sees itself. It is for display and metrics.
type Status struct {
	NodeID      string
	Leader      string // "" for none known
	State       string // Follower, Candidate, Leader, Shutdown, or Waiting before Raft runs
	Term        uint64
	LastIndex   uint64
	CommitIndex uint64
	Applied     uint64 // newest applied command
	// LastContact is the time since this node last heard from the leader; 0 on the leader.
	LastContact time.Duration
	ClusterTime time.Time
	// ClockDisagrees reports whether this node leads and a majority has a different time.
	ClockDisagrees bool
	// AuditFrom and AuditTo are the range of audit entries that this node lacks.
	AuditFrom, AuditTo uint64
	// Space is the level of free disk space, and Room the amounts behind it. Behind is how
	// long the disk has not answered; 0 while writes take no longer than usual.
	Space  diskspace.Level
	Room   diskspace.Room
	Behind time.Duration
	// Fault is why the node took itself out of the cluster, or nil.
	Fault error
}

// Status returns the current status of the node.
func (n *Node) Status() Status {
	s := Status{NodeID: n.cfg.NodeID, State: "Waiting", Fault: n.Fault(), ClockDisagrees: n.guard.Disagrees()}
	s.Space, s.Room = n.space.Level(), n.space.Room()
	if b := n.store.Meter().Behind(); b >= n.cfg.Timeouts.DiskYield {
		s.Behind = b
	}
	st := n.State()
	s.Applied, s.ClusterTime = st.Index(), time.Unix(0, st.Time())
	if from, to, ok := n.cfg.Audit.Missing(); ok {
		s.AuditFrom, s.AuditTo = from, to
	}
	r := n.raft.Load()
	if r == nil {
		return s
	}
	s.Leader, _ = n.Leader()
	s.State, s.Term = r.State().String(), r.CurrentTerm()
	s.LastIndex, s.CommitIndex = r.LastIndex(), r.CommitIndex()
	if at := r.LastContact(); r.State() != raft.Leader && !at.IsZero() {
		s.LastContact = time.Since(at)
	}
	return s
}

// Space returns the level of free space on this node's disk.
func (n *Node) Space() diskspace.Level { return n.space.Level() }

// MayGrow reports whether this node may propose records that make the state grow.
func (n *Node) MayGrow() bool { return n.space.MayGrow() }

// Member is a node of the cluster.
type Member struct {
	ID string
	// PeerAddress is from the Raft configuration. The other addresses are those that the
	// node registered for clients.
	PeerAddress, AWSAddress, GRPCAddress string
	Voter                                bool
	Leader                               bool
	Self                                 bool
	// Alive is a hint: the member is this node or the leader, has answered this node a
	// moment ago, or is alive according to gossip.
	Alive bool
	// LastContact is the time since the member last answered this node; 0 if it is not
	// known.
	LastContact time.Duration
	// Registered is the node's newest registration; nil if it has none.
	Registered *fsmpb.RegisterNode
}

// Members returns the nodes of the Raft configuration, in its order.
func (n *Node) Members() []Member {
	leader, _ := n.Leader()
	st := n.State()
	var list []Member
	for _, s := range n.members.Configuration().Servers {
		m := Member{
			ID: string(s.ID), PeerAddress: string(s.Address), Voter: s.Suffrage == raft.Voter,
			Leader: string(s.ID) == leader, Self: string(s.ID) == n.cfg.NodeID,
		}
		m.LastContact = n.voters.Heard(m.ID)
		m.Alive = m.Self || m.Leader || m.LastContact > 0 && m.LastContact < 3*leadership.Tick || n.gossip != nil && n.gossip.Alive(m.ID)
		if m.Registered, _ = st.Node(m.ID); m.Registered != nil {
			m.AWSAddress, m.GRPCAddress = m.Registered.AwsAddress, m.Registered.GrpcAddress
		}
		list = append(list, m)
	}
	return list
}

// Peers returns the ids of the other nodes of the cluster, in ascending order.
func (n *Node) Peers() []string { return n.members.Others() }
