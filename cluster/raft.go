package cluster

import (
	"context"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/raftlogger"
	"github.com/conclavekms/conclave/cluster/internal/raftscan"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// raftConfig returns the configuration of Raft for c.
func raftConfig(c *Config) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.NodeID)
	rc.ProtocolVersion = 3
	rc.HeartbeatTimeout = c.Timeouts.Heartbeat
	rc.ElectionTimeout = c.Timeouts.Election
	rc.LeaderLeaseTimeout = c.Timeouts.Lease
	rc.CommitTimeout = c.Timeouts.Commit
	rc.MaxAppendEntries = raftscan.MaxEntries
	rc.BatchApplyCh = true
	rc.ShutdownOnRemove = true
	rc.TrailingLogs = c.TrailingLogs
	rc.SnapshotInterval = c.Timeouts.Snapshot
	rc.SnapshotThreshold = c.SnapshotEntries
	rc.Logger = raftlogger.New(c.Logger, "raft")
	rc.NoLegacyTelemetry = true
	return rc
}

// raftTimeout is the timeout of one Raft request to another node.
func (t Timeouts) raftTimeout() time.Duration { return max(10*t.Heartbeat, 2*time.Second) }

// transportNode implements rafttransport.Node.
type transportNode struct{ n *Node }

func (t transportNode) Connect(ctx context.Context, node string) (*peerport.Conn, error) {
	return t.n.peers.Connect(ctx, node, pki.ALPNRaft)
}
func (t transportNode) NodeAt(addr string) (string, bool) { return t.n.members.NodeAt(addr) }
func (t transportNode) Raft() *raft.Raft                  { return t.n.raft.Load() }
func (t transportNode) IsMember(node string) bool         { return t.n.members.Has(node) }
func (t transportNode) Configuration() raft.Configuration { return t.n.members.Configuration() }
func (t transportNode) Leader() string {
	leader, _ := t.n.Leader()
	return leader
}
func (t transportNode) Cluster() *fsmpb.Cluster { return t.n.auth.Cluster() }
func (t transportNode) Applied() uint64         { return t.n.State().Index() }
func (t transportNode) SnapshotEnd() (index, term uint64) {
	if m := t.n.latest.Load(); m != nil {
		return m.Index, m.Term
	}
	return 0, 0
}
func (t transportNode) CheckEntry(encoded []byte) error { return t.n.machine.fsm.CheckEntry(encoded) }
func (t transportNode) Unsealed() bool                  { return t.n.auth.Unsealed() }
func (t transportNode) Sign(domain string, digest [32]byte) (uint32, []byte, error) {
	return t.n.auth.Sign(domain, digest)
}
func (t transportNode) Self() standing.Self                        { return t.n.voters.Self() }
func (t transportNode) AskForProof(node string)                    { t.n.voters.AskForProof(node) }
func (t transportNode) AskAgain(node string)                       { t.n.voters.AskAgain(node, t.n.cfg.Timeouts.Heartbeat) }
func (t transportNode) CutOff(from standing.Sender, reason string) { t.n.cutOff(from, reason) }
func (t transportNode) Fence(err error)                            { t.n.life.Fence(err) }

// raftApply forwards the Committer's Apply calls to Raft, which is created after the
// Committer.
type raftApply struct{ n *Node }

// Apply implements commit.Raft.
func (a raftApply) Apply(cmd []byte, timeout time.Duration) raft.ApplyFuture {
	f := a.n.raft.Load().Apply(cmd, timeout) // Raft is set: the Committer opens only on a leader
	a.n.raftEnd.Bind(f)
	return f
}
