package cluster

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// machine is the state machine that Raft drives. The mutex lets other goroutines call what
// fsm.FSM allows only on the apply goroutine.
type machine struct {
	mu  sync.Mutex
	fsm *fsm.FSM
	// restored is called with the index of each snapshot that was restored.
	restored func(index uint64)
	// persisted is called with the time that each snapshot took to write.
	persisted func(time.Duration)
}

// Apply implements raft.FSM.
func (m *machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fsm.ApplyBatch(logs)
}

// Snapshot implements raft.FSM.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.fsm.Snapshot()
	if err != nil {
		return nil, err
	}
	return ownSnapshot{s, m.fsm.Current().Index(), m.persisted}, nil
}

// ownSnapshot is a snapshot of this node's state that reports how long it took to write.
type ownSnapshot struct {
	raft.FSMSnapshot
	index uint64
	took  func(time.Duration)
}

// Persist implements raft.FSMSnapshot. Raft's barriers have an index but do not reach the
// state machine. If a barrier was the last entry, the index of the snapshot would not be
// the one that is attested, so Persist fails and the snapshot is taken after the next
// entry.
func (s ownSnapshot) Persist(sink raft.SnapshotSink) error {
	start := time.Now()
	if to, ok := sink.(*snapshotSink); ok {
		if to.meta.Index != s.index {
			return errors.Join(errSnapshotBarrier, sink.Cancel())
		}
		to.own = true
	}
	if err := s.FSMSnapshot.Persist(&pacedSink{SnapshotSink: sink, since: start}); err != nil {
		return err
	}
	s.took(time.Since(start))
	return nil
}

var errSnapshotBarrier = errors.New("the newest entry is a barrier: the snapshot waits for another")

// pacedSink pauses after each block so that a snapshot uses a processor for half of the
// time only. A snapshot of 100,000 keys is a second of work in blocks of some milliseconds,
// and nothing waits for it. All nodes take snapshots after the same number of entries, and
// so at about the same time.
type pacedSink struct {
	raft.SnapshotSink
	since time.Time // when the last block was written
}

// maxPause keeps a slow disk from slowing a snapshot down much further.
const maxPause = 10 * time.Millisecond

// Write implements io.Writer.
func (s *pacedSink) Write(b []byte) (int, error) {
	time.Sleep(min(time.Since(s.since), maxPause))
	n, err := s.SnapshotSink.Write(b)
	s.since = time.Now()
	return n, err
}

// Restore implements raft.FSM.
func (m *machine) Restore(r io.ReadCloser) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.fsm.Restore(r); err != nil {
		return err
	}
	m.restored(m.fsm.Current().Index())
	return nil
}

// watermark returns the watermark that the state has for another node.
func (m *machine) watermark(node string) (uint64, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fsm.Watermark(node)
}

// applied tracks the newest applied index, for waiting callers and for the evidence of
// time.
type applied struct {
	mu      sync.Mutex
	index   uint64
	at      time.Time // monotonic
	waiters map[*appliedWaiter]struct{}
	check   atomic.Pointer[fsmpb.StateCheck]
}

type appliedWaiter struct {
	index uint64
	done  chan struct{}
}

// advance must be called on the apply goroutine.
func (a *applied) advance(index uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.index, a.at = index, time.Now()
	for w := range a.waiters {
		if w.index <= index {
			close(w.done)
			delete(a.waiters, w)
		}
	}
}

// since returns how long ago the newest entry was applied on this node, or 0 if none was.
func (a *applied) since() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at.IsZero() {
		return 0
	}
	return time.Since(a.at)
}

// wait returns once index is applied.
func (a *applied) wait(ctx context.Context, index uint64, stop <-chan struct{}) error {
	a.mu.Lock()
	if a.index >= index {
		a.mu.Unlock()
		return nil
	}
	w := &appliedWaiter{index: index, done: make(chan struct{})}
	if a.waiters == nil {
		a.waiters = make(map[*appliedWaiter]struct{})
	}
	a.waiters[w] = struct{}{}
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.waiters, w)
	}()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-stop:
		return ErrShutdown
	}
}
