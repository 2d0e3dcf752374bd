package cluster

import (
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/diskspace"
	"github.com/conclavekms/conclave/cluster/internal/leadership"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Status is what a node knows of itself. It is for people and metrics.
type Status struct {
	NodeID      string
	Leader      string // "" for none known
	State       string // Follower, Candidate, Leader, Shutdown, or Waiting before Raft runs
	Term        uint64
	LastIndex   uint64
	CommitIndex uint64
	Applied     uint64 // newest applied command
	// LastContact is the time since the leader was heard; 0 on the leader.
	LastContact time.Duration
	ClusterTime time.Time
	// ClockDisagrees says that this node leads and that a majority has another
	// time.
	ClockDisagrees bool
	// AuditFrom and AuditTo are the audit entries that this node lacks.
	AuditFrom, AuditTo uint64
	// Space is how little room the disk has, and Room how much that is. Behind is how
	// long the disk has not answered; 0 while a write takes no longer than usual.
	Space  diskspace.Level
	Room   diskspace.Room
	Behind time.Duration
	// Fault is why the node took itself out, or nil.
	Fault error
}

// Status is the node's present state.
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

// Space is how little room this node's disk has.
func (n *Node) Space() diskspace.Level { return n.space.Level() }

// MayGrow reports whether this node may propose what makes the state grow.
func (n *Node) MayGrow() bool { return n.space.MayGrow() }

// Member is a node of the cluster.
type Member struct {
	ID string
	// PeerAddress is from the Raft configuration; the others are what the node
	// registered, for clients.
	PeerAddress, AWSAddress, GRPCAddress string
	Voter                                bool
	Leader                               bool
	Self                                 bool
	// Alive is a hint: this node heard of it a moment ago, by gossip or as its
	// leader.
	Alive bool
	// LastContact is how long ago this node, as leader, had an answer of it; 0
	// for not known.
	LastContact time.Duration
	// Registered is what the node said of itself when it last started; nil
	// before it did.
	Registered *fsmpb.RegisterNode
}

// Members are the nodes of the Raft configuration, as listed there.
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

// Peers are the ids of the other nodes of the cluster, ascending.
func (n *Node) Peers() []string { return n.members.Others() }
