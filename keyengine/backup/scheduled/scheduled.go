// Package scheduled makes backups by itself, and removes old ones.
//
// The leader makes a backup when the newest one in the store is old enough. What is in the
// store decides, so that nothing has to be replicated: where the nodes share a store, a new
// leader continues the schedule, and where each has a directory of its own, it begins with a
// backup. It looks there when it begins to lead and when a backup is due by what it knows, and
// not in between, since a store may charge for that. If two nodes take themselves for the leader for a moment there may be two backups,
// which does no harm. Times are cluster time: a clock that is wrong makes no backup old.
//
// A backup counts once it was read back from the store and is authentic to its end. Old
// ones are removed only then, by the node that has just made a good one, which it keeps. What
// is removed has the form of the names that this package gives, and in its header the cluster
// and the id that its name says. Whoever can write to the store can forge such a file, but has
// only that file removed. What cannot be written or removed is in the log, in the metrics and
// in the status of the leader.
package scheduled

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/backup"
)

// Policy says when backups are made and how long they are kept.
type Policy struct {
	// Every is the time from one backup to the next; up to a tenth more is added. 0 for no
	// backups.
	Every time.Duration
	// Keep is how many backups there are at most, and KeepFor how old they become; 0 for no
	// limit. The newest one is always kept.
	Keep    int
	KeepFor time.Duration
	// WithoutAudit leaves the audit log out.
	WithoutAudit bool
}

// minEvery keeps a typing error from filling a disk.
const minEvery = time.Minute

// Validate returns an error that says what is wrong.
func (p Policy) Validate() error {
	switch {
	case p.Every < minEvery:
		return fmt.Errorf("every %v is more often than every %v", p.Every, minEvery)
	case p.Keep < 0 || p.KeepFor < 0:
		return errors.New("how many or how long backups are kept is negative")
	case p.KeepFor > 0 && p.KeepFor < p.Every:
		return fmt.Errorf("backups are made every %v, but are kept for %v", p.Every, p.KeepFor)
	}
	return nil
}

// Store is where backups are; see package depot of the command for what it guarantees.
type Store interface {
	Put(ctx context.Context, name string, write func(io.Writer) error) (int64, error)
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	List(ctx context.Context, prefix string) ([]string, error)
	Remove(ctx context.Context, name string) error
	Sweep(ctx context.Context, prefix string, before time.Time) error
	String() string
}

// Cluster is the node's part of the cluster. *cluster.Node implements it.
type Cluster interface {
	backup.Source
	State() *fsm.State
	IsLeader() bool
}

// Saver writes backups and reads them. *backup.Saver implements it.
type Saver interface {
	SaveOwn(ctx context.Context, from backup.Source, id [16]byte, place string, withAudit bool, to io.Writer) error
	Authenticate(ctx context.Context, from io.Reader) (*backup.Header, error)
	RecordRemoval(ctx context.Context, place string, names []string) error
}

// Config configures a Runner.
type Config struct {
	Policy
	Store   Store
	Cluster Cluster
	Saver   Saver
	// Sealed reports whether the node is sealed, and can neither write nor read backups.
	Sealed  func() bool
	Log     *slog.Logger
	Metrics *Metrics
}

// Metrics are the metrics of backups. They exist also on nodes that make none.
type Metrics struct {
	success  prometheus.Gauge
	size     prometheus.Gauge
	duration prometheus.Gauge
	failures *prometheus.CounterVec
}

// The steps at which a backup can fail, as the metric has them.
const (
	failedSave   = "save"
	failedCheck  = "check"
	failedRemove = "remove"
)

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	f := promauto.With(r)
	m := &Metrics{
		success: f.NewGauge(prometheus.GaugeOpts{
			Name: "conclave_backup_last_success_timestamp_seconds",
			Help: "When the newest scheduled backup that this node knows was made, in Unix time; 0 if it knows none. The leader makes backups: take the maximum over the nodes.",
		}),
		size: f.NewGauge(prometheus.GaugeOpts{
			Name: "conclave_backup_size_bytes", Help: "Size of the newest scheduled backup that this node has made.",
		}),
		duration: f.NewGauge(prometheus.GaugeOpts{
			Name: "conclave_backup_duration_seconds", Help: "How long it took to make and to check the newest scheduled backup of this node.",
		}),
		failures: f.NewCounterVec(prometheus.CounterOpts{
			Name: "conclave_backup_failures_total",
			Help: "Scheduled backups that could not be stored (`save`), that were not what was stored when they were read back (`check`), and old ones that could not be removed (`remove`), by `step`.",
		}, []string{"step"}),
	}
	for _, step := range []string{failedSave, failedCheck, failedRemove} {
		m.failures.WithLabelValues(step)
	}
	return m
}

// Runner makes the backups of one node.
type Runner struct {
	cfg Config
	// tick is how often the runner looks whether a backup is due, and retry the shortest
	// and longest time after which it tries again.
	tick               time.Duration
	retryMin, retryMax time.Duration
	// due is when the next backup is due by what was in the store, in cluster time; zero if
	// that is not known, as for a node that does not lead. Only Run uses it.
	due time.Time

	mu      sync.Mutex
	failed  error
	retried int // failures in a row
}

// New returns a Runner. The policy must be valid.
func New(cfg Config) *Runner {
	return &Runner{cfg: cfg, tick: min(15*time.Second, cfg.Every/10), retryMin: time.Minute, retryMax: min(30*time.Minute, cfg.Every)}
}

// Fault returns why the newest attempt of this node failed; nil if it did not, or if another
// node leads.
func (r *Runner) Fault() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *Runner) settle(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed = err; err == nil {
		r.retried = 0
	} else {
		r.retried++
	}
}

// Run makes backups while the node leads, until ctx ends.
func (r *Runner) Run(ctx context.Context) {
	timer := time.NewTimer(r.tick)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(r.look(ctx))
	}
}

// look makes a backup if one is due, and returns after which time to look again.
func (r *Runner) look(ctx context.Context) time.Duration {
	if !r.cfg.Cluster.IsLeader() || r.cfg.Sealed() {
		r.due = time.Time{} // another node may make backups meanwhile
		r.settle(nil)
		return r.tick
	}
	err := r.attempt(ctx)
	if ctx.Err() != nil {
		return r.tick
	}
	r.settle(err)
	if err == nil {
		return r.tick
	}
	r.cfg.Log.Error("the scheduled backup failed", "place", r.cfg.Store.String(), "err", err)
	return min(r.retryMin<<min(r.retried-1, 10), r.retryMax)
}

// attempt makes a backup if one is due.
func (r *Runner) attempt(ctx context.Context) error {
	cluster, now := r.clusterNow()
	if cluster == nil {
		return nil // not initialised
	}
	if now.Before(r.due) {
		return nil
	}
	names, err := r.list(ctx, cluster)
	if err != nil {
		r.cfg.Metrics.failures.WithLabelValues(failedSave).Inc()
		return fmt.Errorf("looking for earlier ones: %w", err)
	}
	if last, ok := newest(names, now); ok {
		r.cfg.Metrics.success.Set(float64(last.at.Unix()))
		if r.due = r.next(last); now.Before(r.due) {
			return nil
		}
	}
	began := time.Now()
	made, size, err := r.make(ctx, cluster, now)
	if err != nil {
		r.cfg.Metrics.failures.WithLabelValues(failedSave).Inc()
		return err
	}
	if err := r.readBack(ctx, made); err != nil {
		r.cfg.Metrics.failures.WithLabelValues(failedCheck).Inc()
		// It must not be taken for a good one, neither by people nor by the next look.
		return errors.Join(fmt.Errorf("%s is not what was written: %w", made, err), r.cfg.Store.Remove(context.WithoutCancel(ctx), made.String()))
	}
	r.due = r.next(made)
	took := time.Since(began)
	r.cfg.Metrics.success.Set(float64(made.at.Unix()))
	r.cfg.Metrics.size.Set(float64(size))
	r.cfg.Metrics.duration.Set(took.Seconds())
	r.cfg.Log.Info("a backup was made", "place", r.cfg.Store.String(), "name", made.String(), "bytes", size, "took", took)
	if err := r.tidy(ctx, cluster, made); err != nil {
		r.cfg.Metrics.failures.WithLabelValues(failedRemove).Inc()
		// The backup is there. The next one tries again.
		r.cfg.Log.Warn("old backups could not be removed", "place", r.cfg.Store.String(), "err", err)
	}
	return nil
}

// clusterNow returns the cluster's id and time.
func (r *Runner) clusterNow() (cluster []byte, now time.Time) {
	s := r.cfg.Cluster.State()
	c, _ := s.Cluster()
	return c.GetId(), time.Unix(0, s.Time())
}

// next returns when the backup after the last one is due.
func (r *Runner) next(last name) time.Time { return last.at.Add(r.cfg.Every + r.jitter(last)) }

// jitter returns what is added to the interval, so that many clusters do not write to one
// store at the same time. It depends on the last backup only, as all nodes shall agree.
func (r *Runner) jitter(last name) time.Duration {
	var seed [32]byte
	copy(seed[:], last.id)
	return time.Duration(rand.New(rand.NewChaCha8(seed)).Int64N(int64(r.cfg.Every/10) + 1))
}

// make stores a backup.
func (r *Runner) make(ctx context.Context, cluster []byte, now time.Time) (name, int64, error) {
	id := backup.NewID()
	made := name{cluster: hex.EncodeToString(cluster), at: now.Truncate(time.Second), id: hex.EncodeToString(id[:])}
	place := r.cfg.Store.String()
	size, err := r.cfg.Store.Put(ctx, made.String(), func(w io.Writer) error {
		return r.cfg.Saver.SaveOwn(ctx, r.cfg.Cluster, id, place, !r.cfg.WithoutAudit, w)
	})
	return made, size, err
}

// readBack reads a backup from the store.
func (r *Runner) readBack(ctx context.Context, made name) error {
	from, err := r.cfg.Store.Open(ctx, made.String())
	if err != nil {
		return err
	}
	defer from.Close()
	h, err := r.cfg.Saver.Authenticate(ctx, from)
	if err == nil && hex.EncodeToString(h.Id) != made.id {
		err = errors.New("it is another backup")
	}
	return err
}

// abandonedAfter is how old what a crash has left must be before it is removed: another
// node may still be writing it.
const abandonedAfter = 24 * time.Hour

// tidy removes what the policy does not keep. kept is the newest backup, and is good.
func (r *Runner) tidy(ctx context.Context, cluster []byte, kept name) error {
	swept := r.cfg.Store.Sweep(ctx, prefixOf(hex.EncodeToString(cluster)), time.Now().Add(-abandonedAfter))
	names, err := r.list(ctx, cluster)
	if err != nil {
		return errors.Join(swept, err)
	}
	old, err := r.verified(ctx, cluster, r.expired(names, kept))
	if len(old) == 0 {
		return errors.Join(swept, err)
	}
	var texts []string
	for _, n := range old {
		texts = append(texts, n.String())
	}
	failed := []error{swept, err}
	for some := range slices.Chunk(texts, maxRecorded) {
		if err := r.cfg.Saver.RecordRemoval(ctx, r.cfg.Store.String(), some); err != nil {
			return errors.Join(append(failed, err)...)
		}
		for _, text := range some {
			if err := r.cfg.Store.Remove(ctx, text); err != nil {
				failed = append(failed, err)
			}
		}
	}
	return errors.Join(failed...)
}

// maxRecorded bounds the names in one audit record.
const maxRecorded = 50

// expired returns the backups that are beyond the policy. names are in ascending order of
// time. Those that are newer than kept are of a time that has not come, such as of the
// cluster's history before a restore: they are neither counted nor removed.
func (r *Runner) expired(names []name, kept name) (old []name) {
	older := slices.DeleteFunc(slices.Clone(names), func(n name) bool { return n.id == kept.id || n.at.After(kept.at) })
	for i, n := range older {
		newer := len(older) - i // kept included
		if r.cfg.Keep > 0 && newer >= r.cfg.Keep || r.cfg.KeepFor > 0 && kept.at.Sub(n.at) > r.cfg.KeepFor {
			old = append(old, n)
		}
	}
	return old
}

// verified returns those whose header has the cluster and the id that the name says.
func (r *Runner) verified(ctx context.Context, cluster []byte, names []name) (ok []name, _ error) {
	var failed []error
	for _, n := range names {
		if err := r.check(ctx, cluster, n); err != nil {
			failed = append(failed, fmt.Errorf("%s stays: %w", n, err))
			continue
		}
		ok = append(ok, n)
	}
	return ok, errors.Join(failed...)
}

func (r *Runner) check(ctx context.Context, cluster []byte, n name) error {
	from, err := r.cfg.Store.Open(ctx, n.String())
	if err != nil {
		return err
	}
	defer from.Close()
	h, err := backup.ReadHeader(from)
	if err == nil && !h.Is(cluster, n.id) {
		err = errors.New("it is not the backup that its name says")
	}
	return err
}

// list returns the cluster's scheduled backups, in ascending order of time.
func (r *Runner) list(ctx context.Context, cluster []byte) (names []name, _ error) {
	of := hex.EncodeToString(cluster)
	texts, err := r.cfg.Store.List(ctx, prefixOf(of))
	if err != nil {
		return nil, err
	}
	for _, t := range texts {
		if n, ok := parseName(t); ok && n.cluster == of {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, func(a, b name) int { return a.at.Compare(b.at) })
	return names, nil
}

// newest returns the newest backup that is not of a time that has not come.
func newest(names []name, now time.Time) (last name, ok bool) {
	for _, n := range names {
		if !n.at.After(now) {
			last, ok = n, true
		}
	}
	return last, ok
}

// name is the name of a scheduled backup.
type name struct {
	cluster string
	at      time.Time // cluster time, in seconds
	id      string
}

const nameTime = "20060102T150405Z"

func prefixOf(cluster string) string { return "conclave-" + cluster + "-" }

// String returns the name in the store.
func (n name) String() string {
	return prefixOf(n.cluster) + n.at.UTC().Format(nameTime) + "-" + n.id + ".backup"
}

var nameForm = regexp.MustCompile(`^conclave-([0-9a-f]{32})-([0-9]{8}T[0-9]{6}Z)-([0-9a-f]{32})\.backup$`)

func parseName(s string) (name, bool) {
	m := nameForm.FindStringSubmatch(s)
	if m == nil {
		return name{}, false
	}
	at, err := time.Parse(nameTime, m[2])
	n := name{cluster: m[1], at: at.Local(), id: m[3]}
	return n, err == nil && n.String() == s
}
