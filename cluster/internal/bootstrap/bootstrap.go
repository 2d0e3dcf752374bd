package bootstrap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
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
	// Client returns the client of another node's service, which connects at once even if
	// the last attempt has only just failed.
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
			return fmt.Errorf("%w (%s says that there was Raft state)", ErrWipedDisk, j.cfg.Joined)
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
// never bootstraps a cluster waits until it is contacted.
func (j *Joiner) found(ctx context.Context) error {
	switch j.cfg.Expect {
	case 0:
		return j.cfg.StartRaft()
	case 1:
		// The node bootstraps alone, but no other listed node may know it already.
		if err := j.write(raft.Server{ID: raft.ServerID(j.cfg.Node), Address: raft.ServerAddress(j.cfg.Advertise)}); err != nil {
			return err
		}
		return j.cfg.StartRaft()
	}
	decided := make(chan error, 1)
	j.cfg.Go(func() { decided <- j.agree(ctx) })
	patience := time.NewTimer(j.cfg.Patience)
	defer patience.Stop()
	select {
	case err := <-decided:
		return err
	case <-patience.C:
	}
	j.cfg.Log.Info("waiting for the other first nodes", "expect", j.cfg.Expect)
	j.cfg.Go(func() {
		if err := <-decided; err != nil && !errors.Is(err, commit.ErrShutdown) {
			j.cfg.Fault(err)
		}
	})
	return nil
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
