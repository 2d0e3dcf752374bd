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
)

// Config is what a Joiner needs of its node. From the first call of Join or Answer on, the
// functions may be called from any goroutine.
type Config struct {
	Node        string            // this node's id
	Advertise   string            // where others reach its peer port
	Peers       map[string]string // the peer addresses of the first nodes, this one included
	Expect      int               // how many first nodes form the cluster; see cluster.Config
	Release     string            // for people
	Incarnation uint64            // of this start
	// Joined names the file that says that the node had Raft state; empty if none does.
	Joined string
	Disk   *Disk
	// Patience is how long a starting node waits for others before it goes on without.
	Patience time.Duration
	// Before runs before the first Raft state is written, and an error stops the start
	// there. Nil does nothing.
	Before func() error
	Log    *slog.Logger

	// Others are the other nodes in the Raft configuration, or the first ones before it.
	Others func() []string
	// Client is the peer service of another node, which is reached for at once even if the
	// last attempt has only just failed.
	Client func(node string) (clusterpb.PeerClient, error)
	// State is the newest applied state, and Watermark what it knows of a node's disk.
	State     func() *fsm.State
	Watermark func(node string) (uint64, bool)
	// Unsealed, Sign and Barrier are the node's own: whether it has the origin key, a
	// signature with it, and a wait for all that was committed.
	Unsealed func() bool
	Sign     fsm.Sign
	Barrier  func(context.Context) error

	// StartRaft starts Raft on what the disk has.
	StartRaft func() error
	// Go runs a function until the node is shut down.
	Go func(func())
	// Fault stops the node for what is learnt too late for Join to return it.
	Fault func(error)
}

// Joiner brings one node into its cluster, and answers others that start.
type Joiner struct {
	cfg   Config
	known bool // by the apply goroutine: this incarnation is registered
}

// New makes a Joiner; nothing happens before Join.
func New(cfg Config) *Joiner { return &Joiner{cfg: cfg} }

// Join brings the node into the cluster. It returns when Raft runs, when the node
// must not start, or after Config.Patience, in which case it goes on behind,
// until ctx ends.
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

// rejoin starts a node that has state: it listens for objections first, but a
// cluster that starts as a whole must not wait for itself.
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
			// One answer is some assurance; the others get a little longer, and as long
			// as it takes where one objects and could be a thief.
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

// found waits until the first nodes agree and then writes the first Raft state,
// or, for a node that never founds a cluster, waits to be called.
func (j *Joiner) found(ctx context.Context) error {
	switch j.cfg.Expect {
	case 0:
		return j.cfg.StartRaft()
	case 1:
		// Alone: whoever else is listed must not know this node already.
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

// agree waits for an answer of every first node. Each must have the same set, or
// two clusters could form. A peer that already has Raft state does not block the
// bootstrap: it may have completed one that crashed here. If neither its state nor its
// log knows this node, this disk was not wiped: whatever majority registered this node
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
				j.cfg.Log.Error("another first node is configured with another set", "peer", h.node, "theirs", h.r.Bootstrap, "ours", set)
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
