package raftlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"

	"github.com/conclavekms/conclave/auditlog"
)

// sumSize is the length of the checksum in each stored value: SHA-256, truncated. It
// detects damage only. Anyone who can write to the disk can recompute it.
const sumSize = 16

// Hooks make operations of the log store fail or hang in tests.
type Hooks struct {
	// Before runs before a write reaches the disk, and After once it has. If a hook returns
	// an error the write fails, and if it does not return the write hangs. op is "store"
	// for a write to the journal, "flush" for moving its entries to bbolt, "delete", "set"
	// or "probe". Flushes and probes run concurrently with the others.
	Before, After func(op string) error
}

// Store is Raft's log store and stable store on bbolt, with a journal for the newest
// entries of the log. Every value is verified when it is read. The first failed write or
// damaged value stops the store for good: it is unknown what a failed fsync left on the
// disk, and the kernel marks the pages as clean afterwards, so a retry could lose data
// silently.
type Store struct {
	db      *raftboltdb.BoltStore
	journal *journal
	hooks   Hooks
	limit   time.Duration // the longest that a write may take
	fault   func(error)

	failed   atomic.Pointer[storeFault]
	faulted  sync.Once
	meter    *Meter
	gate     *Gate // passed before entries are stored
	probe    *diskProbe
	appended atomic.Int64
	stop     chan struct{}
	stopped  sync.WaitGroup

	latency *prometheus.HistogramVec

	voteMu   sync.Mutex
	voteTerm *uint64 // set while the term of a vote waits for its candidate
}

type storeFault struct{ err error }

const (
	boltFile = "raft.db"
	// lockPatience is how long to wait for a file that another process has open.
	lockPatience = time.Second
	// flushAfter is how long entries stay in the journal, at most, if it does not fill up
	// before.
	flushAfter = 250 * time.Millisecond
)

// keyJournal has the ids of the journal's files once the journal exists.
var keyJournal = []byte("conclave.journal")

// Open opens or creates the store in dir. A write may take as long as limit. fault is
// called once, on its own goroutine, when an error stops the store. If latency is not nil,
// it observes the duration of each write in seconds, labelled by op as in Hooks.
func Open(dir string, limit time.Duration, hooks Hooks, latency *prometheus.HistogramVec, fault func(error)) (*Store, error) {
	path := filepath.Join(dir, boltFile)
	if err := check(path, lockPatience); err != nil {
		return nil, fmt.Errorf("opening Raft log: %w", err)
	}
	var db *raftboltdb.BoltStore
	err := Guard(func() (err error) {
		db, err = raftboltdb.New(raftboltdb.Options{
			Path: path,
			BoltOptions: &bbolt.Options{
				Timeout: lockPatience,
				// The freelist is rebuilt when the file is opened. Otherwise it would be
				// written with each append, which after a burst would be most of the cost
				// of an append.
				NoFreelistSync: true,
				FreelistType:   bbolt.FreelistMapType,
			},
			MsgpackUseNewTimeFormat: true,
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening Raft log: %w", err)
	}
	s := &Store{
		db: db, hooks: hooks, limit: limit, fault: fault, latency: latency,
		meter: NewMeter(), gate: NewGate(), stop: make(chan struct{}),
	}
	s.stopped.Go(s.watch)
	err = s.openJournal(dir)
	if err == nil {
		s.probe, err = openProbe(dir)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening Raft log: %w", err), s.Close())
	}
	s.stopped.Go(s.flushes)
	return s, nil
}

// Meter returns the meter of the store's writes.
func (s *Store) Meter() *Meter { return s.meter }

// Gate returns the gate that entries pass before they are stored.
func (s *Store) Gate() *Gate { return s.gate }

// WaitForSpace is called by a write that found no space on the disk, and returns when the
// write should be tried again. It returns false once the store is closed.
func (s *Store) WaitForSpace(error) bool { return s.gate.Wait(s.meter) }

func (s *Store) noSpace() auditlog.NoSpace { return s.WaitForSpace }

// Appended returns the number of bytes of entries stored since Open, as corrected by
// AdjustAppended.
func (s *Store) Appended() int64 { return s.appended.Load() }

// AdjustAppended adds to Appended: the entries that existed at Open, or, as a negative
// number, those that a snapshot covers.
func (s *Store) AdjustAppended(bytes int64) { s.appended.Add(bytes) }

// openJournal opens or creates the journal and moves the entries in it to bbolt.
func (s *Store) openJournal(dir string) error {
	known, err := s.get(keyJournal)
	if errors.Is(err, raftboltdb.ErrKeyNotFound) {
		// Any existing journal files were never used: the ids are stored before their first
		// use.
		err = makeJournal(dir)
	}
	if err != nil {
		return err
	}
	j, err := openJournal(dir, journalBytes)
	if err != nil {
		return err
	}
	for _, f := range j.files {
		f.disk = patientDisk{f.disk, s.WaitForSpace}
	}
	s.journal = j
	if known == nil {
		err = s.put(keyJournal, j.ids())
	} else if !bytes.Equal(known, j.ids()) {
		err = fmt.Errorf("%w: the journal belongs to another store", ErrCorrupt)
	}
	if err != nil {
		return err
	}
	return s.write("flush", func() error { return j.replay(s.restore) })
}

// restore stores the entries that were in the journal when the process stopped. bbolt may
// have them already, but cannot have others in their place, because DeleteRange empties the
// journal first.
func (s *Store) restore(logs []sealedLog) error {
	for _, l := range logs {
		var old raft.Log
		err := s.GetLog(l.Index, &old)
		if err == nil && old.Term != l.Term {
			err = fmt.Errorf("%w: entry %d has term %d, and term %d in the journal", ErrCorrupt, l.Index, old.Term, l.Term)
		}
		if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
			return err
		}
	}
	return s.storeInBolt(logs)
}

// flushes moves entries from the journal to bbolt until the store stops.
func (s *Store) flushes() {
	for {
		select {
		case <-s.journal.filled:
		case <-s.stop:
			return
		}
		wait := time.NewTimer(flushAfter)
		select {
		case <-wait.C:
		case <-s.journal.hurry:
			wait.Stop()
		case <-s.stop:
			wait.Stop()
			return
		}
		if s.flush() != nil {
			return // the store has stopped
		}
	}
}

func (s *Store) flush() error {
	err := s.write("flush", func() error { return s.journal.flush(s.storeInBolt) })
	if err != nil {
		s.journal.stop()
	}
	return err
}

// Guard turns a panic of f into ErrCorrupt. bbolt panics on malformed pages, and Raft on
// entries that it cannot read.
func Guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, p)
		}
	}()
	return f()
}

// watch beats the pulse and stops the store if a write does not return in time. Time during
// which this process was paused does not count.
func (s *Store) watch() {
	t := time.NewTicker(max(min(s.limit/10, pulseBeat), time.Millisecond))
	defer t.Stop()
	for {
		s.meter.pulse.beat(time.Now())
		if s.meter.stuck() > s.limit {
			s.fail(fmt.Errorf("%w: a write takes more than %v", ErrDiskStuck, s.limit))
		}
		select {
		case <-t.C:
		case <-s.stop:
			return
		}
	}
}

// fail stops the store.
func (s *Store) fail(err error) error {
	s.failed.CompareAndSwap(nil, &storeFault{err})
	s.faulted.Do(func() {
		if s.fault != nil {
			go s.fault(s.failed.Load().err)
		}
	})
	return s.failed.Load().err
}

// Err returns the error that stopped the store, or nil.
func (s *Store) Err() error {
	if f := s.failed.Load(); f != nil {
		return f.err
	}
	return nil
}

// kindOf returns who waits for a write.
func kindOf(op string) writeKind {
	switch op {
	case "store":
		return writeCommit
	case "set":
		return writeAwaited
	}
	return writeApart
}

// write runs one write.
func (s *Store) write(op string, f func() error) error {
	if err := s.Err(); err != nil {
		return err
	}
	write := s.meter.begin(kindOf(op))
	err := Guard(func() error {
		if s.hooks.Before != nil {
			if err := s.hooks.Before(op); err != nil {
				return err
			}
		}
		if err := f(); err != nil {
			return err
		}
		if s.hooks.After != nil {
			return s.hooks.After(op)
		}
		return nil
	})
	took := s.meter.end(write)
	if s.latency != nil {
		s.latency.WithLabelValues(op).Observe(took.Seconds())
	}
	if err != nil {
		return s.fail(fmt.Errorf("%w: %s: %w", ErrStorage, op, err))
	}
	return s.Err() // the watchdog may have stopped the store meanwhile
}

// read runs one read. An error other than "not found" stops the store.
func (s *Store) read(what string, f func() error) error {
	if err := s.Err(); err != nil {
		return err
	}
	err := Guard(f)
	if err == nil || errors.Is(err, raft.ErrLogNotFound) || errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	if !errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%w: %w", ErrStorage, err)
	}
	return s.fail(fmt.Errorf("reading %s: %w", what, err))
}

// logSum returns the checksum of an entry. It covers all fields with their lengths, so that
// no byte can move from one field to the next.
func logSum(l *raft.Log, extensions []byte) [sumSize]byte {
	h := sha256.New()
	sumNumbers(h, l.Index, l.Term, uint64(l.Type), uint64(len(l.Data)), uint64(len(extensions)))
	if l.AppendedAt.IsZero() {
		sumNumbers(h, 0)
	} else {
		sumNumbers(h, 1, uint64(l.AppendedAt.Unix()), uint64(l.AppendedAt.Nanosecond()))
	}
	h.Write(l.Data)
	h.Write(extensions)
	return truncated(h)
}

func sumNumbers(h hash.Hash, ns ...uint64) {
	var b [8]byte
	for _, n := range ns {
		binary.BigEndian.PutUint64(b[:], n)
		h.Write(b[:])
	}
}

func truncated(h hash.Hash) (t [sumSize]byte) {
	var full [sha256.Size]byte
	h.Sum(full[:0])
	copy(t[:], full[:])
	return t
}

// StoreLog implements raft.LogStore.
func (s *Store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (s *Store) StoreLogs(logs []*raft.Log) error {
	sealed := sealLogs(logs)
	if err := s.gate.pass(s.meter); err != nil {
		return err
	}
	err := s.write("store", func() error {
		if fits, err := s.journal.append(sealed); fits || err != nil {
			return err
		}
		if err := s.journal.drain(); err != nil {
			return err
		}
		return s.storeInBolt(sealed)
	})
	if err == nil && len(logs) > 0 {
		var size int64
		for _, l := range logs {
			size += int64(len(l.Data))
		}
		s.appended.Add(size)
		s.meter.keep(logs[0].Index, logs[len(logs)-1].Index)
	}
	return err
}

// storeInBolt stores entries in one transaction. It stores copies, with the checksum in
// front of the extensions, because Raft sends the entries to followers at the same time.
func (s *Store) storeInBolt(sealed []sealedLog) error {
	logs := make([]*raft.Log, len(sealed))
	for i, l := range sealed {
		c := *l.Log
		c.Extensions = slices.Concat(l.sum[:], l.Extensions)
		logs[i] = &c
	}
	return s.noSpace().Retry(func() error { return s.db.StoreLogs(logs) })
}

// GetLog implements raft.LogStore.
func (s *Store) GetLog(index uint64, l *raft.Log) error {
	return s.read(fmt.Sprintf("Raft log entry %d", index), func() error {
		if pending, ok := s.journal.get(index); ok {
			*l = *pending
			return nil
		}
		var got raft.Log
		err := s.db.GetLog(index, &got)
		if errors.Is(err, raft.ErrLogNotFound) {
			return err
		}
		if err != nil { // bbolt reads from a memory mapping, so this is a decoding error
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if len(got.Extensions) < sumSize || got.Index != index {
			return fmt.Errorf("%w: not an entry of this index", ErrCorrupt)
		}
		rest := got.Extensions[sumSize:]
		if sum := logSum(&got, rest); !bytes.Equal(sum[:], got.Extensions[:sumSize]) {
			return fmt.Errorf("%w: checksum differs", ErrCorrupt)
		}
		got.Extensions = nil
		if len(rest) > 0 {
			got.Extensions = rest
		}
		*l = got
		return nil
	})
}

// DeleteRange implements raft.LogStore. It empties the journal first, since a restart would
// otherwise bring back the deleted entries.
func (s *Store) DeleteRange(lo, hi uint64) error {
	return s.write("delete", func() error {
		if err := s.journal.drain(); err != nil {
			return err
		}
		return s.noSpace().Retry(func() error { return s.db.DeleteRange(lo, hi) })
	})
}

// FirstIndex implements raft.LogStore.
func (s *Store) FirstIndex() (i uint64, err error) {
	err = s.read("first Raft index", func() error { i, err = s.journal.firstIndex(s.db.FirstIndex); return err })
	return i, err
}

// LastIndex implements raft.LogStore.
func (s *Store) LastIndex() (i uint64, err error) {
	err = s.read("last Raft index", func() error { i, err = s.journal.lastIndex(s.db.LastIndex); return err })
	return i, err
}

// Close closes the files. It does not return while a write hangs.
func (s *Store) Close() error {
	s.gate.Close()          // ends all waits for space
	s.faulted.Do(func() {}) // closing must not report an error
	if s.journal != nil && s.Err() == nil {
		_ = s.flush() // the next start flushes what this cannot
	}
	s.failed.CompareAndSwap(nil, &storeFault{fmt.Errorf("%w: closed", ErrStorage)})
	close(s.stop)
	if s.probe != nil {
		s.probe.close()
	}
	if s.journal != nil {
		s.journal.stop()
	}
	s.stopped.Wait()
	var err error
	if s.journal != nil {
		err = s.journal.close()
	}
	if s.probe != nil {
		err = errors.Join(err, s.probe.file.Close())
	}
	return errors.Join(err, Guard(s.db.Close))
}

// RaftStore is the store in the form that Raft uses. Where Raft would panic on an error, it
// ends the calling goroutine instead: by then the node has left the network, and its owner
// ends the process in order.
type RaftStore struct{ *Store }

// ForRaft returns the store in the form that Raft uses.
func (s *Store) ForRaft() RaftStore { return RaftStore{s} }

// GetLog implements raft.LogStore.
func (s RaftStore) GetLog(index uint64, l *raft.Log) error {
	err := s.Store.GetLog(index, l)
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrStorage) || errors.Is(err, ErrDiskStuck) {
		runtime.Goexit()
	}
	return err
}

// SetUint64 implements raft.StableStore.
func (s RaftStore) SetUint64(key []byte, v uint64) error {
	err := s.Store.SetUint64(key, v)
	if err != nil {
		runtime.Goexit()
	}
	return err
}
