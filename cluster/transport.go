package cluster

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// raftStream carries Raft over the peer port. Raft knows nodes by address; the
// address says which node's certificate the other end must have.
type raftStream struct {
	*subListener
	advertise string
	peers     *peers
	nodeAt    func(addr string) (string, bool)
}

// advertised is the address under which other nodes know this one.
type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

// Addr implements net.Listener.
func (s *raftStream) Addr() net.Addr { return advertised(s.advertise) }

// Dial implements raft.StreamLayer.
func (s *raftStream) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	node, ok := s.nodeAt(string(addr))
	if !ok {
		return nil, fmt.Errorf("%w: no node is known at %s", ErrUnreachable, addr)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return s.peers.connect(ctx, node, alpnRaft)
}

// raftConfig is Raft's configuration for c.
func raftConfig(c *Config) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.NodeID)
	rc.ProtocolVersion = 3
	rc.HeartbeatTimeout = c.Timeouts.Heartbeat
	rc.ElectionTimeout = c.Timeouts.Election
	rc.LeaderLeaseTimeout = c.Timeouts.Lease
	rc.CommitTimeout = c.Timeouts.Commit
	rc.MaxAppendEntries = 256
	rc.BatchApplyCh = true
	rc.ShutdownOnRemove = true
	rc.TrailingLogs = c.TrailingLogs
	rc.SnapshotInterval = c.Timeouts.Snapshot
	rc.SnapshotThreshold = c.SnapshotEntries
	rc.Logger = newRaftLogger(c.Logger, "raft")
	rc.NoLegacyTelemetry = true
	return rc
}
