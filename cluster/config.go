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
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/transport/admission"
)

// AuditLog is the node's copy of the audit log. *auditlog.Log implements it.
type AuditLog interface {
	fsm.AuditLog
	// Missing returns the gap [from, to) that other nodes have to fill.
	Missing() (from, to uint64, ok bool)
	// Fill adds entries to the gap, in order from its start. It refuses entries that do not
	// match the roots in the state.
	Fill([]auditlog.Entry) error
	// Read returns entries from an index on, within the given limits.
	Read(from uint64, max, maxBytes int) ([]auditlog.Entry, error)
	// Size returns the number of entries that can be read.
	Size() uint64
	// Scrub returns auditlog.ErrCorrupt if full segment n is damaged, and Repair replaces it by
	// the entries that fetch returns, if they are the cluster's.
	Scrub(n uint64) error
	Repair(n uint64, fetch func(from uint64) ([]auditlog.Entry, error)) error
	// OnNoSpace registers the function that a write calls when the disk is full.
	OnNoSpace(auditlog.NoSpace)
}

// Authority is what only an unsealed node of an initialised cluster has. A node without it
// stores the log and votes, but cannot change the state.
type Authority = authority.Authority

// SetAuthority registers this node's authority, once, before it takes part.
func (n *Node) SetAuthority(a Authority) { n.auth.Set(a) }

// Clock is the node's wall clock.
type Clock = clockguard.Clock

type systemClock struct{}

// Now implements Clock.
func (systemClock) Now() time.Time { return time.Now() }

// Config describes a node. NodeID, DataDir, Identity, Audit, and Listen or Listener are
// required; everything else has a default.
type Config struct {
	// NodeID is the node's permanent name in the cluster: 1 to 63 characters out of a-z,
	// 0-9, '-' and '.'. The node's certificate carries the same id.
	NodeID string
	// DataDir holds the node's identity file, and the Raft log and snapshots in its
	// [GroupDir]. It is created with mode 0700.
	DataDir string
	// ReturnKeyFile is the path of the file with the key by which this node, after a restart,
	// proves to its peers that it is the one that they know; see package
	// internal/peerunseal. The default is a file in DataDir.
	ReturnKeyFile string
	// Identity is the node's certificate, its key and the cluster's CA.
	Identity *pki.Identity
	// Listen is the address of the peer port, host:port. Raft and the peer
	// service share it.
	Listen string
	// Listener replaces Listen if the port is already open. The node closes it.
	Listener net.Listener
	// Budget is the admission budget of the peer port's and gossip's connections. By
	// default the node has one of its own.
	Budget *admission.Budget
	// Advertise is the address at which other nodes reach the peer port. It defaults to the
	// listener's address, and is written to the Raft configuration at bootstrap.
	Advertise string
	// Peers are the peer addresses of the first nodes by id, this node's included. All
	// first nodes must be configured with the same set.
	Peers map[string]string
	// BootstrapExpect is the number of first nodes that bootstrap the cluster together.
	// With 1 the node forms a cluster on its own; with 0 it never bootstraps one.
	BootstrapExpect int

	// AWSAddress and GRPCAddress are where clients reach this node. They are shown to
	// clients and have no other effect.
	AWSAddress, GRPCAddress string
	// Release is the version of the binary, for display.
	Release string

	// Gossip configures the address book that the nodes exchange by gossip.
	Gossip gossip.Config

	// Audit is the node's audit log. Its owner closes it after Shutdown.
	Audit AuditLog

	// Timeouts are the cluster's timings. Zero values take the defaults, which suit a local
	// network.
	Timeouts Timeouts

	// SnapshotBytes is how much new Raft log triggers a snapshot; 256 MiB by default.
	SnapshotBytes int64
	// SnapshotEntries is how many new log entries trigger a snapshot; 8,192 by default.
	SnapshotEntries uint64
	// TrailingLogs is the number of entries kept after a snapshot for followers that lag;
	// 10,240 by default. A lower value risks hashicorp/raft issue 697 and is for tests
	// only.
	TrailingLogs uint64

	// MaxQueuedRecords and MaxQueuedBytes bound what waits on this node to be submitted,
	// and MaxMergeBytes bounds what waits on the leader. The defaults are 8,192 records, 16
	// MiB and 32 MiB. Beyond them callers get ErrOverloaded.
	MaxQueuedRecords int
	MaxQueuedBytes   int64
	MaxMergeBytes    int64

	// Space sets the amounts of free disk space below which the node takes each measure.
	Space diskspace.Marks

	// Clock is the wall clock behind cluster time; the system's by default. Durations are
	// always measured with the monotonic clock.
	Clock Clock
	// Logger is the logger of the node; slog's default by default.
	Logger *slog.Logger
	// Registerer registers the node's metrics. If it is nil, they are not registered.
	Registerer prometheus.Registerer

	// OnFault is called once, when the node cannot go on. By then it has left the network,
	// and the process should exit with an error.
	OnFault func(error)
	// OnApply is called after each published state, in order, on Raft's apply
	// goroutine. It must not block.
	OnApply func(*fsm.State, fsm.Events)

	// OnForgery is called when a node that is not unsealed has sent what only an unsealed
	// one can, at most once a minute for each node. It must not block.
	OnForgery func(node, reason string)
	// Hooks inject errors in tests.
	Hooks Hooks
}

// Timeouts are the cluster's timings.
type Timeouts struct {
	// Heartbeat is how long a follower waits for the leader before it calls an election,
	// Election how long a candidate waits before it tries again, and Lease how long a
	// leader stays one without reaching a majority. The defaults are 500, 500 and 250 ms;
	// use 3 to 5 times as much between sites. Lease may be at most half of Heartbeat.
	Heartbeat, Election, Lease time.Duration
	// Commit is how long a leader waits before it tells followers of a commit if it has
	// nothing else to send; 20 ms by default.
	Commit time.Duration
	// Snapshot is how often the node checks whether the number of entries calls for a
	// snapshot; 60 s by default.
	Snapshot time.Duration
	// LeaderWait is how long a proposal waits for a leader before it fails with
	// ErrNoLeader; 3 s by default.
	LeaderWait time.Duration
	// Resubmit is how long a batch may wait for its answer before it is submitted again; 3
	// s by default.
	Resubmit time.Duration
	// Outcome is how long a submitted proposal waits for its verdict before it fails with
	// ErrOutcomeUnknown; 30 s by default.
	Outcome time.Duration
	// Release is how long after the commit of its record an answer may be released; see
	// fsm.Decision.Late. 2 s by default.
	Release time.Duration
	// ClockTick is how long cluster time may stand still on an idle cluster; 30 s by
	// default.
	ClockTick time.Duration
	// DiskYield is how long a write may take before the leadership is moved to a node whose
	// disk answers; 750 ms by default. A leader whose disk is much slower than another's
	// hands over after one second, or after DiskYield if that is longer.
	DiskYield time.Duration
	// Disk is how long a write may take before the node gives up on its disk and stops; one
	// minute by default. Until then it keeps serving as a follower. DiskYield and Disk
	// count only the time during which this process ran.
	Disk time.Duration
	// Hello is how long a starting node waits for answers of other nodes before it starts
	// Raft without them; 1 s by default.
	Hello time.Duration
}

// Hooks inject errors in tests. A nil hook does nothing.
type Hooks struct {
	// Store makes operations of the Raft log store fail or hang.
	Store raftlog.Hooks
	// StatDisk replaces the system call that reports the free disk space.
	StatDisk func() (diskspace.Room, error)
	// DropAnswer is called on the leader for each answer to a batch, including those to its
	// own Proposer. If it returns true the answer is dropped.
	DropAnswer func(node string, answer *clusterpb.SubmitResponse) bool
	// Dial replaces the TCP dialer to other nodes.
	Dial func(ctx context.Context, node, addr string) (net.Conn, error)
	// Known are the schemas that the node reads, as if it were of another release; those of
	// this release if it is zero.
	Known level.Range
	// BeforeBootstrap runs before the first Raft state is written. If it returns an error,
	// the start fails there.
	BeforeBootstrap func() error
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// withDefaults returns c with zero fields set to their defaults.
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
	c.Hooks.Known = or(c.Hooks.Known, level.Known)
	if c.Clock == nil {
		c.Clock = systemClock{}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// Validate returns all errors in c, joined.
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
