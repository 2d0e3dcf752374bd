// Package auditarchive copies the audit log to an archive, and removes from the nodes' disks
// what is there and is old enough.
//
// The node that leads copies each segment once it is full, and reads it back. That all segments
// up to one are archived is a setting in the replicated state, so the next leader goes on from
// there, and every step is a record of the audit log. A segment that is there already is read,
// and is not copied again. If it is not the cluster's, nothing is replaced and nothing more is
// archived: the node says so in its log, its status and its metrics until an operator has looked.
//
// With a retention, the leader also says which segments every node may remove: those whose newest
// record is older than that by cluster time, which it has read back from the archive once more.
// A node removes them once all that follows the log on it has read them. One whole segment, and
// what follows it, always stays. A sealed node removes nothing.
package auditarchive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/archive"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

const (
	// look is how often a node looks whether there is something to do.
	look = 10 * time.Second
	// After a failure, the leader waits for retryMin, and twice as long after each further
	// one, up to retryMax.
	retryMin, retryMax = time.Second, 5 * time.Minute
	// spare is how many full segments a node keeps in any case.
	spare = 1
)

// Log is the node's audit log.
type Log interface {
	Read(from uint64, max, maxBytes int) ([]auditlog.Entry, error)
	Size() uint64
	// Removed returns which segments were removed, and RemoveSegments removes the first n.
	Removed() auditlog.Removed
	RemoveSegments(n uint64, place string) error
}

// Replica is the part of the replicated log that is used here.
type Replica interface {
	State() *fsm.State
	WaitApplied(ctx context.Context, index uint64) error
}

// Policy says where the log is archived.
type Policy struct {
	// Store is where; nil for nowhere.
	Store archive.Store
	// Retention is the age from which records are removed from the nodes; 0 for never.
	Retention time.Duration
}

// Config configures a Service.
type Config struct {
	Policy
	Log Log
	// Read reports whether all that follows the log on this node has read the records below
	// an index.
	Read    func(index uint64) bool
	Vault   *vault.Vault
	Replica Replica
	Events  *record.Recorder
	Logger  *slog.Logger
	Metrics prometheus.Registerer // nil for none
}

// Service archives the log of a node while it leads, and removes segments from it.
type Service struct {
	cfg     Config
	look    time.Duration
	metrics *metrics

	mu     sync.Mutex
	failed error
}

// New returns a Service.
func New(cfg Config) (*Service, error) {
	s := &Service{cfg: cfg, look: look}
	s.metrics = newMetrics(s)
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(s.metrics); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Fault returns why the newest attempt of this node failed; nil if it did not.
func (s *Service) Fault() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Archive returns the archive of a cluster's log; nil if there is none.
func (s *Service) Archive(c *fsmpb.Cluster) *archive.Archive {
	if s.cfg.Store == nil || c == nil {
		return nil
	}
	a, err := archive.New(s.cfg.Store, record.VerifierKey(c))
	if err != nil {
		return nil
	}
	return a
}

// Lead archives segments until ctx ends.
func (s *Service) Lead(ctx context.Context) {
	if s.cfg.Store == nil {
		return
	}
	defer s.settle(nil)
	s.sweep(ctx)
	for wait := time.Duration(0); ; {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		began := time.Now()
		more, err := s.step(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, vault.ErrSealed), errors.Is(err, auditlog.ErrMissing):
			wait = s.look // until it is unsealed, or other nodes have sent what is missing
		case err != nil:
			wait = s.failure(err, wait)
		case more:
			// Requests come first: this takes at most half of a processor.
			wait = min(time.Since(began), s.look)
			s.settle(nil)
		default:
			wait = s.look
			s.settle(nil)
		}
	}
}

// sweep removes what a crash of a leader has left in the archive. It costs room, and is in nobody's
// way, so that a failure is no fault of the archive.
func (s *Service) sweep(ctx context.Context) {
	c, _ := s.cfg.Replica.State().Cluster()
	a := s.Archive(c)
	if a == nil {
		return
	}
	if err := a.Sweep(ctx); err != nil && ctx.Err() == nil {
		s.cfg.Logger.Warn("removing what a crash has left in the archive of the audit log", "place", s.cfg.Store.String(), "err", err)
	}
}

// failure notes a failure, and returns when to try again.
func (s *Service) failure(err error, waited time.Duration) time.Duration {
	wait := min(max(2*waited, retryMin), retryMax)
	s.metrics.failures.Inc()
	if _, ok := errors.AsType[*level.TooNewError](err); ok {
		wait = s.look // until the upgrade is finalized
	}
	if errors.Is(err, archive.ErrAltered) {
		s.metrics.altered.Inc()
		s.cfg.Logger.Error("THE ARCHIVE OF THE AUDIT LOG WAS ALTERED, or another cluster writes there; nothing more is archived", "place", s.cfg.Store.String(), "err", err)
		wait = retryMax
	} else if s.Fault() == nil {
		s.cfg.Logger.Error("archiving the audit log failed and will be retried", "place", s.cfg.Store.String(), "err", err)
	}
	s.settle(err)
	return wait
}

func (s *Service) settle(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err
}

// progress is the value of the setting.
type progress struct {
	Place string `json:"place"`
	// Segments is how many segments, from the first on, are archived there, and Removed how
	// many of them the nodes may remove.
	Segments uint64 `json:"segments"`
	Removed  uint64 `json:"removed,omitzero"`

	version fsm.Version
}

const setting = "audit-archive"

func progressOf(s *fsm.State) (p progress, err error) {
	m, version := fsm.Object[*fsmpb.Setting](s, []byte(setting))
	if m == nil {
		return progress{}, nil
	}
	if err := json.Unmarshal(m.Value, &p, json.RejectUnknownMembers(true)); err != nil {
		return progress{}, fmt.Errorf("the setting %s cannot be read: %w", setting, err)
	}
	p.version = version
	return p, nil
}

func putSetting(value []byte) *fsmpb.Change {
	return &fsmpb.Change{Change: &fsmpb.Change_PutSetting{PutSetting: &fsmpb.Setting{Name: setting, Value: value}}}
}

// step archives the next segment, or lets nodes remove one, and reports whether it did.
func (s *Service) step(ctx context.Context) (more bool, err error) {
	state := s.cfg.Replica.State()
	c, _ := state.Cluster()
	_, roots := state.Audit()
	p, err := progressOf(state)
	if err == nil {
		err = state.Allows(putSetting(nil))
	}
	if err != nil || c == nil {
		return false, err
	}
	if place := s.cfg.Store.String(); p.Place != place {
		p.Place, p.Segments = place, 0 // as what is elsewhere is not known there
	}
	n := p.Segments
	switch {
	case n < uint64(len(roots)):
		p.Segments++
	case s.removable(state, roots, p):
		n = p.Removed
		p.Removed++
	default:
		return false, nil
	}
	if err := s.put(ctx, c, roots[:n+1]); err != nil {
		return false, err
	}
	return true, s.store(ctx, p, n, roots[n])
}

// put copies the last of some segments, unless it is in the archive, and reads it from there.
func (s *Service) put(ctx context.Context, c *fsmpb.Cluster, roots []auditlog.Hash) error {
	o, err := s.cfg.Vault.Current()
	if err != nil {
		return err
	}
	note, err := o.SignCheckpoint(c, record.AuditOrigin(c), auditlog.FoldSegments(roots))
	if err != nil {
		return err
	}
	a, err := archive.New(s.cfg.Store, record.VerifierKey(c))
	if err != nil {
		return err
	}
	added, err := a.Put(ctx, &slowly{Log: s.cfg.Log, ctx: ctx}, roots, note)
	if err == nil && added {
		s.metrics.segments.Inc()
		s.cfg.Logger.Info("a segment of the audit log was archived", "segment", len(roots)-1, "place", s.cfg.Store.String())
	}
	return err
}

// removable reports whether the nodes may remove the next segment.
func (s *Service) removable(state *fsm.State, roots []auditlog.Hash, p progress) bool {
	n := p.Removed
	if s.cfg.Retention == 0 || n >= p.Segments || n+spare >= uint64(len(roots)) {
		return false
	}
	last, err := s.cfg.Log.Read((n+1)*auditlog.SegmentSize-1, 1, 1)
	if err != nil || len(last) == 0 {
		return false // it is looked at again
	}
	return state.Time()-last[0].Time > int64(s.cfg.Retention)
}

// store replaces the setting, with a record of what was done with segment n.
func (s *Service) store(ctx context.Context, p progress, n uint64, root auditlog.Hash) error {
	value, err := json.Marshal(p)
	if err != nil {
		return err
	}
	put := putSetting(value)
	d, err := s.cfg.Events.CommitEvent(ctx, func(state *fsm.State) (record.Event, error) {
		if err := state.Allows(put); err != nil {
			return record.Event{}, err
		}
		was, err := progressOf(state)
		if err != nil {
			return record.Event{}, err
		}
		name := "ArchiveAuditSegment"
		if p.Removed > was.Removed {
			name = "ExpireAuditSegment"
		}
		ev := record.ServiceEvent(name, s.cfg.Events.Clock.Now(),
			auditfield.Number("firstIndex", int(n*auditlog.SegmentSize)), auditfield.Number("nextIndex", int((n+1)*auditlog.SegmentSize)),
			auditfield.Text("place", p.Place), auditfield.Text("segmentRoot", fmt.Sprintf("%x", root)))
		ev.Reads = []*fsmpb.Read{{Kind: fsmpb.Kind_KIND_SETTING, Id: []byte(setting), Version: uint64(p.version)}}
		ev.Changes = []*fsmpb.Change{put}
		return ev, nil
	})
	if errors.Is(err, record.ErrConflict) {
		return fmt.Errorf("another node archives the audit log: %w", err)
	}
	if err != nil {
		return err
	}
	return s.cfg.Replica.WaitApplied(ctx, d.Index)
}

// Run removes from this node what may be removed, until ctx ends.
func (s *Service) Run(ctx context.Context) {
	if s.cfg.Store == nil || s.cfg.Retention == 0 {
		return
	}
	tick := time.NewTicker(s.look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.remove(ctx); err != nil && ctx.Err() == nil {
			s.metrics.failures.Inc()
			s.cfg.Logger.Error("removing a segment of the audit log that is archived", "err", err)
		}
	}
}

// remove removes the segments that may be removed.
func (s *Service) remove(ctx context.Context) error {
	p, err := progressOf(s.cfg.Replica.State())
	if err != nil || p.Place != s.cfg.Store.String() {
		return err
	}
	for n := s.cfg.Log.Removed().Segments; n < min(p.Removed, p.Segments) && ctx.Err() == nil; n++ {
		// What follows the log must be a segment ahead, as it compares what it has read last.
		if after := (n + 1 + spare) * auditlog.SegmentSize; s.cfg.Log.Size() <= after || !s.cfg.Read(after) {
			return nil
		}
		err := s.cfg.Log.RemoveSegments(n+1, p.Place)
		if errors.Is(err, auditlog.ErrMissing) || errors.Is(err, auditlog.ErrCorrupt) {
			return nil // other nodes send it, and the scrubber repairs it
		}
		if err != nil {
			return err
		}
		s.cfg.Logger.Info("a segment of the audit log was removed; it is in the archive", "segment", n, "place", p.Place)
	}
	return nil
}

// slowly reads the log with pauses, so that requests come first: it takes at most half of a
// processor.
type slowly struct {
	Log
	ctx context.Context
}

// Read implements archive.Log.
func (l *slowly) Read(from uint64, max, maxBytes int) ([]auditlog.Entry, error) {
	began := time.Now()
	entries, err := l.Log.Read(from, max, maxBytes)
	timer := time.NewTimer(time.Since(began))
	defer timer.Stop()
	select {
	case <-l.ctx.Done():
		return nil, l.ctx.Err()
	case <-timer.C:
	}
	return entries, err
}
