// Package changes changes who the members of the cluster are, on the leader.
//
// It guarantees:
//
//   - One change is in progress at a time, and each is committed before the next begins.
//   - A node becomes a voter only when it is ready: unsealed, caught up, with a complete
//     audit log. Before that it is a member without a vote, which no majority waits for.
//   - No change is begun that would leave the voters without a majority that is ready.
//   - The id of a node that was a member is not used again: its disk may be gone, and with
//     it what it had acknowledged.
package changes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/raftend"
	"github.com/conclavekms/conclave/cluster/pki"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/level"
)

var (
	// ErrRefused is returned for a change that is not possible, whenever it is requested.
	ErrRefused = errors.New("the members were not changed")
	// ErrNotReady is returned for a change that would weaken the cluster at the moment.
	ErrNotReady = errors.New("not yet")
	// ErrRemoved means that this node was removed from the cluster.
	ErrRemoved = errors.New("this node was removed from the cluster: to add this machine again, start a node with a new id, an empty data directory and --join, " +
		"and run conclave cluster join")
)

const (
	// Since is the feature level from which on the members can be changed. The release that
	// knows only level 1 cuts off a leader that sends it another configuration, and would go
	// on with the members that it knows.
	Since = 2
	// askTimeout bounds how long members are waited for.
	askTimeout = time.Second
	// enqueueTimeout bounds how long a change waits for the one before it to be committed.
	enqueueTimeout = 5 * time.Second
)

// Config describes Changes. Everything is required. The functions may be called from any
// goroutine.
type Config struct {
	ID string // of this node
	// Raft returns nil before Raft has started.
	Raft    func() *raft.Raft
	RaftEnd raftend.End
	// Members knows the newest configuration.
	Members interface {
		Latest() (index uint64, c raft.Configuration)
	}
	// Here returns what this node would answer. Ask asks another node; proven is whether it
	// proved that it is unsealed. The answer is nil if there is none.
	Here func() *clusterpb.ClockResponse
	Ask  func(ctx context.Context, node string) (r *clusterpb.ClockResponse, proven bool)
	// Unsealed reports whether this node is unsealed, and Initialised whether the cluster is
	// initialised.
	Unsealed, Initialised func() bool
	// Level returns the cluster's feature level.
	Level func() uint32
	// Registered reports whether a node with that id has registered, as each does when it is
	// unsealed.
	Registered func(node string) bool
	// Tell prepares to tell a node that it was removed. The function that it returns tells it,
	// for a short time at most, with the index of the configuration without it.
	Tell func(node string) func(index uint64)
	Log  *slog.Logger
}

// Changes changes the members. Its methods are safe for concurrent use.
type Changes struct {
	cfg Config
	one chan struct{} // held by the change in progress
}

// New returns the Changes of a node.
func New(cfg Config) *Changes { return &Changes{cfg: cfg, one: make(chan struct{}, 1)} }

// Look asks all members how they are.
func (c *Changes) Look(ctx context.Context) Health {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	index, conf := c.cfg.Members.Latest()
	answers := make([]*clusterpb.ClockResponse, len(conf.Servers))
	h := Health{Index: index, Members: make([]Standing, len(conf.Servers))}
	var asked sync.WaitGroup
	for i, s := range conf.Servers {
		h.Members[i] = Standing{Node: string(s.ID), Voter: s.Suffrage == raft.Voter}
		if string(s.ID) == c.cfg.ID {
			answers[i], h.Members[i].Unsealed = c.cfg.Here(), c.cfg.Unsealed()
			continue
		}
		asked.Go(func() { answers[i], h.Members[i].Unsealed = c.cfg.Ask(ctx, string(s.ID)) })
	}
	asked.Wait() // each returns, when ctx ends at the latest
	var last, state uint64
	for i, r := range answers {
		if r != nil && h.Members[i].Unsealed {
			last, state = max(last, r.LastIndex), max(state, r.StateIndex)
		}
	}
	for i, r := range answers {
		if r == nil {
			continue
		}
		s := &h.Members[i]
		s.Answered, s.Fit, s.AuditMissing, s.Configuration = true, r.CanLead, r.AuditMissing, r.ConfigurationIndex
		s.Lag = max(behind(last, r.LastIndex), behind(state, r.StateIndex))
	}
	return h
}

func behind(newest, has uint64) uint64 { return newest - min(newest, has) }

// begin begins a change on the leader.
func (c *Changes) begin() (r *raft.Raft, end func(), err error) {
	r = c.cfg.Raft()
	switch {
	case r == nil || r.State() != raft.Leader:
		return nil, nil, commit.ErrNotLeader
	case !c.cfg.Initialised():
		return nil, nil, fmt.Errorf("%w: the cluster is not initialised", ErrRefused)
	case !c.cfg.Unsealed():
		return nil, nil, commit.ErrSealed
	}
	if err := level.Allows(c.cfg.Level(), Since); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	select {
	case c.one <- struct{}{}:
		return r, func() { <-c.one }, nil
	default:
		return nil, nil, fmt.Errorf("%w: another change of the members is in progress", ErrNotReady)
	}
}

// MayAdd returns an error if a node cannot be added: its id or address is malformed, or is that
// of a member, or its id was that of one.
func (c *Changes) MayAdd(node, address string) error {
	_, conf := c.cfg.Members.Latest()
	member, err := c.addable(conf, node, address)
	if err == nil && member {
		err = fmt.Errorf("%w: %s is a member at %s", ErrRefused, node, address)
	}
	return err
}

// addable returns an error if a node cannot be added to a configuration. member reports that it
// is in it already, at the same address.
func (c *Changes) addable(conf raft.Configuration, node, address string) (member bool, err error) {
	if err := pki.CheckNodeID(node); err != nil {
		return false, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if err := checkAddress(address); err != nil {
		return false, err
	}
	for _, s := range conf.Servers {
		switch same, at := string(s.ID) == node, string(s.Address) == address; {
		case same && at:
			return true, nil
		case same:
			return false, fmt.Errorf("%w: %s is a member at %s", ErrRefused, node, s.Address)
		case at:
			return false, fmt.Errorf("%w: %s is the address of %s", ErrRefused, address, s.ID)
		}
	}
	if c.cfg.Registered(node) {
		return false, fmt.Errorf("%w: the id %s was used before; choose one that never was", ErrRefused, node)
	}
	return false, nil
}

func checkAddress(address string) error {
	if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" || len(address) > 260 {
		return fmt.Errorf("%w: %q is not HOST:PORT", ErrRefused, address)
	}
	return nil
}

// Add adds a node without a vote. If it is a member already, at the same address, nothing
// changes.
func (c *Changes) Add(ctx context.Context, node, address string) error {
	r, end, err := c.begin()
	if err != nil {
		return err
	}
	defer end()
	index, conf := c.cfg.Members.Latest()
	if member, err := c.addable(conf, node, address); member || err != nil {
		return err
	}
	return c.commit(ctx, r.AddNonvoter(raft.ServerID(node), raft.ServerAddress(address), index, enqueueTimeout))
}

// Move changes the address of a member, which keeps its vote if it has one. If it has that
// address already, nothing changes. Until the node is reached there, the others have to be a
// majority without it, as if it were down. The leader does not move itself; see handover.
func (c *Changes) Move(ctx context.Context, node, address string) error {
	if err := checkAddress(address); err != nil {
		return err
	}
	if node == c.cfg.ID {
		return fmt.Errorf("%w: %s leads; hand the leadership over first", ErrRefused, node)
	}
	r, end, err := c.begin()
	if err != nil {
		return err
	}
	defer end()
	index, conf := c.cfg.Members.Latest()
	i := slices.IndexFunc(conf.Servers, func(s raft.Server) bool { return string(s.ID) == node })
	if i < 0 {
		return fmt.Errorf("%w: %s is not a member", ErrRefused, node)
	}
	for _, s := range conf.Servers {
		switch {
		case string(s.Address) != address:
		case string(s.ID) == node:
			return nil
		default:
			return fmt.Errorf("%w: %s is the address of %s", ErrRefused, address, s.ID)
		}
	}
	if err := c.Look(ctx).mayMove(node); err != nil {
		return err
	}
	change := r.AddNonvoter
	if conf.Servers[i].Suffrage == raft.Voter {
		change = r.AddVoter
	}
	return c.commit(ctx, change(raft.ServerID(node), raft.ServerAddress(address), index, enqueueTimeout))
}

// Promote gives a node a vote, if it is ready. If it has one already, nothing changes.
func (c *Changes) Promote(ctx context.Context, node string) error {
	r, end, err := c.begin()
	if err != nil {
		return err
	}
	defer end()
	index, conf := c.cfg.Members.Latest()
	i := slices.IndexFunc(conf.Servers, func(s raft.Server) bool { return string(s.ID) == node })
	switch {
	case i < 0:
		return fmt.Errorf("%w: %s is not a member", ErrRefused, node)
	case conf.Servers[i].Suffrage == raft.Voter:
		return nil
	}
	if err := c.Look(ctx).mayPromote(node); err != nil {
		return err
	}
	if !c.cfg.Registered(node) { // if it lost its disk, nobody could tell that it had been a voter
		return fmt.Errorf("%w: %s is not ready: it has not registered yet", ErrNotReady, node)
	}
	return c.commit(ctx, r.AddVoter(conf.Servers[i].ID, conf.Servers[i].Address, index, enqueueTimeout))
}

// Remove removes a node. If it is not a member, nothing changes. The leader does not remove
// itself; see handover.
func (c *Changes) Remove(ctx context.Context, node string) error {
	return c.remove(ctx, node, Health.mayRemove)
}

// RemoveDead is Remove for a node that does not answer, without somebody who decides it. At
// least three voters are left, and as many of them may fail as before.
func (c *Changes) RemoveDead(ctx context.Context, node string) error {
	return c.remove(ctx, node, Health.MayRemoveDead)
}

func (c *Changes) remove(ctx context.Context, node string, may func(Health, string) error) error {
	if node == c.cfg.ID {
		return fmt.Errorf("%w: %s leads; hand the leadership over first", ErrRefused, node)
	}
	r, end, err := c.begin()
	if err != nil {
		return err
	}
	defer end()
	index, conf := c.cfg.Members.Latest()
	if !slices.ContainsFunc(conf.Servers, func(s raft.Server) bool { return string(s.ID) == node }) {
		return nil
	}
	if err := may(c.Look(ctx), node); err != nil {
		return err
	}
	tell := c.cfg.Tell(node)
	f := r.RemoveServer(raft.ServerID(node), index, enqueueTimeout)
	if err := c.commit(ctx, f); err != nil {
		return err
	}
	tell(f.Index())
	return nil
}

// commit waits until a change of the configuration is committed.
func (c *Changes) commit(ctx context.Context, f raft.IndexFuture) error {
	err := c.cfg.RaftEnd.Await(ctx, f)
	switch {
	case err == nil:
		index, conf := c.cfg.Members.Latest()
		c.cfg.Log.Info("the members were changed", "index", index, "members", len(conf.Servers))
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return fmt.Errorf("%w: %w", commit.ErrNotLeader, err)
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: the change before it is not committed", ErrNotReady)
	}
	return fmt.Errorf("%w: %w", fsm.ErrOutcomeUnknown, err)
}
