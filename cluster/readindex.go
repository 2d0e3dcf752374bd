package cluster

import (
	"context"
	"fmt"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/commit"
)

// Barrier returns once State contains everything that was committed when it was
// called. Callers at the same time share a barrier. It writes nothing to the log:
// strangers can cause barriers.
func (n *Node) Barrier(ctx context.Context) error {
	if err := n.usable(); err != nil {
		return err
	}
	if err := n.begin(); err != nil {
		return err
	}
	defer n.running.Done()
	return n.barriers.wait(ctx, n.goroutine)
}

// runBarrier asks the leader, whoever it is by then, for as long as a proposal
// would wait for one.
func (n *Node) runBarrier() error {
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Timeouts.LeaderWait)
	defer cancel()
	backoff := commit.MinBackoff
	for {
		index, err := n.readIndex(ctx)
		if err == nil {
			return n.WaitApplied(n.ctx, index)
		}
		if uerr := n.usable(); uerr != nil {
			return uerr
		}
		select {
		case <-time.After(backoff):
			backoff = min(2*backoff, commit.MaxBackoff)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrNoLeader, err)
		}
	}
}

// readIndex is an index that State must reach to have what was committed before.
func (n *Node) readIndex(ctx context.Context) (uint64, error) {
	leader, _ := n.Leader()
	switch leader {
	case "":
		return 0, ErrNoLeader
	case n.cfg.NodeID:
		return n.readIndexHere(ctx)
	}
	return n.peers.ReadIndex(ctx, leader, n.powerless())
}

// readIndexHere is readIndex on the leader. What anybody was told is committed was
// applied by the leader that told it: by this one, or by an earlier one, and then
// it was committed before this term's first barrier. So the state of a leader past
// that barrier has all of it, provided that nobody else led meanwhile: a majority
// says so after the state was read, and the term has not changed.
func (n *Node) readIndexHere(ctx context.Context) (uint64, error) {
	term := n.readTerm.Load()
	r := n.raft.Load()
	if term == 0 || r == nil || n.usable() != nil || r.CurrentTerm() != term {
		return 0, ErrNotLeader
	}
	index := n.State().Index()
	if err := waitFuture(ctx, r.VerifyLeader()); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	if r.CurrentTerm() != term {
		return 0, ErrNotLeader
	}
	return index, nil
}
