package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/diskspace"
	"github.com/conclavekms/conclave/cluster/gossip"
	"github.com/conclavekms/conclave/cluster/internal/authority"
	"github.com/conclavekms/conclave/cluster/internal/backfill"
	"github.com/conclavekms/conclave/cluster/internal/barrier"
	"github.com/conclavekms/conclave/cluster/internal/bootstrap"
	"github.com/conclavekms/conclave/cluster/internal/changes"
	"github.com/conclavekms/conclave/cluster/internal/clockguard"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/handover"
	"github.com/conclavekms/conclave/cluster/internal/leadership"
	"github.com/conclavekms/conclave/cluster/internal/lifecycle"
	"github.com/conclavekms/conclave/cluster/internal/membership"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/peers"
	"github.com/conclavekms/conclave/cluster/internal/peerunseal"
	"github.com/conclavekms/conclave/cluster/internal/raftend"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/cluster/internal/raftlogger"
	"github.com/conclavekms/conclave/cluster/internal/rafttransport"
	"github.com/conclavekms/conclave/cluster/internal/room"
	"github.com/conclavekms/conclave/cluster/internal/scrub"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/cluster/internal/voters"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/transport/admission"
)

// Node is one node of the cluster. Its methods are safe for concurrent use. It only
// connects its parts, which do the work.
type Node struct {
	cfg       Config
	log       *slog.Logger
	advertise string
	metrics   *metrics

	// The node's lifetime and the cluster's members.
	life     *lifecycle.Life
	opened   chan struct{}
	shutdown sync.Once
	ended    error
	members  *membership.Members
	gossip   *gossip.Book

	// The disk and the start of the node from it.
	dir       *dataDir
	store     *raftlog.Store
	snapshots raft.SnapshotStore
	latest    latestSnapshot
	space     *room.Keeper
	onDisk    *bootstrap.Disk
	boot      *bootstrap.Joiner

	// The other nodes and what this node knows about them.
	auth      *authority.Holder
	port      *peerport.Port
	peers     *peers.Clients
	server    *grpc.Server
	executor  atomic.Pointer[func(context.Context, string, []byte) ([]byte, error)]
	cutOffs   standing.CutOffs
	standings *standing.Standings
	guard     *clockguard.Guard
	voters    *voters.Voters
	changes   *changes.Changes
	strangers chan string // see memberNode.stranger
	health    lastHealth
	// PeerUnseal is this node's part in the unsealing of others, and the way to ask them.
	PeerUnseal *peerunseal.Peers

	// Raft and the applied state.
	raft     atomic.Pointer[raft.Raft]
	raftEnd  raftend.End
	trans    *rafttransport.Transport
	machine  *machine
	applied  applied
	installs map[uint64]int // used on the apply goroutine only
	backfill *backfill.Backfill
	scrubber *scrub.Scrubber

	// The path of a record, and leadership.
	proposer  *commit.Proposer
	committer *commit.Committer
	barriers  *barrier.Barriers
	notify    chan bool // Raft reports changes of leadership here
	handover  *handover.Handover
	terms     *leadership.Terms
}

// Open starts a node. It returns once the disk has been checked and other nodes have had
// the chance to object to it. Bootstrapping or finding the cluster continues after that.
// The caller must call Shutdown on the returned node.
func Open(cfg Config) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("cluster configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	n := &Node{
		cfg: cfg, log: cfg.Logger, metrics: newMetrics(),
		notify:   make(chan bool, 64),
		installs: make(map[uint64]int), opened: make(chan struct{}), strangers: make(chan string, 16), raftEnd: make(raftend.End),
	}
	n.life = lifecycle.New(n.fenced)
	n.guard = clockguard.New(cfg.Clock, cfg.NodeID)
	n.standings = standing.New(cfg.Timeouts.Heartbeat)
	n.auth = authority.New(n.State)
	n.members = membership.New(membership.Config{Node: cfg.NodeID, Peers: cfg.Peers, Raft: n.raft.Load, Gossiped: func(node string) string {
		if n.gossip == nil {
			return ""
		}
		return n.gossip.Address(node)
	}, Registered: memberNode{n}.registered, Stranger: memberNode{n}.stranger})
	err := n.open()
	close(n.opened)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return nil, errors.Join(err, n.Shutdown(ctx))
	}
	return n, nil
}

func (n *Node) open() error {
	var err error
	if n.cfg.Budget == nil {
		if n.cfg.Budget, err = admission.New(admission.Config{}); err != nil {
			return err
		}
	}
	if n.dir, err = openDataDir(n.cfg.DataDir, n.cfg.NodeID, n.cfg.Clock.Now()); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	n.cfg.Identity.SetLineage(n.dir.file.Lineage)
	if err := n.openDisk(); err != nil {
		return err
	}
	ln := n.cfg.Listener
	if ln == nil {
		if ln, err = net.Listen("tcp", n.cfg.Listen); err != nil {
			return fmt.Errorf("peer port: %w", err)
		}
	}
	n.advertise = or(n.cfg.Advertise, ln.Addr().String())
	n.cfg.Audit.OnNoSpace(n.store.WaitForSpace)
	n.assemble()
	door := n.cfg.Budget.Listener(ln, admission.Share{Face: "peer", Sixteenths: 2})
	n.port = peerport.New(door, n.cfg.Identity, n.members.Admit, n.log, func(reason string) {
		n.metrics.refused.WithLabelValues(reason).Inc()
	}, hosts(n.cfg.Peers))
	n.server = peers.NewServer(peers.ServerConfig{
		ID: n.cfg.NodeID, CutOffs: &n.cutOffs, AttestEvery: n.cfg.Timeouts.Snapshot / 2, Dropped: n.cfg.Hooks.DropAnswer, Log: n.log,
	}, serviceNode{n})
	n.life.Go(func() { n.server.Serve(n.port.Peers) }) // returns when the listener is closed
	if err := n.metrics.register(n.cfg.Registerer, n); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	if n.cfg.Gossip.Enable {
		n.gossip, err = gossip.Start(n.cfg.Gossip, gossip.Self{
			ID: n.cfg.NodeID, Peer: n.advertise, Known: n.members.Known,
			Budget: n.cfg.Budget, Prefer: n.port.Known, Log: n.log.With("part", "gossip"),
		})
		if err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
	}
	n.life.Go(func() { n.onDisk.Survey(n.life.Context()) })
	n.life.Go(n.terms.Watch)
	n.life.Go(func() { n.backfill.Run(n.life.Context()) })
	n.life.Go(func() { n.scrubber.Run(n.life.Context()) })
	n.life.Go(n.watchLog)
	n.life.Go(memberNode{n}.watch)
	n.life.Go(memberNode{n}.meetStrangers)
	n.life.Go(memberNode{n}.watchHealth)
	n.life.Go(n.handover.WatchDisk)
	n.life.Go(func() { n.space.Watch(n.life.Context()) })
	return n.boot.Join(n.life.Context())
}

// assemble creates the parts of the node, each after those that it depends on. The
// Committer and the Proposer start here and wait for a leader; all other parts are started
// by open.
func (n *Node) assemble() {
	t := n.cfg.Timeouts
	n.machine = &machine{restored: n.restored, persisted: func(d time.Duration) { n.metrics.snapshot.Observe(d.Seconds()) }}
	n.machine.fsm = fsm.New(fsm.Config{Audit: n.space.Audit(n.cfg.Audit, n.store.Meter()), Attest: n.attest, Known: n.cfg.Hooks.Known, OnApply: n.onApply, OnFault: func(err error) {
		if n.life.Context().Err() == nil || !errors.Is(err, room.ErrNone) { // otherwise a shutdown ended the wait for space
			n.life.Fence(err)
		}
	}})
	n.peers = peers.New(peers.Config{
		ID: n.cfg.NodeID, Identity: n.cfg.Identity, Dial: n.cfg.Hooks.Dial, Addresses: n.members.Addresses, Cluster: n.auth.Cluster,
		Go: n.life.Go, Forwarded: n.metrics.forwarded, Log: n.log,
	})
	n.backfill = backfill.New(n.cfg.Audit, n.Peers, n.peers.FetchAudit, n.log)
	n.scrubber = scrub.New(scrub.Config{
		Log: n.cfg.Audit, Others: n.Peers, Fetch: n.peers.FetchAudit, Scrubbed: n.metrics.scrubbed, Repaired: n.metrics.repaired, Logger: n.log,
	})
	asks := votersNode{n}
	n.voters = voters.New(voters.Config{
		ID: n.cfg.NodeID, Heartbeat: n.cfg.Timeouts.Heartbeat, Clock: n.cfg.Clock, Guard: n.guard, Standings: n.standings,
		Peers: n.peers, Life: n.life, Log: n.log,
	}, asks)
	n.committer = commit.NewCommitter(commit.CommitterConfig{
		Level: func() uint32 { return n.State().Level() }, Known: n.cfg.Hooks.Known,
		Raft: raftApply{n}, Evidence: (&evidence{n: n}).next, Registered: n.registered, Initialised: n.auth.Initialised,
		Sign:        func(encoded []byte) ([]byte, error) { return n.machine.fsm.SignEntry(encoded, n.auth.Sign) },
		StoredSince: n.store.Meter().StoredSince,
		Log:         n.log, MaxBytes: n.cfg.MaxMergeBytes, EntryRecords: n.metrics.entryRecords, Commit: n.metrics.commit,
	})
	n.handover = handover.New(handover.Config{
		Election: t.Election, DiskYield: t.DiskYield, Raft: n.raft.Load, RaftEnd: n.raftEnd, Transport: func() handover.Transport { return n.trans },
		Members: n.members, Voters: n.voters, Committer: n.committer, Poke: func() { n.proposer.Poke() },
		Meter: n.store.Meter(), Space: n.space, Life: n.life, Transfers: n.metrics.transfers, Log: n.log,
	})
	n.proposer = commit.NewProposer(commit.ProposerConfig{
		Node: n.cfg.NodeID, Incarnation: n.dir.file.Incarnation,
		Timeouts:   commit.Timeouts{Resubmit: t.Resubmit, LeaderWait: t.LeaderWait, Outcome: t.Outcome, Release: t.Release},
		MaxRecords: int64(n.cfg.MaxQueuedRecords), MaxBytes: n.cfg.MaxQueuedBytes, Resubmitted: n.metrics.resubmitted,
		Dial: n.dialLeader, Moved: func(from string) bool { return asks.Leader() != from },
		Register: n.registration, Powerless: n.auth.Powerless, MAC: n.auth.SubmissionMAC,
		Watermark: func() uint64 { return n.State().Index() }, Level: func() uint32 { return n.State().Level() }, Fenced: n.life.Fence,
	})
	n.terms = leadership.New(leadership.Config{
		ID:       raft.ServerID(n.cfg.NodeID),
		Election: t.Election, ClockTick: t.ClockTick, Raft: n.raft.Load, RaftEnd: n.raftEnd, Notify: n.notify,
		Rounds: func() leadership.Rounds { return n.trans },
		Voters: n.voters, Guard: n.guard, Handover: n.handover, Committer: n.committer, Proposer: n.proposer,
		Weigh:   func(infos map[string]*clusterpb.ClockResponse) { n.space.Weigh(infos, len(n.members.Voters())) },
		Applied: func() uint64 { return n.State().Index() }, Idle: n.applied.since,
		Life: n.life, Changes: n.metrics.leaders, Log: n.log,
	})
	n.barriers = barrier.New(barrier.Config{
		ID: n.cfg.NodeID, LeaderWait: t.LeaderWait, Leader: asks.Leader, Here: n.terms.ReadIndex,
		There: func(ctx context.Context, leader string) (uint64, error) {
			return n.peers.ReadIndex(ctx, leader, n.auth.Powerless())
		},
		WaitApplied: n.WaitApplied, Life: n.life,
	})
	n.changes = memberNode{n}.newChanges()
	n.PeerUnseal = peerunseal.New(peerunseal.Config{
		ID: n.cfg.NodeID, Incarnation: n.dir.file.Incarnation, DiskIndex: n.onDisk.LastIndex, Heartbeat: t.Heartbeat,
		Members: n.members.All, Voters: n.members.Voters, Client: n.peers.Client, At: n.peers.At, ProvedAt: n.standings.ProvedAt,
		State: n.State, Registered: func(node string) *fsmpb.RegisterNode { r, _ := n.State().Node(node); return r },
		StateAt: n.machine.fsm.StateAt, WaitApplied: n.WaitApplied, Watermark: n.machine.watermark, Barrier: n.Barrier,
		KeyFile: or(n.cfg.ReturnKeyFile, filepath.Join(n.dir.path, returnKeyFile)), Log: n.log,
	})
	n.boot = bootstrap.New(n.bootstrapConfig())
}

// bootstrapConfig returns the configuration of the bootstrap.Joiner.
func (n *Node) bootstrapConfig() bootstrap.Config {
	c := bootstrap.Config{
		Node: n.cfg.NodeID, Advertise: n.advertise, Peers: n.cfg.Peers, Expect: n.cfg.BootstrapExpect, Release: n.cfg.Release, Known: n.cfg.Hooks.Known,
		Incarnation: n.dir.file.Incarnation, Disk: n.onDisk, Patience: n.cfg.Timeouts.Hello, Before: n.cfg.Hooks.BeforeBootstrap, Log: n.log,
		Others: n.Peers, Configuration: n.members.Committed, Learn: memberNode{n}.learn, State: n.State, Watermark: n.machine.watermark, Unsealed: n.auth.Unsealed, Sign: n.auth.Sign, Barrier: n.Barrier,
		StartRaft: func() error { return n.life.Start(n.startRaft) }, Go: n.life.Go, Fault: n.life.Fence,
		Lineage: n.peers.Lineage, SetLineage: func(lineage string) error {
			n.dir.file.Lineage = lineage
			n.cfg.Identity.SetLineage(lineage)
			return n.dir.save()
		},
		Client: n.peers.Client,
	}
	if n.dir.hasJoined() {
		c.Joined = identityFile
	}
	return c
}

// hosts returns the host parts of addresses.
func hosts(addresses map[string]string) []string {
	var list []string
	for _, addr := range addresses {
		if host, _, err := net.SplitHostPort(addr); err == nil {
			list = append(list, host)
		}
	}
	return list
}

// openDisk opens the Raft log and the snapshots and checks them against the identity file.
func (n *Node) openDisk() error {
	path := filepath.Join(GroupDir(n.dir.path), "raft")
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	var err error
	n.store, err = raftlog.Open(path, n.cfg.Timeouts.Disk, n.cfg.Hooks.Store, n.metrics.disk, n.life.Fence)
	if err != nil {
		return err
	}
	files, err := raft.NewFileSnapshotStoreWithLogger(path, 3, raftlogger.New(n.log, "snapshot"))
	if err != nil {
		return fmt.Errorf("snapshots: %w", err)
	}
	n.space = room.New(diskspace.NewTracker(n.dir.path, n.cfg.Space, n.cfg.Hooks.StatDisk), n.store.Gate(), n.log)
	note := func(m *raft.SnapshotMeta) {
		n.members.History().Note(m.ConfigurationIndex, m.Configuration)
		n.latest.note(m)
	}
	n.snapshots = n.space.Snapshots(&snapshotStore{SnapshotStore: privateSnapshots{files, filepath.Join(path, "snapshots")}, state: n.State, note: note})
	if list, err := n.snapshots.List(); err == nil && len(list) > 0 {
		note(list[0])
	}
	n.space.Look() // before Raft stores anything
	if err := makePrivate(filepath.Join(path, "snapshots")); err != nil {
		return err
	}
	n.onDisk, err = bootstrap.Inspect(n.store, n.snapshots)
	return err
}

// startRaft starts Raft from what is on the disk.
func (n *Node) startRaft() (err error) {
	if n.onDisk.LastIndex() > 0 {
		if err := n.dir.joined(); err != nil {
			return err
		}
	}
	rc := raftConfig(&n.cfg)
	rc.NotifyCh = n.notify
	n.trans = rafttransport.New(rafttransport.Config{
		ID: n.cfg.NodeID, Advertise: n.advertise, Timeout: n.cfg.Timeouts.raftTimeout(),
		Standings: n.standings, CutOffs: &n.cutOffs, History: n.members.History(), Unproven: n.metrics.unproven, Log: n.log,
	}, transportNode{n})
	n.life.Go(func() { n.trans.Serve(n.port.Raft) })
	cache, err := raft.NewLogCache(256, n.store.ForRaft())
	if err != nil {
		return err
	}
	logs := n.trans.KeepLog(cache)
	var r *raft.Raft
	err = raftlog.Guard(func() (err error) { // Raft panics on a log that it cannot read
		done := make(chan struct{})
		var p any
		go func() { // RaftStore ends the goroutine instead of returning some errors
			defer close(done)
			defer func() { p = recover() }()
			r, err = raft.NewRaft(rc, n.machine, logs, n.store.ForRaft(), n.snapshots, n.trans)
		}()
		<-done
		if p != nil {
			panic(p)
		}
		if r == nil && err == nil {
			err = n.store.Err()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("starting Raft: %w", err)
	}
	n.raft.Store(r)
	observed := make(chan raft.Observation, 16)
	r.RegisterObserver(raft.NewObserver(observed, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	n.life.Go(func() { n.terms.Follow(observed) })
	n.life.Go(n.voters.Watch)
	return nil
}

// fenced makes the node leave the network, because it can no longer be trusted.
func (n *Node) fenced(err error) {
	n.metrics.fenced.Set(1)
	n.log.Error("the node stops taking part in the cluster", "err", err)
	// This runs on its own goroutine because the caller may hold locks, and a call that
	// hangs must not keep the node in the network.
	go func() {
		<-n.opened
		if n.port != nil {
			n.port.Close()
		}
		if n.peers != nil {
			n.peers.Close()
		}
		if n.committer != nil {
			n.committer.SetOpen(false)
		}
		if n.cfg.OnFault != nil {
			n.cfg.OnFault(err)
		}
	}()
}

// Fault returns why the node took itself out of the cluster, or nil.
func (n *Node) Fault() error { return n.life.Fenced() }

// Shutdown hands the leadership over if this node has it, waits for the outcome of what was
// submitted, and stops the node. The first two end with ctx, and after two election
// timeouts at the latest. Shutdown returns an error if a part of the node did not stop.
func (n *Node) Shutdown(ctx context.Context) error {
	n.shutdown.Do(func() { n.ended = n.stop(ctx) })
	return n.ended
}

func (n *Node) stop(ctx context.Context) error {
	// If Raft is nil the start failed early, and the parts used below may not exist.
	if n.raft.Load() != nil && n.IsLeader() && n.life.Fenced() == nil && len(n.members.Voters()) > 1 {
		tctx, cancel := context.WithTimeout(ctx, 2*n.cfg.Timeouts.Election)
		if err := n.handover.Transfer(tctx, ""); err != nil {
			n.log.Warn("could not hand over the leadership", "err", err)
		}
		cancel()
	}
	n.life.Drain()
	if n.proposer != nil && n.life.Fenced() == nil {
		dctx, cancel := context.WithTimeout(ctx, 2*n.cfg.Timeouts.Election)
		n.proposer.Drain(dctx)
		cancel()
	}
	n.life.Stop()
	if n.proposer != nil {
		n.proposer.Close()
	}
	if n.committer != nil {
		mctx, cancel := context.WithTimeout(ctx, max(time.Second, 2*n.cfg.Timeouts.Election))
		n.committer.Close(mctx)
		cancel()
	}
	if n.gossip != nil {
		n.gossip.Close()
	}
	if n.server != nil {
		n.server.Stop()
	}
	done := make(chan error, 1)
	go func() { done <- n.stopRest() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("shutting down: %w", ctx.Err())
	}
}

// stopRest stops the parts that a hanging disk can keep from stopping.
func (n *Node) stopRest() error {
	var errs []error
	if n.store != nil {
		n.store.Gate().Close() // Raft may be waiting there
	}
	if r := n.raft.Load(); r != nil {
		stopped := r.Shutdown()
		n.trans.ClosePipelines()
		errs = append(errs, stopped.Error())
		close(n.raftEnd)
	}
	if n.trans != nil {
		n.trans.CloseStreams()
		errs = append(errs, n.trans.Close())
	}
	if n.port != nil {
		n.port.Close()
		n.port.Wait()
	}
	if n.peers != nil {
		n.peers.Close()
	}
	n.life.Wait()
	n.metrics.unregister(n.cfg.Registerer)
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	return errors.Join(errs...)
}

// onApply runs on the apply goroutine.
func (n *Node) onApply(s *fsm.State, e fsm.Events) {
	if c := n.machine.fsm.LatestCheck(); c != nil {
		if have := n.applied.check.Load(); have == nil || have.Index != c.Index {
			n.applied.check.Store(c)
		}
	}
	if e.Restored {
		n.backfill.Look()
	}
	if err := n.boot.Compare(s, n.machine.fsm.Watermark); err != nil {
		n.life.Fence(err)
	}
	if n.cfg.OnApply != nil {
		n.cfg.OnApply(s, e)
	}
	// This comes last: whoever waits for an index may rely on caches having been updated.
	n.applied.advance(s.Index())
}

// restored runs on the apply goroutine after a snapshot was restored.
func (n *Node) restored(index uint64) {
	n.backfill.Look()
	if n.installs[index]++; n.installs[index] > 3 { // the first may be the restore at the start
		n.life.Fence(fmt.Errorf("%w: index %d", ErrSnapshotLoop, index))
	}
}

// registered reports whether incarnation is the newest one of the node.
func (n *Node) registered(node string, incarnation uint64) bool {
	r, _ := n.State().Node(node)
	return r != nil && r.Incarnation == incarnation
}

func (n *Node) registration() *fsmpb.RegisterNode {
	return &fsmpb.RegisterNode{
		Node: n.cfg.NodeID, Incarnation: n.dir.file.Incarnation,
		PeerAddress: n.advertise, AwsAddress: n.cfg.AWSAddress, GrpcAddress: n.cfg.GRPCAddress,
		SchemaMin: n.cfg.Hooks.Known.Oldest, SchemaMax: n.cfg.Hooks.Known.Newest, Release: n.cfg.Release,
		// The applied index and not the stored one: entries that are only stored may yet be
		// replaced.
		Watermark: n.State().Index(),
	}
}
