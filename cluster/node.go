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
	"github.com/conclavekms/conclave/cluster/internal/bootstrap"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/peers"
	"github.com/conclavekms/conclave/cluster/internal/raftlog"
	"github.com/conclavekms/conclave/cluster/internal/raftlogger"
	"github.com/conclavekms/conclave/cluster/internal/rafttransport"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
	"github.com/conclavekms/conclave/transport/admission"
)

// Node is one node of the cluster. Its methods are safe for concurrent use.
type Node struct {
	cfg       Config
	log       *slog.Logger
	advertise string
	metrics   *metrics

	dir       *dataDir
	store     *raftlog.Store
	snapshots raft.SnapshotStore
	onDisk    *bootstrap.Disk
	boot      *bootstrap.Joiner

	machine   *machine
	applied   applied
	guard     *clockGuard
	committer *commit.Committer
	proposer  *commit.Proposer
	barriers  barriers
	port      *peerport.Port
	peers     *peers.Clients
	server    *grpc.Server
	trans     *rafttransport.Transport
	gossip    *gossip.Book
	raft      atomic.Pointer[raft.Raft]
	notify    chan bool // Raft's leadership changes

	executor  atomic.Pointer[func(context.Context, string, []byte) ([]byte, error)]
	leadCheck atomic.Pointer[func() bool]
	authority atomic.Pointer[Authority]
	cutOffs   standing.CutOffs
	standings *standing.Standings
	onLeader  leaderFuncs
	contacts  contacts
	transfer  chan struct{}  // held by the one transfer under way
	gap       chan struct{}  // an audit gap may have opened
	installs  map[uint64]int // by the apply goroutine
	// refusing is since when Raft refuses entries because of a transfer, and
	// refusingFrom the same by the pulse; like slow, by the leader's goroutine.
	refusing     time.Time
	refusingFrom time.Duration
	slow         slowness
	named        atomic.Pointer[knownLeader]
	space        *diskspace.Tracker
	noGrowth     atomic.Bool // what this node, as leader, tells the others
	// readTerm is the term in which this node leads with a state that has all that
	// was committed before; 0 without.
	readTerm atomic.Uint64
	// proposedCheck is the newest state hash that was proposed, by the Committer.
	proposedCheck uint64

	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup
	opened   chan struct{}
	starting sync.Mutex // guards stopping
	stopping bool
	draining atomic.Bool
	faulted  atomic.Pointer[nodeFault]
	faultOne sync.Once
	shutdown sync.Once
	ended    error
}

// nodeFault is why the node left the cluster.
type nodeFault struct{ err error }

// Open starts a node. It returns once the disk was checked and other nodes had
// the chance to object to it; forming or finding the cluster goes on after that.
// Shutdown must be called on the node that it returns.
func Open(cfg Config) (*Node, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("cluster configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	n := &Node{
		cfg: cfg, log: cfg.Logger, metrics: newMetrics(),
		notify: make(chan bool, 64), transfer: make(chan struct{}, 1), gap: make(chan struct{}, 1),
		installs: make(map[uint64]int), opened: make(chan struct{}),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.guard = &clockGuard{clock: cfg.Clock, self: cfg.NodeID}
	n.barriers.run = n.runBarrier
	n.standings = standing.New(cfg.Timeouts.Heartbeat)
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
	n.space = diskspace.NewTracker(n.dir.path, n.cfg.Space, n.cfg.Hooks.StatDisk)
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

	n.machine = &machine{restored: n.restored, persisted: func(d time.Duration) { n.metrics.snapshot.Observe(d.Seconds()) }}
	n.machine.fsm = fsm.New(fsm.Config{Audit: gatedAudit{n.cfg.Audit, n.space, n.store.Meter(), n.store.Gate()}, Attest: n.attest, OnApply: n.onApply, OnFault: n.fault})
	n.peers = peers.New(peers.Config{
		ID: n.cfg.NodeID, Identity: n.cfg.Identity, Dial: n.cfg.Hooks.Dial, Addresses: n.addressesOf, Cluster: n.cluster,
		Go: n.goroutine, Forwarded: n.metrics.forwarded, Log: n.log,
	})
	n.committer = commit.NewCommitter(commit.CommitterConfig{
		Raft: raftApply{n}, Evidence: n.evidence, Registered: n.registered, Sign: n.signEntry, Initialised: n.initialised,
		StoredSince: n.store.Meter().StoredSince,
		Log:         n.log, MaxBytes: n.cfg.MaxMergeBytes, EntryRecords: n.metrics.entryRecords, Commit: n.metrics.commit,
	})
	t := n.cfg.Timeouts
	n.proposer = commit.NewProposer(commit.ProposerConfig{
		Node: n.cfg.NodeID, Incarnation: n.dir.file.Incarnation,
		Timeouts:   commit.Timeouts{Resubmit: t.Resubmit, LeaderWait: t.LeaderWait, Outcome: t.Outcome, Release: t.Release},
		MaxRecords: int64(n.cfg.MaxQueuedRecords), MaxBytes: n.cfg.MaxQueuedBytes, Resubmitted: n.metrics.resubmitted,
		Dial: n.dialLeader, Moved: n.leaderMoved, Register: n.registration, Powerless: n.powerless, MAC: n.submissionMAC,
		Watermark: func() uint64 { return n.State().Index() }, Fenced: n.fault,
	})
	n.boot = bootstrap.New(n.bootstrapConfig())
	door := n.cfg.Budget.Listener(ln, admission.Share{Face: "peer", Sixteenths: 2})
	n.port = peerport.New(door, n.cfg.Identity, n.admit, n.log, func(reason string) {
		n.metrics.refused.WithLabelValues(reason).Inc()
	}, n.peerHosts())
	n.server = peers.NewServer(peers.ServerConfig{
		CutOffs: &n.cutOffs, AttestEvery: n.cfg.Timeouts.Snapshot / 2, Dropped: n.cfg.Hooks.DropAnswer, Log: n.log,
	}, serviceNode{n})
	n.goroutine(func() { n.server.Serve(n.port.Peers) }) // ends with the listener
	if err := n.metrics.register(n.cfg.Registerer, n); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	if n.cfg.Gossip.Enable {
		n.gossip, err = gossip.Start(n.cfg.Gossip, gossip.Self{
			ID: n.cfg.NodeID, Peer: n.advertise, Known: n.isKnown,
			Budget: n.cfg.Budget, Prefer: n.port.Known, Log: n.log.With("part", "gossip"),
		})
		if err != nil {
			return fmt.Errorf("gossip: %w", err)
		}
	}
	n.goroutine(func() { n.onDisk.Survey(n.ctx) })
	n.goroutine(n.watchLeadership)
	n.goroutine(n.backfill)
	n.goroutine(n.watchLog)
	n.goroutine(n.watchDisk)
	n.goroutine(n.watchSpace)
	return n.boot.Join(n.ctx)
}

// bootstrapConfig is what the start needs of this node.
func (n *Node) bootstrapConfig() bootstrap.Config {
	c := bootstrap.Config{
		Node: n.cfg.NodeID, Advertise: n.advertise, Peers: n.cfg.Peers, Expect: n.cfg.BootstrapExpect, Release: n.cfg.Release,
		Incarnation: n.dir.file.Incarnation, Disk: n.onDisk, Patience: n.cfg.Timeouts.Hello, Before: n.cfg.Hooks.BeforeBootstrap, Log: n.log,
		Others: n.Peers, State: n.State, Watermark: n.machine.watermark, Unsealed: n.unsealed, Sign: n.sign, Barrier: n.Barrier,
		StartRaft: n.startRaft, Go: n.goroutine, Fault: n.fault,
		Client: func(node string) (clusterpb.PeerClient, error) {
			client, err := n.peers.Client(node)
			n.peers.Reset(node)
			return client, err
		},
	}
	if n.dir.hasJoined() {
		c.Joined = identityFile
	}
	return c
}

// peerHosts are where this node was told that others are.
func (n *Node) peerHosts() []string {
	var hosts []string
	for _, addr := range n.cfg.Peers {
		if host, _, err := net.SplitHostPort(addr); err == nil {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// openDisk opens the Raft log and snapshots and checks them against the identity
// file.
func (n *Node) openDisk() error {
	path := filepath.Join(GroupDir(n.dir.path), "raft")
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	var err error
	n.store, err = raftlog.Open(path, n.cfg.Timeouts.Disk, n.cfg.Hooks.Store, n.metrics.disk, n.fault)
	if err != nil {
		return err
	}
	files, err := raft.NewFileSnapshotStoreWithLogger(path, 3, raftlogger.New(n.log, "snapshot"))
	if err != nil {
		return fmt.Errorf("snapshots: %w", err)
	}
	n.snapshots = roomySnapshots{&snapshotStore{SnapshotStore: privateSnapshots{files, filepath.Join(path, "snapshots")}, state: n.State}, n.space}
	n.lookAtSpace() // before Raft stores anything
	if err := makePrivate(filepath.Join(path, "snapshots")); err != nil {
		return err
	}
	n.onDisk, err = bootstrap.Inspect(n.store, n.snapshots)
	return err
}

// startRaft starts Raft on what the disk has.
func (n *Node) startRaft() (err error) {
	n.starting.Lock()
	defer n.starting.Unlock()
	if n.stopping {
		return ErrShutdown
	}
	if f := n.faulted.Load(); f != nil {
		return f.err
	}
	if n.onDisk.LastIndex() > 0 {
		if err := n.dir.joined(); err != nil {
			return err
		}
	}
	rc := raftConfig(&n.cfg)
	rc.NotifyCh = n.notify
	n.trans = rafttransport.New(rafttransport.Config{
		ID: n.cfg.NodeID, Advertise: n.advertise, Timeout: n.cfg.Timeouts.raftTimeout(),
		Standings: n.standings, CutOffs: &n.cutOffs, Unproven: n.metrics.unproven, Log: n.log,
	}, transportNode{n})
	n.goroutine(func() { n.trans.Serve(n.port.Raft) })
	cache, err := raft.NewLogCache(512, n.store.ForRaft())
	if err != nil {
		return err
	}
	logs := n.trans.KeepLog(cache)
	var r *raft.Raft
	err = raftlog.Guard(func() (err error) { // it panics on a log that it cannot read
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
	n.goroutine(func() { n.followLeader(observed) })
	n.goroutine(n.watchStandings)
	return nil
}

// raftApply is Raft's Apply for the Committer, which exists before Raft does.
type raftApply struct{ n *Node }

func (a raftApply) Apply(cmd []byte, timeout time.Duration) raft.ApplyFuture {
	return a.n.raft.Load().Apply(cmd, timeout) // the Committer opens only on a leader
}

// begin keeps the node from being taken apart until the caller calls
// running.Done. Calls from outside that start goroutines need it.
func (n *Node) begin() error {
	n.starting.Lock()
	defer n.starting.Unlock()
	if n.stopping {
		return ErrShutdown
	}
	n.running.Add(1)
	return nil
}

// goroutine runs f until the node is shut down.
func (n *Node) goroutine(f func()) {
	n.running.Add(1)
	go func() {
		defer n.running.Done()
		f()
	}()
}

// fault takes the node out of the cluster: it can no longer be trusted, so it
// may neither vote nor lead nor answer. It may be called from anywhere.
func (n *Node) fault(err error) {
	if n.ctx.Err() != nil && errors.Is(err, errNoRoom) {
		return // a shutdown ended the wait for room
	}
	n.faultOne.Do(func() {
		n.faulted.Store(&nodeFault{err})
		n.metrics.fenced.Set(1)
		n.log.Error("node takes itself out of the cluster", "err", err)
		// On a goroutine of its own: what called may hold locks, and whatever
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
	})
}

// Fault is why the node took itself out of the cluster, or nil.
func (n *Node) Fault() error {
	if f := n.faulted.Load(); f != nil {
		return f.err
	}
	return nil
}

// usable says whether a call may begin.
func (n *Node) usable() error {
	if f := n.faulted.Load(); f != nil {
		return fmt.Errorf("%w: %w", ErrFenced, f.err)
	}
	if n.ctx.Err() != nil || n.draining.Load() {
		return ErrShutdown
	}
	return nil
}

// Shutdown hands the leadership over if this node has it and lets what was
// submitted come to its outcome, each as long as ctx lasts and at most two
// election timeouts, and stops the node. It returns an error when something
// would not stop.
func (n *Node) Shutdown(ctx context.Context) error {
	n.shutdown.Do(func() { n.ended = n.stop(ctx) })
	return n.ended
}

func (n *Node) stop(ctx context.Context) error {
	if n.IsLeader() && n.faulted.Load() == nil && len(n.voters()) > 1 {
		tctx, cancel := context.WithTimeout(ctx, 2*n.cfg.Timeouts.Election)
		if err := n.TransferLeadership(tctx); err != nil {
			n.log.Warn("could not hand over the leadership", "err", err)
		}
		cancel()
	}
	n.draining.Store(true)
	if n.proposer != nil && n.faulted.Load() == nil {
		dctx, cancel := context.WithTimeout(ctx, 2*n.cfg.Timeouts.Election)
		n.proposer.Drain(dctx)
		cancel()
	}
	n.starting.Lock()
	n.stopping = true
	n.starting.Unlock()
	n.cancel()
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

// stopRest stops what a hanging disk can keep from stopping.
func (n *Node) stopRest() error {
	var errs []error
	if n.store != nil {
		n.store.Gate().Close() // Raft may be waiting there
	}
	if r := n.raft.Load(); r != nil {
		stopped := r.Shutdown()
		n.trans.ClosePipelines()
		errs = append(errs, stopped.Error())
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
	n.running.Wait()
	n.metrics.unregister(n.cfg.Registerer)
	if n.store != nil {
		errs = append(errs, n.store.Close())
	}
	return errors.Join(errs...)
}

// onApply runs on the apply goroutine.
func (n *Node) onApply(s *fsm.State, e fsm.Events) {
	if c, ok := n.machine.fsm.LatestCheck(); ok {
		if have := n.applied.check.Load(); have == nil || have.Index != c.Index {
			n.applied.check.Store(c)
		}
	}
	if e.Restored {
		n.lookForGap()
	}
	if err := n.boot.Compare(s, n.machine.fsm.Watermark); err != nil {
		n.fault(err)
	}
	if n.cfg.OnApply != nil {
		n.cfg.OnApply(s, e)
	}
	// Last: who waits for an index finds that caches followed.
	n.applied.advance(s.Index())
}

// restored runs on the apply goroutine after a snapshot was taken over.
func (n *Node) restored(index uint64) {
	n.lookForGap()
	if n.installs[index]++; n.installs[index] > 3 { // once is the start
		n.fault(fmt.Errorf("%w: index %d", ErrSnapshotLoop, index))
	}
}

// evidence is what the next entry says of time and of the state's hash.
func (n *Node) evidence() (*fsmpb.Clock, *fsmpb.StateCheck) {
	clock := n.guard.evidence(n.State(), n.applied.since())
	return clock, n.nextCheck()
}

// registered reports whether that incarnation is the newest of the node.
func (n *Node) registered(node string, incarnation uint64) bool {
	r, _ := n.State().Node(node)
	return r != nil && r.Incarnation == incarnation
}

func (n *Node) registration() *fsmpb.RegisterNode {
	return &fsmpb.RegisterNode{
		Node: n.cfg.NodeID, Incarnation: n.dir.file.Incarnation,
		PeerAddress: n.advertise, AwsAddress: n.cfg.AWSAddress, GrpcAddress: n.cfg.GRPCAddress,
		SchemaMin: wire.SchemaMin, SchemaMax: wire.SchemaMax, Release: n.cfg.Release,
		// Applied, not stored: entries that are only stored may yet be replaced.
		Watermark: n.State().Index(),
	}
}

// dialLeader opens the Proposer's way to the leader.
func (n *Node) dialLeader(answer func(*clusterpb.SubmitResponse)) commit.Link {
	if n.ctx.Err() != nil || n.faulted.Load() != nil {
		return nil
	}
	leader, _ := n.Leader()
	switch leader {
	case "":
		return nil
	case n.cfg.NodeID:
		return n.committer.Link(leader, func(r *clusterpb.SubmitResponse) {
			if drop := n.cfg.Hooks.DropAnswer; drop == nil || !drop(leader, r) {
				answer(r)
			}
		})
	}
	link, err := n.peers.Link(n.ctx, leader, answer)
	if err != nil {
		return nil
	}
	return link
}

func (n *Node) leaderMoved(from string) bool {
	leader, _ := n.Leader()
	return leader != from
}

// State is the newest applied state.
func (n *Node) State() *fsm.State { return n.machine.fsm.Current() }

// Propose brings a record to its verdict. ctx matters until the record is
// submitted; from then on the outcome is awaited, up to Timeouts.Outcome.
//
// The errors that say nothing was submitted are ctx's, ErrNoLeader,
// ErrOverloaded, ErrFenced, ErrShutdown and ErrRecord. After ErrOutcomeUnknown
// the record may still take effect.
func (n *Node) Propose(ctx context.Context, r *fsmpb.Record) (fsm.Decision, error) {
	return n.propose(ctx, r, false)
}

func (n *Node) propose(ctx context.Context, r *fsmpb.Record, exclusive bool) (fsm.Decision, error) {
	if err := n.usable(); err != nil {
		return fsm.Decision{}, err
	}
	if n.powerless() {
		return fsm.Decision{}, fmt.Errorf("%w: %w", ErrNoLeader, ErrSealed)
	}
	return n.proposer.Propose(ctx, r, exclusive)
}

// WaitApplied returns once State().Index() is at least index, which must be of a
// command, as a Decision's is.
func (n *Node) WaitApplied(ctx context.Context, index uint64) error {
	return n.applied.wait(ctx, index, n.ctx.Done())
}

// ProposeExclusive builds a record on the newest state and proposes it while
// nothing else can change that state, so that it meets no conflict. Only the
// leader can. All other proposals of the cluster wait meanwhile: build must be
// quick.
func (n *Node) ProposeExclusive(ctx context.Context, build func(*fsm.State) (*fsmpb.Record, error)) (fsm.Decision, error) {
	if err := n.usable(); err != nil {
		return fsm.Decision{}, err
	}
	// The record goes the way of the others, which must lead to this node now.
	if n.proposer.Leader() != n.cfg.NodeID {
		if !n.IsLeader() {
			return fsm.Decision{}, ErrNotLeader
		}
		return fsm.Decision{}, ErrNoLeader
	}
	release, err := n.committer.Hold(ctx)
	if err != nil {
		return fsm.Decision{}, err
	}
	defer release()
	r, err := build(n.State())
	if err != nil {
		return fsm.Decision{}, err
	}
	return n.propose(ctx, r, true)
}
