package cluster

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
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

// raftTransport is Raft's network transport without a way to hang: when a
// follower reports a newer term, Raft stops to read the answers of the pipeline
// to it while its sender may be waiting for room in it, for ever. That would
// leak the sender and keep Raft from shutting down.
type raftTransport struct {
	*raft.NetworkTransport
	timeout time.Duration // of one RPC

	mu        sync.Mutex
	pipelines map[*pipeline]struct{}
	closed    bool
}

// AppendEntriesPipeline implements raft.Transport.
func (t *raftTransport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	p := &pipeline{AppendPipeline: inner, t: t}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		inner.Close()
		return nil, raft.ErrTransportShutdown
	}
	t.pipelines[p] = struct{}{}
	return p, nil
}

// closePipelines ends every pipeline and whoever waits in one, and opens no
// more.
func (t *raftTransport) closePipelines() {
	t.mu.Lock()
	t.closed = true
	list := slices.Collect(maps.Keys(t.pipelines))
	t.mu.Unlock()
	for _, p := range list {
		p.Close()
	}
}

type pipeline struct {
	raft.AppendPipeline
	t *raftTransport
}

// AppendEntries implements raft.AppendPipeline. It waits for the answer before
// at most, which comes, if only as an error, within the timeout.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	stuck := time.AfterFunc(2*p.t.timeout, func() { p.Close() })
	defer stuck.Stop()
	return p.AppendPipeline.AppendEntries(args, resp)
}

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.t.mu.Lock()
	delete(p.t.pipelines, p)
	p.t.mu.Unlock()
	return p.AppendPipeline.Close()
}
