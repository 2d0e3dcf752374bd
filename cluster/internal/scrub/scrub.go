// Package scrub finds damage to a node's audit log before a reader does, and repairs it.
//
// Bytes that nobody reads can rot unnoticed, until the other copies have been lost too. So
// each full segment is read in turn, slowly, and compared with its root in the replicated
// state. A segment that is damaged is replaced by another node's, which the log accepts only
// if it leads to that root.
package scrub

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/auditlog"
)

const (
	// pass is how long one pass over the whole log takes, unless minPause makes it longer.
	pass = 7 * 24 * time.Hour
	// Between two segments is a pause of at least minPause, which bounds what scrubbing costs
	// a disk, and at most maxPause.
	minPause, maxPause = time.Minute, 6 * time.Hour
	// fetchEntries is how many entries are fetched at once, and held in memory.
	fetchEntries = 256
)

// Log is the node's audit log.
type Log interface {
	// Size returns the number of entries.
	Size() uint64
	// Scrub returns auditlog.ErrCorrupt if full segment n is damaged.
	Scrub(n uint64) error
	// Repair replaces full segment n by the entries that fetch returns, if they are the
	// cluster's.
	Repair(n uint64, fetch func(from uint64) ([]auditlog.Entry, error)) error
}

// Config configures a Scrubber.
type Config struct {
	Log Log
	// Others returns the ids of the other nodes.
	Others func() []string
	// Fetch fetches the entries [from, to) from another node and passes them to fill, in order.
	Fetch func(ctx context.Context, node string, from, to uint64, fill func([]auditlog.Entry) error) error
	// Scrubbed and Repaired count segments.
	Scrubbed, Repaired prometheus.Counter
	Logger             *slog.Logger
}

// Scrubber scrubs one audit log.
type Scrubber struct {
	cfg   Config
	pause func(segments uint64) time.Duration

	mu      sync.Mutex
	damaged map[uint64]bool // segments that could not be repaired yet
}

// New returns a Scrubber.
func New(cfg Config) *Scrubber {
	return &Scrubber{cfg: cfg, pause: pause, damaged: make(map[uint64]bool)}
}

// pause returns how long to wait before the next of that many segments is read.
func pause(segments uint64) time.Duration {
	return min(max(pass/time.Duration(max(segments, 1)), minPause), maxPause)
}

// Damaged returns the number of segments that were found damaged and are not repaired yet.
func (s *Scrubber) Damaged() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.damaged)
}

// Run scrubs until ctx ends. It begins anywhere, so that a node that restarts often reaches
// all segments too.
func (s *Scrubber) Run(ctx context.Context) {
	next := rand.Uint64()
	wait := time.NewTimer(s.pause(math.MaxInt32)) // the shortest one
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		// There may be a node now that can repair what no other could.
		s.mu.Lock()
		again := slices.Sorted(maps.Keys(s.damaged))
		s.mu.Unlock()
		for _, n := range again {
			s.scrub(ctx, n)
		}
		segments := s.cfg.Log.Size() / auditlog.SegmentSize
		if segments > 0 {
			if next++; next >= segments {
				next %= segments
			}
			s.scrub(ctx, next)
		}
		wait.Reset(s.pause(segments))
	}
}

// scrub reads a full segment, and repairs it if it is damaged.
func (s *Scrubber) scrub(ctx context.Context, n uint64) {
	switch err := s.cfg.Log.Scrub(n); {
	case err == nil:
		s.cfg.Scrubbed.Inc()
		s.mark(n, false)
	case errors.Is(err, auditlog.ErrCorrupt):
		s.cfg.Scrubbed.Inc()
		s.cfg.Logger.Error("a segment of the audit log is damaged; it is fetched from another node", "segment", n, "err", err)
		s.mark(n, true)
		s.repair(ctx, n)
	case !errors.Is(err, auditlog.ErrMissing) && ctx.Err() == nil:
		s.cfg.Logger.Warn("scrubbing the audit log", "segment", n, "err", err)
	}
}

// repair asks each other node in turn for the segment.
func (s *Scrubber) repair(ctx context.Context, n uint64) {
	for _, node := range s.cfg.Others() {
		err := s.cfg.Log.Repair(n, func(from uint64) (entries []auditlog.Entry, err error) {
			to := min(from+fetchEntries, (n+1)*auditlog.SegmentSize)
			err = s.cfg.Fetch(ctx, node, from, to, func(more []auditlog.Entry) error {
				entries = append(entries, more...)
				return nil
			})
			return entries, err
		})
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			s.cfg.Repaired.Inc()
			s.mark(n, false)
			s.cfg.Logger.Warn("a damaged segment of the audit log was repaired", "segment", n, "peer", node)
			return
		}
		s.cfg.Logger.Warn("fetching a segment of the audit log", "segment", n, "peer", node, "err", err)
	}
	s.cfg.Logger.Error("no other node has an intact copy of a damaged segment of the audit log that this node can reach; it asks again later", "segment", n)
}

func (s *Scrubber) mark(n uint64, damaged bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if damaged {
		s.damaged[n] = true
	} else {
		delete(s.damaged, n)
	}
}
