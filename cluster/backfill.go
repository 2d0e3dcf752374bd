package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/signal"
	"github.com/conclavekms/conclave/fsm/wire"
)

const (
	// gapCheck is how often the audit log is looked at without a reason.
	gapCheck = 2 * time.Second
	// fetchTimeout bounds one stream, so that a slow node does not hold up the
	// others' turn.
	fetchTimeout = 5 * time.Minute
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
		if err := n.fetchFrom(id, from, to); err != nil && n.ctx.Err() == nil {
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

func (n *Node) fetchFrom(node string, from, to uint64) error {
	client, err := n.peers.client(node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(n.ctx, fetchTimeout)
	defer cancel()
	stream, err := client.FetchAudit(ctx, &clusterpb.FetchAuditRequest{Group: wire.Group, From: from, To: to})
	if err != nil {
		return err
	}
	for next := from; next < to; {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("node %s sent less than it should: up to %d of %d", node, next, to)
		}
		if err != nil {
			return err
		}
		entries := make([]auditlog.Entry, len(m.Entries))
		for i, p := range m.Entries {
			if entries[i], err = auditEntry(p); err != nil {
				return err
			}
			if entries[i].Index != next || next >= to {
				return fmt.Errorf("node %s sent audit entry %d instead of %d", node, entries[i].Index, next)
			}
			next++
		}
		if err := n.cfg.Audit.Fill(entries); err != nil {
			return fmt.Errorf("node %s sent entries that do not fit: %w", node, err)
		}
	}
	return nil
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
