package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/origin"
)

// Config configures a Joiner. From the first call of Join or Answer on, the functions may
// be called from any goroutine.
type Config struct {
	Node        string            // id of this node
	Advertise   string            // where other nodes reach its peer port
	Peers       map[string]string // the peer addresses of the first nodes, this one included
	Expect      int               // how many first nodes bootstrap the cluster; see cluster.Config
	Release     string            // for display
	Known       level.Range       // the schemas that it reads
	Incarnation uint64            // of this start
	// Joined is the path of the file that records that the node had Raft state; empty if it
	// does not.
	Joined string
	Disk   *Disk
	// Patience is how long a starting node waits for others before it continues without
	// them.
	Patience time.Duration
	// Before, if not nil, runs before the first Raft state is written. If it returns an
	// error, the start fails there.
	Before func() error
	Log    *slog.Logger

	// Others returns the other nodes in the Raft configuration, or the other first nodes
	// before there is one.
	Others func() []string
	// Configuration returns the newest Raft configuration and its index if it is known to be
	// committed; 0 otherwise.
	Configuration func() (index uint64, c raft.Configuration)
	// Learn prepares to ask another node for its configuration. The function that it returns
	// records the answer. If that is not proven, it is no more than a hint.
	Learn func() func(index uint64, c raft.Configuration, proven bool)
	// Lineage asks another node for its lineage, and SetLineage takes it over for good.
	Lineage    func(ctx context.Context, node string) (string, error)
	SetLineage func(lineage string) error
	// Client returns the client of another node's service.
	Client func(node string) (clusterpb.PeerClient, error)
	// State returns the newest applied state, and Watermark the watermark of a node in it.
	State     func() *fsm.State
	Watermark func(node string) (uint64, bool)
	// Unsealed reports whether this node has the origin key, Sign signs with it, and
	// Barrier waits until everything that was committed has been applied.
	Unsealed func() bool
	Sign     origin.Sign
	Barrier  func(context.Context) error

	// StartRaft starts Raft from what is on the disk.
	StartRaft func() error
	// Go runs a function until the node is shut down.
	Go func(func())
	// Fault stops the node because of an error that is found after Join has returned.
	Fault func(error)
}

// Joiner brings one node into its cluster, and answers other nodes that start.
type Joiner struct {
	cfg   Config
	known bool // this incarnation is registered; used on the apply goroutine
}

// New returns a Joiner. Nothing happens before Join is called.
func New(cfg Config) *Joiner { return &Joiner{cfg: cfg} }

// Join brings the node into the cluster. It returns when Raft runs, when the node must not
// start, or after Config.Patience. In the last case it continues in the background until
// ctx ends.
func (j *Joiner) Join(ctx context.Context) error {
	has, err := j.cfg.Disk.hasState()
	if err != nil {
		return err
	}
	if !has {
		if j.cfg.Joined != "" {
			return fmt.Errorf("%w (%s says that there was Raft state). %s", ErrWipedDisk, j.cfg.Joined, j.mend())
		}
		return j.found(ctx)
	}
	return j.rejoin(ctx)
}

// rejoin starts a node that has Raft state. It waits for objections first, but only for a
// limited time, because all nodes of a cluster may be starting at once.
func (j *Joiner) rejoin(ctx context.Context) error {
	pending := len(j.greeted())
	results := j.greet(ctx, func(*clusterpb.HelloResponse) bool { return false })
	var said objections
	patience := time.NewTimer(j.cfg.Patience)
	defer patience.Stop()
	for waiting := pending > 0; waiting; {
		select {
		case h, ok := <-results:
			if !ok {
				waiting = false
				break
			}
			said.hear(h, j.object(h, false))
			if said.final() != nil {
				return said.final()
			}
			// After one answer, the other nodes get a little longer. If there is an
			// objection that could be a thief's, they get long enough for an unsealed node
			// to answer.
			patience.Reset(j.cfg.Patience / 4)
			if said.open() != nil {
				patience.Reset(objectionHello * j.cfg.Patience)
			}
		case <-patience.C:
			waiting = false
		}
	}
	if err := said.open(); err != nil {
		return err
	}
	j.cfg.Go(func() {
		for h := range results {
			said.hear(h, j.object(h, false))
			if err := cmp.Or(said.final(), said.open()); err != nil {
				j.cfg.Fault(err)
			}
		}
	})
	return j.cfg.StartRaft()
}

// found waits until the first nodes agree and then writes the first Raft state. A node that
// never bootstraps a cluster waits until it is a member of one.
func (j *Joiner) found(ctx context.Context) error {
	switch j.cfg.Expect {
	case 0:
		return j.inBackground(func() error { return j.wait(ctx) }, func() {
			j.cfg.Log.Warn("waiting to be added to the cluster: an operator has to run conclave cluster join", "node", j.cfg.Node, "peer", j.cfg.Advertise)
		})
	case 1:
		// The node bootstraps alone, but no other listed node may know it already.
		if err := j.write(raft.Server{ID: raft.ServerID(j.cfg.Node), Address: raft.ServerAddress(j.cfg.Advertise)}); err != nil {
			return err
		}
		return j.cfg.StartRaft()
	}
	return j.inBackground(func() error { return j.agree(ctx) }, func() {
		j.cfg.Log.Info("waiting for the other first nodes", "expect", j.cfg.Expect)
	})
}

// inBackground runs f for at most Config.Patience, and after that in the background. Then it
// calls waiting.
func (j *Joiner) inBackground(f func() error, waiting func()) error {
	decided := make(chan error, 1)
	j.cfg.Go(func() { decided <- f() })
	patience := time.NewTimer(j.cfg.Patience)
	defer patience.Stop()
	select {
	case err := <-decided:
		return err
	case <-patience.C:
	}
	waiting()
	j.cfg.Go(func() {
		if err := <-decided; err != nil && !errors.Is(err, commit.ErrShutdown) {
			j.cfg.Fault(err)
		}
	})
	return nil
}

// wait waits until the cluster has this node as a member: before that, its nodes refuse the
// connections of this one. A majority of the nodes that the operator named must not know this
// node from earlier: its disk is empty, and it may have been wiped. Every majority of the
// voters that a node was registered with has one of them, if they are the voters.
func (j *Joiner) wait(ctx context.Context) error {
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := j.takeLineage(asking); err != nil {
		return err
	}
	named := len(j.greeted())
	answered := 0
	for h := range j.greet(asking, func(*clusterpb.HelloResponse) bool { return false }) {
		if err := j.object(h, true); err != nil {
			return err
		}
		if answered++; answered > named/2 {
			break
		}
	}
	if ctx.Err() != nil {
		return commit.ErrShutdown
	}
	return j.cfg.StartRaft()
}

// takeLineage waits until a majority of the nodes that the operator named tell the same
// lineage, and takes it over. It is that of the backup that the cluster was restored from.
func (j *Joiner) takeLineage(ctx context.Context) error {
	named := j.greeted()
	said := make(map[string]string) // by node
	for wait := helloAgain; ; wait = min(2*wait, maxHelloAgain) {
		var mu sync.Mutex
		var all sync.WaitGroup
		// Those who have said it are not asked again.
		for _, node := range slices.DeleteFunc(slices.Clone(named), func(node string) bool { _, ok := said[node]; return ok }) {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, askTimeout)
				defer cancel()
				if l, err := j.cfg.Lineage(ctx, node); err == nil {
					mu.Lock()
					defer mu.Unlock()
					said[node] = l
				}
			})
		}
		all.Wait()
		votes := make(map[string]int)
		for _, l := range said {
			if votes[l]++; votes[l] > len(named)/2 {
				return j.cfg.SetLineage(l)
			}
		}
		if len(said) == len(named) {
			return fmt.Errorf("the members that are named to join are of different clusters, which were restored from backups: %v", said)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return commit.ErrShutdown
		}
	}
}

// agree waits for an answer from every first node. All must have the same set, or two
// clusters could form. A peer that already has Raft state does not block the bootstrap: it
// may have completed one that was interrupted by a crash here. If neither its state nor its
// log knows this node, this disk was not wiped: any majority that registered this node
// contains one of the others.
func (j *Joiner) agree(ctx context.Context) error {
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	set := j.firstNodes()
	answers := make(map[string]bool)
	warned := make(map[string]bool)
	same := func(r *clusterpb.HelloResponse) bool { return slices.Equal(r.Bootstrap, set) }
	for h := range j.greet(asking, func(r *clusterpb.HelloResponse) bool { return !same(r) }) {
		if err := j.object(h, true); err != nil {
			return err
		}
		if !same(h.r) {
			if !warned[h.node] {
				j.cfg.Log.Error("another first node is configured with a different set", "peer", h.node, "theirs", h.r.Bootstrap, "ours", set)
			}
			warned[h.node] = true
			continue
		}
		if answers[h.node] = true; len(answers) == j.cfg.Expect-1 {
			break
		}
	}
	if ctx.Err() != nil {
		return commit.ErrShutdown
	}
	var servers []raft.Server
	for _, id := range slices.Sorted(maps.Keys(j.cfg.Peers)) {
		servers = append(servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(j.cfg.Peers[id])})
	}
	if err := j.write(servers...); err != nil {
		return err
	}
	return j.cfg.StartRaft()
}

// write writes the first Raft state.
func (j *Joiner) write(servers ...raft.Server) error {
	if j.cfg.Before != nil {
		if err := j.cfg.Before(); err != nil {
			return err
		}
	}
	if err := j.cfg.Disk.found(servers); err != nil {
		return err
	}
	j.cfg.Log.Info("bootstrapped the cluster", "servers", len(servers))
	return nil
}
