package auditfile

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/localfile"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// memoryLog is an audit log in memory. Its records cannot be decrypted, which does not matter here.
type memoryLog struct {
	mu      sync.Mutex
	entries []auditlog.Entry
	changed chan struct{}
	short   atomic.Bool // something behind the end was read
}

func (l *memoryLog) Size() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(len(l.entries))
}

func (l *memoryLog) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

func (l *memoryLog) Read(from uint64, max, _ int) ([]auditlog.Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if from >= uint64(len(l.entries)) {
		l.short.Store(true)
		return nil, nil
	}
	rest := l.entries[from:]
	return rest[:min(max, len(rest))], nil
}

// set makes the log have so many records, which differ from those of another kind of log.
func (l *memoryLog) set(records int, kind byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = nil
	for i := range records {
		l.entries = append(l.entries, auditlog.Entry{Index: uint64(i), Body: []byte{kind}})
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

type fixture struct {
	t      *testing.T
	log    *memoryLog
	vault  *vault.Vault
	path   string
	mu     sync.Mutex
	ranges [][2]uint64 // that Each got
	fail   error       // that Each returns
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	v, err := vault.New(time.Now, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	o, unseal, err := v.Initialise(&fsmpb.Cluster{Id: bytes.Repeat([]byte{1}, 16), Created: 1, Shares: &fsmpb.ShareSet{Id: make([]byte, 16), Epoch: 1}})
	if err != nil {
		t.Fatal(err)
	}
	unseal.Destroy()
	v.Install(o)
	return &fixture{t: t, log: &memoryLog{changed: make(chan struct{})}, vault: v, path: filepath.Join(t.TempDir(), "file.db")}
}

// run runs a file until the returned function is called.
func (f *fixture) run() (file *File, stop func()) {
	file = New(Config{
		Path: f.path, Purpose: "test", Feed: &auditfeed.Feed{Log: f.log, Vault: f.vault}, AtOnce: 10, Log: slog.New(slog.DiscardHandler),
		Each: func(tx *localfile.Tx, items []auditfeed.Item) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			if v, err := tx.Get("state", []byte("progress")); err != nil || v != nil {
				f.t.Errorf("it goes on with a file that has %q (%v)", v, err)
			}
			f.ranges = append(f.ranges, [2]uint64{items[0].Entry.Index, items[len(items)-1].Entry.Index + 1})
			return f.fail
		},
	})
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		file.Run(ctx)
	}()
	return file, func() {
		cancel()
		<-done
	}
}

func (f *fixture) eventually(what string, ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("no %s", what)
		}
	}
}

// begins returns the first index that was computed from since the last call, and whether the
// ranges follow each other up to an index.
func (f *fixture) begins(upto uint64) (first uint64) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	first = f.ranges[0][0]
	next := first
	for _, r := range f.ranges {
		if r[0] != next {
			f.t.Errorf("the ranges are %v", f.ranges)
		}
		next = r[1]
	}
	if next != upto {
		f.t.Errorf("the ranges end at %d, want %d", next, upto)
	}
	f.ranges = nil
	return first
}

// TestFollows: each record is computed from once, also across restarts.
func TestFollows(t *testing.T) {
	f := newFixture(t)
	f.log.set(25, 1)
	file, stop := f.run()
	f.eventually("25 records", func() bool { return file.Has(25) })
	if first := f.begins(25); first != 0 {
		t.Errorf("it began at %d", first)
	}
	f.log.set(31, 1)
	f.eventually("31 records", func() bool { return file.Has(31) })
	if first := f.begins(31); first != 25 {
		t.Errorf("it went on at %d", first)
	}
	err := file.View(func(tx *localfile.Tx) error {
		if next, err := Next(tx); err != nil || next != 31 {
			t.Errorf("the file says %d (%v), want 31", next, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	stop()
	if file.Has(0) || !errors.Is(file.View(nil), vault.ErrSealed) {
		t.Error("a file that does not run is open")
	}
	f.log.set(40, 1)
	file, stop = f.run()
	defer func() { stop() }()
	f.eventually("40 records", func() bool { return file.Has(40) })
	if first := f.begins(40); first != 31 {
		t.Errorf("after a restart, it went on at %d", first)
	}
}

// TestShorterLog: after a crash, a node's log may lack what its file has. The file waits until
// Raft has replayed that.
func TestShorterLog(t *testing.T) {
	f := newFixture(t)
	f.log.set(20, 1)
	file, stop := f.run()
	f.eventually("20 records", func() bool { return file.Has(20) })
	stop()
	f.begins(20)
	f.log.set(15, 1)
	f.log.short.Store(false)
	file, stop = f.run()
	defer func() { stop() }()
	f.eventually("look at the log", func() bool { return f.log.short.Load() })
	f.log.set(22, 1)
	f.eventually("22 records", func() bool { return file.Has(22) })
	if first := f.begins(22); first != 20 {
		t.Errorf("it went on at %d", first)
	}
}

// TestBegunAgain: what belongs to another log, is damaged, or is found damaged is computed anew.
func TestBegunAgain(t *testing.T) {
	for name, change := range map[string]func(f *fixture){
		"another log": func(f *fixture) { f.log.set(20, 2) },
		"damage": func(f *fixture) {
			if err := os.WriteFile(f.path, bytes.Repeat([]byte{7}, 100_000), 0o600); err != nil {
				f.t.Fatal(err)
			}
		},
		"a file without a position": func(f *fixture) {
			if err := os.Remove(f.path); err != nil {
				f.t.Fatal(err)
			}
			file, err := localfile.Open(f.path, "test", 0, f.vault)
			if err == nil {
				err = errors.Join(file.Update(func(tx *localfile.Tx) error { return tx.Put("state", []byte("progress"), []byte("20")) }), file.Close())
			}
			if err != nil {
				f.t.Fatal(err)
			}
		},
		"no file": func(f *fixture) {
			if err := os.Remove(f.path); err != nil {
				f.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.log.set(20, 1)
			file, stop := f.run()
			f.eventually("20 records", func() bool { return file.Has(20) })
			stop()
			f.begins(20)
			change(f)
			file, stop = f.run()
			defer func() { stop() }()
			f.eventually("20 records", func() bool { return file.Has(20) })
			if first := f.begins(20); first != 0 {
				t.Errorf("it went on at %d", first)
			}
		})
	}
}

// TestFailure: what fails is not noted, and is tried again.
func TestFailure(t *testing.T) {
	f := newFixture(t)
	f.fail = errors.New("no room")
	f.log.set(5, 1)
	file, stop := f.run()
	defer func() { stop() }()
	f.eventually("attempt", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.ranges) > 0
	})
	f.mu.Lock()
	f.fail, f.ranges = nil, nil
	f.mu.Unlock()
	f.eventually("5 records", func() bool { return file.Has(5) })
	if first := f.begins(5); first != 0 {
		t.Errorf("it went on at %d", first)
	}
}
