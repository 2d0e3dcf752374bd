package cluster

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"
)

// sumSize is the length of the checksum in each stored value: SHA-256,
// truncated. It finds damage; it is no defence against a writer, who would need
// no key to recompute it.
const sumSize = 16

// StoreHooks break the log store for tests.
type StoreHooks struct {
	// Before runs before a write reaches the disk, After when it did. An error
	// fails the write; not returning hangs it. op is "store", "delete" or "set".
	Before, After func(op string) error
	// Read may change what a read found, before it is verified.
	Read func(*raft.Log)
}

// store is Raft's log and stable store on bbolt. Every value is verified when it
// is read. The first failed write or damaged value stops it for good: what a
// failed fsync left on the disk cannot be known, and the pages count as clean
// afterwards, so trying again would lose data in silence.
type store struct {
	db    *raftboltdb.BoltStore
	hooks StoreHooks
	limit time.Duration // a write takes at most
	fault func(error)

	failed   atomic.Pointer[storeFault]
	faulted  sync.Once
	running  sync.Mutex // guards started: one write at a time, as bbolt has it
	started  time.Time  // of the write in progress, or zero
	appended atomic.Int64
	stop     chan struct{}
	stopped  sync.WaitGroup

	latency *prometheus.HistogramVec

	voteMu   sync.Mutex
	voteTerm *uint64 // set, waiting for the candidate
}

type storeFault struct{ err error }

// openStore opens or creates the store. fault is called once, on its own
// goroutine, when the store stops.
func openStore(path string, limit time.Duration, hooks StoreHooks, latency *prometheus.HistogramVec, fault func(error)) (*store, error) {
	var db *raftboltdb.BoltStore
	err := guard(func() (err error) {
		db, err = raftboltdb.New(raftboltdb.Options{
			Path: path,
			BoltOptions: &bbolt.Options{
				Timeout: time.Second, // another process has the file
				// The freelist of a log is rebuilt at open and would otherwise be
				// written with each append: after a burst that is what each
				// append costs.
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
	s := &store{db: db, hooks: hooks, limit: limit, fault: fault, latency: latency, stop: make(chan struct{})}
	s.stopped.Add(1)
	go s.watch()
	return s, nil
}

// guard turns a panic into ErrCorrupt: bbolt panics on pages that make no sense.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, p)
		}
	}()
	return f()
}

// watch reports a write that does not return.
func (s *store) watch() {
	defer s.stopped.Done()
	t := time.NewTicker(max(s.limit/10, time.Millisecond))
	defer t.Stop()
	for {
		select {
		case <-t.C:
			s.running.Lock()
			stuck := !s.started.IsZero() && time.Since(s.started) > s.limit
			s.running.Unlock()
			if stuck {
				s.fail(fmt.Errorf("%w: a write takes more than %v", ErrDiskStuck, s.limit))
			}
		case <-s.stop:
			return
		}
	}
}

// fail stops the store.
func (s *store) fail(err error) error {
	s.failed.CompareAndSwap(nil, &storeFault{err})
	s.faulted.Do(func() {
		if s.fault != nil {
			go s.fault(s.failed.Load().err)
		}
	})
	return s.failed.Load().err
}

func (s *store) check() error {
	if f := s.failed.Load(); f != nil {
		return f.err
	}
	return nil
}

// write runs one write transaction.
func (s *store) write(op string, f func() error) error {
	if err := s.check(); err != nil {
		return err
	}
	start := time.Now()
	s.running.Lock()
	s.started = start
	s.running.Unlock()
	err := guard(func() error {
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
	s.running.Lock()
	s.started = time.Time{}
	s.running.Unlock()
	if s.latency != nil {
		s.latency.WithLabelValues(op).Observe(time.Since(start).Seconds())
	}
	if err != nil {
		return s.fail(fmt.Errorf("%w: %s: %w", ErrStorage, op, err))
	}
	return s.check() // the watchdog may have given up on it meanwhile
}

// read runs one read. An error other than "not there" stops the store.
func (s *store) read(what string, f func() error) error {
	if err := s.check(); err != nil {
		return err
	}
	err := guard(f)
	if err == nil || errors.Is(err, raft.ErrLogNotFound) || errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	if !errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%w: %w", ErrStorage, err)
	}
	return s.fail(fmt.Errorf("reading %s: %w", what, err))
}

// logSum is the checksum of an entry: of all its fields, with lengths, so that
// no byte can move from one to the next.
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
func (s *store) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore. The entries are copied, since Raft sends
// them to followers at the same time; the checksum travels before the
// extensions of the copy.
func (s *store) StoreLogs(logs []*raft.Log) error {
	sealed := make([]*raft.Log, len(logs))
	var size int64
	for i, l := range logs {
		c := *l
		sum := logSum(l, l.Extensions)
		c.Extensions = append(sum[:], l.Extensions...)
		sealed[i] = &c
		size += int64(len(l.Data))
	}
	err := s.write("store", func() error { return s.db.StoreLogs(sealed) })
	if err == nil {
		s.appended.Add(size)
	}
	return err
}

// GetLog implements raft.LogStore.
func (s *store) GetLog(index uint64, l *raft.Log) error {
	return s.read(fmt.Sprintf("Raft log entry %d", index), func() error {
		var got raft.Log
		err := s.db.GetLog(index, &got)
		if errors.Is(err, raft.ErrLogNotFound) {
			return err
		}
		if err != nil { // bbolt reads from a mapping: it is the decoding that failed
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if s.hooks.Read != nil {
			s.hooks.Read(&got)
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

// DeleteRange implements raft.LogStore.
func (s *store) DeleteRange(lo, hi uint64) error {
	return s.write("delete", func() error { return s.db.DeleteRange(lo, hi) })
}

// FirstIndex implements raft.LogStore.
func (s *store) FirstIndex() (i uint64, err error) {
	err = s.read("first Raft index", func() error { i, err = s.db.FirstIndex(); return err })
	return i, err
}

// LastIndex implements raft.LogStore.
func (s *store) LastIndex() (i uint64, err error) {
	err = s.read("last Raft index", func() error { i, err = s.db.LastIndex(); return err })
	return i, err
}

// close closes the files. A write that hangs keeps it from returning.
func (s *store) close() error {
	s.failed.CompareAndSwap(nil, &storeFault{fmt.Errorf("%w: closed", ErrStorage)})
	s.faulted.Do(func() {}) // closing is no fault
	close(s.stop)
	s.stopped.Wait()
	return guard(s.db.Close)
}

// raftStore is the store as Raft has it. Where Raft would panic on an error, it
// ends the goroutine that asked instead: the node has left the network by then,
// and its owner learns of the fault and ends the process in order.
type raftStore struct{ *store }

func (s raftStore) GetLog(index uint64, l *raft.Log) error {
	err := s.store.GetLog(index, l)
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrStorage) || errors.Is(err, ErrDiskStuck) {
		runtime.Goexit()
	}
	return err
}

func (s raftStore) SetUint64(key []byte, v uint64) error {
	err := s.store.SetUint64(key, v)
	if err != nil {
		runtime.Goexit()
	}
	return err
}
