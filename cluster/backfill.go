package cluster

import (
	"fmt"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/signal"
)

const (
	// gapCheck is how often the audit log is looked at without a reason.
	gapCheck = 2 * time.Second
)

// lookForGap makes the backfill look at the audit log now.
func (n *Node) lookForGap() { signal.Send(n.gap) }

// backfill fetches audit entries that a snapshot covers and this node never
// applied. What others send is believed only as far as the audit log verifies it
// against the roots in the replicated state.
func (n *Node) backfill() {
	tick := time.NewTicker(gapCheck)
	defer tick.Stop()
	for {
		select {
		case <-n.gap:
		case <-tick.C:
		case <-n.ctx.Done():
			return
		}
		n.fillGap()
	}
}

// fillGap asks each other node in turn until nothing is missing.
func (n *Node) fillGap() {
	for _, id := range n.Peers() {
		from, to, missing := n.cfg.Audit.Missing()
		if !missing || n.ctx.Err() != nil {
			return
		}
		n.log.Info("fetching missing audit entries", "peer", id, "from", from, "to", to)
		if err := n.peers.FetchAudit(n.ctx, id, from, to, n.cfg.Audit.Fill); err != nil && n.ctx.Err() == nil {
			n.log.Warn("fetching audit entries", "peer", id, "err", err)
		}
		if now, _, still := n.cfg.Audit.Missing(); !still {
			n.log.Info("the audit log is complete", "entries", n.cfg.Audit.Size())
		} else if now > from {
			n.log.Info("more audit entries are here", "upto", now, "of", to)
			n.lookForGap() // progress: go on without waiting
		}
	}
}

// watchLog takes a snapshot when the log has grown by the configured bytes, and
// notes once the disk holds Raft state.
func (n *Node) watchLog() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-n.ctx.Done():
			return
		}
		r := n.raft.Load()
		if r == nil || n.faulted.Load() != nil {
			continue
		}
		if r.LastIndex() > 0 {
			if err := n.dir.joined(); err != nil {
				n.fault(fmt.Errorf("%w: %w", ErrStorage, err))
				continue
			}
		}
		if grown := n.store.Appended(); grown >= n.cfg.SnapshotBytes {
			if err := waitFuture(n.ctx, r.Snapshot()); err != nil {
				n.log.Warn("snapshot by size", "err", err)
				continue
			}
			n.store.AdjustAppended(-grown)
		}
	}
}
