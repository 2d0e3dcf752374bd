package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/diskspace"
	"github.com/conclavekms/conclave/cluster/gossip"
	"github.com/conclavekms/conclave/cluster/internal/authority"
	"github.com/conclavekms/conclave/cluster/internal/clockguard"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/transport/admission"
)

// AuditLog is the node's copy of the audit log. *auditlog.Log is one.
type AuditLog interface {
	fsm.AuditLog
	// Missing is the gap [from, to) that other nodes have to fill.
	Missing() (from, to uint64, ok bool)
	// Fill takes entries for the gap, in order from its start, and refuses what
	// does not fit the state's roots.
	Fill([]auditlog.Entry) error
	// Read returns entries from an index on, within the limits.
	Read(from uint64, max, maxBytes int) ([]auditlog.Entry, error)
	// Size is the number of entries that can be read.
	Size() uint64
	// OnNoSpace has writes wait where there is no space.
	OnNoSpace(auditlog.NoSpace)
}

// Authority is what only an unsealed node of an initialised cluster has. A node without
// it keeps copies and votes, and nothing that it says changes the state.
type Authority = authority.Authority

// SetAuthority registers this node's authority, once, before it takes part.
func (n *Node) SetAuthority(a Authority) { n.auth.Set(a) }

// Clock is the node's wall clock.
type Clock = clockguard.Clock

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

// Config describes a node. Required are NodeID, DataDir, Identity, Listen (or
// Listener) and Audit; everything else has a default.
type Config struct {
	// NodeID names the node in the cluster for ever: 1 to 63 of a-z, 0-9, '-'
	// and '.'. The node's certificate carries the same id.
	NodeID string
	// DataDir holds the node's identity file, and the Raft log and snapshots in its
	// [GroupDir]. It is
	// created with mode 0700.
	DataDir string
	// Identity is the node's certificate, its key and the cluster's CA.
	Identity *pki.Identity
	// Listen is the address of the peer port, host:port. Raft and the peer
	// service share it.
	Listen string
	// Listener replaces Listen where the port is already open. The node closes
	// it.
	Listener net.Listener
	// Budget is what the peer port and gossip take their connections from; by
	// default one of their own.
	Budget *admission.Budget
	// Advertise is where other nodes reach the peer port; the address of the
	// listener by default. It goes into the Raft configuration at bootstrap.
	Advertise string
	// Peers are the peer addresses of the first nodes by id, this one included.
	// All first nodes must be given the same.
	Peers map[string]string
	// BootstrapExpect is how many first nodes form the cluster together. 1
	// starts a cluster of this node alone; 0 never forms a cluster.
	BootstrapExpect int

	// AWSAddress and GRPCAddress are where clients reach this node. They are
	// shown to clients and decide nothing.
	AWSAddress, GRPCAddress string
	// Release is the version of the binary, for people.
	Release string

	// Gossip is the address book that nodes spread among themselves.
	Gossip gossip.Config

	// Audit is the node's audit log; its owner closes it after Shutdown.
	Audit AuditLog

	// Timeouts of the cluster; zero values take the defaults for a local network.
	Timeouts Timeouts

	// SnapshotBytes of new Raft log trigger a snapshot; 256 MiB by default.
	SnapshotBytes int64
	// SnapshotEntries do the same by count; 8,192 by default.
	SnapshotEntries uint64
	// TrailingLogs are kept after a snapshot for followers that lag; 10,240 by
	// default. Fewer invite hashicorp/raft issue 697 and are for tests.
	TrailingLogs uint64

	// MaxQueuedRecords and MaxQueuedBytes bound what waits on this node to be
	// submitted, and MaxMergeBytes what waits on the leader; 8,192 records, 16
	// MiB and 32 MiB by default. Beyond, callers get ErrOverloaded.
	MaxQueuedRecords int
	MaxQueuedBytes   int64
	MaxMergeBytes    int64

	// Space says how little room on the disk makes the node do what.
	Space diskspace.Marks

	// Clock is the wall clock behind cluster time; the system's by default.
	// Durations are always measured with the monotonic clock.
	Clock Clock
	// Logger gets the node's log; slog's default by default.
	Logger *slog.Logger
	// Registerer takes the node's metrics; nil for none.
	Registerer prometheus.Registerer

	// OnFault is called once, when the node cannot go on: it has already left
	// the network. The process should exit with an error.
	OnFault func(error)
	// OnApply is called after each published state, in order, on Raft's apply
	// goroutine. It must not block.
	OnApply func(*fsm.State, fsm.Events)

	// OnForgery is told of a node that sent what only an unsealed node can, without
	// being one, at most once a minute for each. It must not block.
	OnForgery func(node, reason string)
	// Hooks break things for tests.
	Hooks Hooks
}

// Timeouts are the cluster's timings.
type Timeouts struct {
	// Heartbeat without which a follower calls an election, Election until a
	// candidate tries again, Lease until a leader that reaches no majority steps
	// down: 500, 500 and 250 ms by default; 3 to 5 times that between sites.
	// Lease may be at most half of Heartbeat.
	Heartbeat, Election, Lease time.Duration
	// Commit is how long a leader waits before it tells followers of a commit
	// when nothing else is sent; 20 ms by default.
	Commit time.Duration
	// Snapshot is how often the node looks whether a snapshot is due by count;
	// 60 s by default.
	Snapshot time.Duration
	// LeaderWait is how long a proposal waits for a leader before ErrNoLeader; 3
	// s by default.
	LeaderWait time.Duration
	// Resubmit is how long an answer may take before the batch is submitted
	// again; 3 s by default.
	Resubmit time.Duration
	// Outcome is how long a submitted proposal waits for its verdict before
	// ErrOutcomeUnknown; 30 s by default.
	Outcome time.Duration
	// Release is how long after the commit of its record an answer may be given,
	// see fsm.Decision.Late; 2 s by default.
	Release time.Duration
	// ClockTick is how long cluster time may stand still on an idle cluster; 30 s
	// by default.
	ClockTick time.Duration
	// DiskYield is how long a write may take before another node, whose disk
	// answers, is made to lead; 750 ms by default. A leader whose disk is much slower
	// than another's hands over after a second, or after this if it is longer.
	DiskYield time.Duration
	// Disk is how long a write may take before the node gives up on its disk and
	// ends; a minute by default. Until then it serves on as a follower. Both count
	// only time in which this process ran.
	Disk time.Duration
	// Hello is how long a starting node waits for answers before it starts Raft
	// without them; 1 s by default.
	Hello time.Duration
}

// Hooks let tests make faults. Nil ones do nothing.
type Hooks struct {
	// Store breaks the Raft log store.
	Store raftlog.Hooks
	// StatDisk replaces the question how much room the disk has.
	StatDisk func() (diskspace.Room, error)
	// DropAnswer is asked on the leader for each answer to a node's batch, its
	// own included; true loses the answer.
	DropAnswer func(node string, answer *clusterpb.SubmitResponse) bool
	// Dial replaces the TCP dialer to other nodes.
	Dial func(ctx context.Context, node, addr string) (net.Conn, error)
	// BeforeBootstrap runs before the first Raft state is written; an error
	// stops the start there.
	BeforeBootstrap func() error
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// withDefaults is c with its defaults filled in.
func (c Config) withDefaults() Config {
	t := &c.Timeouts
	t.Heartbeat = or(t.Heartbeat, 500*time.Millisecond)
	t.Election = or(t.Election, t.Heartbeat)
	t.Lease = or(t.Lease, t.Heartbeat/2)
	t.Commit = or(t.Commit, 20*time.Millisecond)
	t.Snapshot = or(t.Snapshot, time.Minute)
	t.LeaderWait = or(t.LeaderWait, 3*time.Second)
	t.Resubmit = or(t.Resubmit, 3*time.Second)
	t.Outcome = or(t.Outcome, 30*time.Second)
	t.Release = or(t.Release, 2*time.Second)
	t.ClockTick = or(t.ClockTick, 30*time.Second)
	t.DiskYield = or(t.DiskYield, 750*time.Millisecond)
	t.Disk = or(t.Disk, time.Minute)
	t.Hello = or(t.Hello, time.Second)
	c.SnapshotBytes = or(c.SnapshotBytes, 256<<20)
	c.SnapshotEntries = or(c.SnapshotEntries, 8192)
	c.TrailingLogs = or(c.TrailingLogs, 10240)
	c.MaxQueuedRecords = or(c.MaxQueuedRecords, 8192)
	c.MaxQueuedBytes = or(c.MaxQueuedBytes, 16<<20)
	c.MaxMergeBytes = or(c.MaxMergeBytes, 32<<20)
	if c.Clock == nil {
		c.Clock = systemClock{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// Validate reports everything that is wrong with c.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := pki.CheckNodeID(c.NodeID); err != nil {
		bad("%w", err)
	}
	if c.DataDir == "" {
		bad("no data directory")
	}
	if c.Audit == nil {
		bad("no audit log")
	}
	switch {
	case c.Identity == nil:
		bad("no TLS identity")
	case c.Identity.NodeID() != c.NodeID:
		bad("certificate is of node %q, not %q", c.Identity.NodeID(), c.NodeID)
	}
	if c.Listen == "" && c.Listener == nil {
		bad("no listen address")
	}
	seen := make(map[string]string)
	for _, id := range slices.Sorted(maps.Keys(c.Peers)) {
		addr := c.Peers[id]
		if err := pki.CheckNodeID(id); err != nil {
			bad("peers: %w", err)
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			bad("peer %s: %w", id, err)
		}
		if other, dup := seen[addr]; dup {
			bad("peers %s and %s have the same address %s", other, id, addr)
		}
		seen[addr] = id
	}
	if c.BootstrapExpect < 0 {
		bad("bootstrap-expect is negative")
	}
	if c.BootstrapExpect > 1 {
		if len(c.Peers) != c.BootstrapExpect {
			bad("%d peers are given, and %d nodes are to form the cluster", len(c.Peers), c.BootstrapExpect)
		}
		if _, ok := c.Peers[c.NodeID]; !ok {
			bad("peers do not contain this node, %s", c.NodeID)
		}
	}
	d := c.withDefaults()
	t := d.Timeouts
	for _, v := range []time.Duration{t.Heartbeat, t.Election, t.Lease, t.Commit, t.Snapshot, t.LeaderWait, t.Resubmit, t.Outcome, t.Release, t.ClockTick, t.DiskYield, t.Disk, t.Hello} {
		if v < 0 {
			bad("a timeout is negative")
			break
		}
	}
	if t.Election < t.Heartbeat {
		bad("election timeout %v is shorter than the heartbeat timeout %v", t.Election, t.Heartbeat)
	}
	if t.Lease > t.Heartbeat/2 {
		bad("leader lease %v is longer than half of the heartbeat timeout %v", t.Lease, t.Heartbeat)
	}
	if d.SnapshotBytes < 0 || d.MaxQueuedBytes < 0 || d.MaxMergeBytes < 0 || d.MaxQueuedRecords < 0 {
		bad("a limit is negative")
	}
	errs = append(errs, c.Space.Validate())
	errs = append(errs, c.Gossip.Validate()...)
	return errors.Join(errs...)
}
