// Package backfill fetches the audit entries that a snapshot covers and that this node
// never applied.
//
// It guarantees that received entries are accepted only if the audit log verifies them
// against the roots in the replicated state, and that each other node is asked in turn as
// long as anything is missing.
package backfill

import (
	"context"
	"log/slog"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster/internal/signal"
)

// every is how often the audit log is checked without a specific reason.
const every = 2 * time.Second

// Log is the node's audit log.
type Log interface {
	// Missing returns the gap [from, to) that other nodes have to fill.
	Missing() (from, to uint64, ok bool)
	// Fill adds entries to the gap, in order from its start. It refuses entries that do not
	// match the roots in the state.
	Fill(entries []auditlog.Entry) error
	// Size returns the number of entries that can be read.
	Size() uint64
}

// Backfill fills the gaps of one audit log.
type Backfill struct {
	log    Log
	others func() []string
	fetch  Fetch
	logger *slog.Logger
	gap    chan struct{} // a gap may have opened
}

// Fetch fetches the entries [from, to) from another node and passes them to fill, in order.
type Fetch func(ctx context.Context, node string, from, to uint64, fill func([]auditlog.Entry) error) error

// New returns the Backfill of a log. others returns the ids of the other nodes.
func New(log Log, others func() []string, fetch Fetch, logger *slog.Logger) *Backfill {
	return &Backfill{log: log, others: others, fetch: fetch, logger: logger, gap: make(chan struct{}, 1)}
}

// Look makes Run check the audit log now. It never blocks.
func (b *Backfill) Look() { signal.Send(b.gap) }

// Run fills gaps until ctx ends.
func (b *Backfill) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-b.gap:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		b.fill(ctx)
	}
}

// fill asks each other node in turn until nothing is missing.
func (b *Backfill) fill(ctx context.Context) {
	for _, id := range b.others() {
		from, to, missing := b.log.Missing()
		if !missing || ctx.Err() != nil {
			return
		}
		b.logger.Info("fetching missing audit entries", "peer", id, "from", from, "to", to)
		if err := b.fetch(ctx, id, from, to, b.log.Fill); err != nil && ctx.Err() == nil {
			b.logger.Warn("fetching audit entries", "peer", id, "err", err)
		}
		if now, _, still := b.log.Missing(); !still {
			b.logger.Info("the audit log is complete", "entries", b.log.Size())
		} else if now > from {
			b.logger.Info("received audit entries", "upto", now, "of", to)
			b.Look() // there was progress: continue without waiting
		}
	}
}
