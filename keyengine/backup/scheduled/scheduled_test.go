package scheduled

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/backup"
	"github.com/conclavekms/conclave/keyengine/internal/enginetest"
)

// memory is a Store in memory.
type memory struct {
	mu      sync.Mutex
	objects map[string][]byte
	// These make operations fail; spoil changes what is stored.
	putErr, listErr, removeErr error
	spoil                      func([]byte) []byte
	swept, listed              int
}

func (m *memory) String() string { return "memory" }

func (m *memory) Put(_ context.Context, name string, write func(io.Writer) error) (int64, error) {
	var b bytes.Buffer
	err := errors.Join(write(&b), m.putErr)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.objects[name] = b.Bytes()
		if m.spoil != nil {
			m.objects[name] = m.spoil(m.objects[name])
		}
	}
	return int64(b.Len()), err
}

func (m *memory) Open(_ context.Context, name string) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.objects[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (m *memory) List(_ context.Context, prefix string) (names []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listed++
	for name := range m.objects {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names, m.listErr
}

func (m *memory) Remove(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.removeErr == nil {
		delete(m.objects, name)
	}
	return m.removeErr
}

func (m *memory) Sweep(_ context.Context, prefix string, before time.Time) error {
	if strings.HasPrefix(prefix, "conclave-") && time.Since(before) >= abandonedAfter {
		m.swept++
	}
	return nil
}

// names returns the names in the store, the oldest first.
func (m *memory) names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.objects))
}

// member is a node of a test.
type member struct {
	*enginetest.Cluster
	*enginetest.Replica
	follows bool
}

func (m *member) Snapshot() (*fsm.State, func(io.Writer) error, error) { return m.Cluster.Snapshot() }
func (m *member) State() *fsm.State                                    { return m.Cluster.State() }
func (m *member) IsLeader() bool                                       { return !m.follows }

type fixture struct {
	*enginetest.Node
	t      *testing.T
	store  *memory
	member *member
	sealed bool
	runner *Runner
	shares []string
}

func newFixture(t *testing.T, p Policy) *fixture {
	t.Helper()
	c := enginetest.NewCluster(t, 1)
	f := &fixture{Node: c.NewNode("n1"), t: t, store: &memory{objects: make(map[string][]byte)}}
	f.shares = f.Initialise(enginetest.InitParams(3, 2)).Shares
	f.Unseal(f.shares...)
	f.PutKey(enginetest.KeyID)
	f.member = &member{Cluster: c, Replica: f.Replica}
	f.runner = f.newRunner(p)
	return f
}

func (f *fixture) newRunner(p Policy) *Runner {
	return New(Config{
		Policy: p, Store: f.store, Cluster: f.member, Sealed: func() bool { return f.sealed },
		Saver: backup.New(backup.Config{NodeID: "n1", Vault: f.Vault, Audit: f.Cluster.Audit, Clock: f.Cluster.Clock, Events: f.Events}),
		Log:   slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry()),
	})
}

// look has the runner look, and returns what it would report.
func (f *fixture) look() error {
	f.t.Helper()
	f.runner.look(f.t.Context())
	return f.runner.Fault()
}

// made advances cluster time, and has the runner make a backup.
func (f *fixture) made(after time.Duration) {
	f.t.Helper()
	before := f.store.names()
	f.Cluster.Advance(after)
	if err := f.look(); err != nil {
		f.t.Fatal(err)
	}
	now := f.store.names()
	if !slices.ContainsFunc(now, func(n string) bool { return !slices.Contains(before, n) }) {
		f.t.Fatalf("no backup was made after %v: %v", after, now)
	}
}

func (f *fixture) failures(step string) float64 {
	return testutil.ToFloat64(f.runner.cfg.Metrics.failures.WithLabelValues(step))
}

// events returns how many records of a name there are.
func (f *fixture) events(name string) (n int) {
	for _, e := range enginetest.EventNames(f.Records()) {
		if e == name {
			n++
		}
	}
	return n
}

func TestSchedule(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Policy{Every: time.Hour})
	f.made(0)
	first := f.store.names()
	if n := f.events(backup.EventName); n != 1 {
		t.Errorf("%d records of a backup", n)
	}
	f.Cluster.Advance(59 * time.Minute)
	if err := f.look(); err != nil || !slices.Equal(f.store.names(), first) {
		t.Errorf("after 59 minutes there are %v: %v", f.store.names(), err)
	}
	f.made(8 * time.Minute)
	if got := testutil.ToFloat64(f.runner.cfg.Metrics.success); got != float64(f.Cluster.State().Time()/int64(time.Second)) {
		t.Errorf("the metric has %v as the time of the newest backup", got)
	}
	// Another leader continues where this one stopped, as the store says when the last was.
	f.runner = f.newRunner(f.runner.cfg.Policy)
	if err := f.look(); err != nil || len(f.store.names()) != 2 {
		t.Errorf("a new leader has made another: %v, %v", f.store.names(), err)
	}
	f.made(67 * time.Minute)

	// What was stored opens with the shares.
	file := f.store.objects[f.store.names()[2]]
	r := bytes.NewReader(file)
	h, err := backup.ReadHeader(r)
	if err != nil {
		t.Fatal(err)
	}
	k, err := backup.NewKeys(h, false)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for _, s := range f.shares[:2] {
		if _, _, err := k.Add([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	content, err := k.Read(r, nil, nil)
	if err != nil || !h.Audit {
		t.Fatalf("Read: %v; with audit log: %v", err, h.Audit)
	}
	if keys, _, err := k.Materials(content.State); keys != 1 || err != nil {
		t.Errorf("%d keys: %v", keys, err)
	}
}

// TestOnlyTheLeader has nodes look that may not or cannot make a backup.
func TestOnlyTheLeader(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Policy{Every: time.Hour})
	f.store.putErr = errors.New("store is down")
	if f.look() == nil {
		t.Fatal("no fault although the store is down")
	}
	f.member.follows = true
	if err := f.look(); err != nil || len(f.store.names()) != 0 {
		t.Errorf("a follower made %v and reports %v", f.store.names(), err)
	}
	f.member.follows, f.sealed = false, true
	if err := f.look(); err != nil || len(f.store.names()) != 0 {
		t.Errorf("a sealed node made %v and reports %v", f.store.names(), err)
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Policy{Every: time.Hour, Keep: 3})
	cluster, _ := f.member.State().Cluster()
	strangers := map[string][]byte{
		"notes.txt": []byte("mine"),
		// Looks like one of ours, and is not: another cluster, and a file that is no backup.
		"conclave-" + strings.Repeat("ab", 16) + "-20200101T000000Z-" + strings.Repeat("cd", 16) + ".backup": []byte("x"),
		"conclave-" + hex.EncodeToString(cluster.Id) + "-20200101T000000Z.backup":                            []byte("x"),
	}
	fake := "conclave-" + hex.EncodeToString(cluster.Id) + "-20200101T000000Z-" + strings.Repeat("cd", 16) + ".backup"
	maps.Copy(f.store.objects, strangers)
	f.store.objects[fake] = []byte("not a backup")
	var made []string
	for range 6 {
		f.made(2 * time.Hour)
		for _, n := range f.store.names() {
			if strangers[n] == nil && n != fake && !slices.Contains(made, n) {
				made = append(made, n)
			}
		}
	}
	for name := range strangers {
		if f.store.objects[name] == nil {
			t.Errorf("%s was removed", name)
		}
		delete(f.store.objects, name)
	}
	if f.store.objects[fake] == nil {
		t.Error("a file that is not a backup was removed")
	}
	delete(f.store.objects, fake)
	if got := f.store.names(); !slices.Equal(got, made[3:]) {
		t.Errorf("kept are %v of %v", got, made)
	}
	if n := f.events("RemoveSnapshots"); n == 0 {
		t.Error("the removal of backups is not recorded")
	}
	if f.failures(failedRemove) == 0 || f.store.swept == 0 {
		t.Error("a file that cannot be removed is not reported, or nothing was swept")
	}
}

func TestRetentionByAge(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Policy{Every: time.Hour, KeepFor: 5 * time.Hour})
	for range 4 {
		f.made(2 * time.Hour)
	}
	if got := f.store.names(); len(got) != 3 {
		t.Errorf("kept are %v", got)
	}
	f.made(20 * time.Hour)
	if got := f.store.names(); len(got) != 1 {
		t.Errorf("kept are %v", got)
	}
	// However old the last good one is: while none can be made, none is removed.
	last := f.store.names()
	f.store.putErr = errors.New("store is full")
	f.Cluster.Advance(20 * time.Hour)
	if f.look() == nil || !slices.Equal(f.store.names(), last) {
		t.Errorf("kept are %v, want %v", f.store.names(), last)
	}
}

// TestRemovalIsRecordedFirst has no backup removed that the audit log cannot say it of.
func TestRemovalIsRecordedFirst(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Policy{Every: time.Hour, Keep: 1})
	f.made(0)
	f.Cluster.Advance(2 * time.Hour)
	f.runner.cfg.Saver = refusing{f.runner.cfg.Saver}
	if err := f.look(); err != nil {
		t.Fatal(err)
	}
	if len(f.store.names()) != 2 || f.failures(failedRemove) != 1 {
		t.Errorf("kept are %v", f.store.names())
	}
}

type refusing struct{ Saver }

func (refusing) RecordRemoval(context.Context, string, []string) error {
	return errors.New("no leader")
}

// TestSpoiled has the store keep something else than what was written. That counts for
// nothing, and the last good one stays.
func TestSpoiled(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func([]byte) []byte{
		"cut short": func(b []byte) []byte { return b[:len(b)-100] },
		"empty":     func([]byte) []byte { return nil },
		"bit flip":  func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"extended":  func(b []byte) []byte { return append(b, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, Policy{Every: time.Hour, Keep: 1})
			f.made(0)
			good := f.store.names()
			f.Cluster.Advance(3 * time.Hour)
			f.store.spoil = spoil
			if err := f.look(); err == nil || f.failures(failedCheck) != 1 {
				t.Errorf("a spoiled backup counts: %v", err)
			}
			if got := f.store.names(); !slices.Equal(got, good) {
				t.Errorf("kept are %v, want %v", got, good)
			}
			f.store.spoil = nil
			if err := f.look(); err != nil || len(f.store.names()) != 1 || f.store.names()[0] == good[0] {
				t.Errorf("the next one: %v, %v", f.store.names(), err)
			}
		})
	}
	// The store returns another backup, which is authentic.
	f := newFixture(t, Policy{Every: time.Hour, Keep: 1})
	f.made(0)
	old := bytes.Clone(f.store.objects[f.store.names()[0]])
	f.Cluster.Advance(3 * time.Hour)
	f.store.spoil = func([]byte) []byte { return old }
	if f.look() == nil || len(f.store.names()) != 1 {
		t.Errorf("another backup than the one that was stored counts: %v", f.store.names())
	}
}

// TestFuture has a store with backups of a time that has not come, as after a restore of an
// older backup. They are no reason to make none, and stay.
func TestFuture(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Policy{Every: time.Hour, Keep: 2})
	cluster, now := f.runner.clusterNow()
	future := name{cluster: hex.EncodeToString(cluster), at: now.Add(1000 * time.Hour), id: strings.Repeat("cd", 16)}
	f.store.objects[future.String()] = []byte("x")
	for range 4 {
		f.Cluster.Advance(2 * time.Hour)
		if err := f.look(); err != nil {
			t.Fatal(err)
		}
	}
	if got := f.store.names(); len(got) != 3 || got[2] != future.String() {
		t.Errorf("kept are %v", got)
	}
}

// TestRetries has attempts fail: the next one is soon, but not at once.
func TestRetries(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Policy{Every: time.Hour})
	f.store.listErr = errors.New("store is down")
	var waits []time.Duration
	for range 8 {
		waits = append(waits, f.runner.look(t.Context()))
	}
	if want := []time.Duration{1, 2, 4, 8, 16, 30, 30, 30}; !slices.EqualFunc(waits, want, func(a, b time.Duration) bool { return a == b*time.Minute }) {
		t.Errorf("waits %v", waits)
	}
	f.store.listErr = nil
	if wait := f.runner.look(t.Context()); wait != f.runner.tick || f.runner.Fault() != nil {
		t.Errorf("after a success: wait %v, fault %v", wait, f.runner.Fault())
	}
}

// TestListsWhenDue has a node look into the store when it begins to lead and when a backup is
// due, and not in between. What another node made meanwhile counts.
func TestListsWhenDue(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Policy{Every: time.Hour, Keep: 2})
	look := func(what string, lists, backups int) {
		t.Helper()
		before := f.store.listed
		for range 3 {
			if err := f.look(); err != nil {
				t.Fatal(err)
			}
		}
		if got := f.store.listed - before; got != lists || len(f.store.names()) != backups {
			t.Errorf("%s: the store was listed %d times and has %d backups, want %d and %d", what, got, len(f.store.names()), lists, backups)
		}
	}
	// Making one lists a second time, for those that are too old.
	look("the first backup", 2, 1)
	f.Cluster.Advance(30 * time.Minute)
	look("before the next one is due", 0, 1)

	// Another node with the same store leads for a while, and makes the next one.
	f.member.follows = true
	look("while another node leads", 0, 1)
	f.member.follows = false
	other := f.newRunner(Policy{Every: time.Hour, Keep: 2})
	look("as a leader again", 1, 1)
	f.Cluster.Advance(time.Hour)
	other.look(t.Context())
	look("when it is due, and was made by another", 1, 2)
	f.Cluster.Advance(2 * time.Hour)
	look("when it is due", 2, 2)

	// A failure is no reason to wait until the next one.
	f.Cluster.Advance(2 * time.Hour)
	f.store.putErr = errors.New("full")
	before := f.store.listed
	for range 3 {
		if f.look() == nil {
			t.Error("a backup that failed is not reported")
		}
	}
	if got := f.store.listed - before; got != 3 {
		t.Errorf("three attempts looked %d times", got)
	}
}

// TestRun has Run end with its context.
func TestRun(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Policy{Every: time.Hour})
	f.runner.tick = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); f.runner.Run(ctx) }()
	enginetest.WaitFor(t, "a backup", func() bool { return len(f.store.names()) == 1 })
	cancel()
	<-done
}

func TestPolicy(t *testing.T) {
	t.Parallel()
	for _, bad := range []Policy{{}, {Every: time.Second}, {Every: time.Hour, Keep: -1}, {Every: time.Hour, KeepFor: -1}, {Every: time.Hour, KeepFor: time.Minute}} {
		if bad.Validate() == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
	if err := (Policy{Every: time.Hour, Keep: 1, KeepFor: time.Hour}).Validate(); err != nil {
		t.Error(err)
	}
}
