package auditlog

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
)

// Options configure a log. The zero value works.
type Options struct {
	// Logger receives messages about repairs and lost entries; slog.Default()
	// if nil.
	Logger *slog.Logger
	// FS is the file system; the operating system's if nil.
	FS FS
}

// Log is a log directory that this process writes. Its methods are safe for
// concurrent use; entries are appended by one goroutine at a time.
//
// It has the locks, and decides when the log stops. Its parts have no locks: directory
// knows files, content knows which entry is where, with the tree over them, and filler
// has backfill that is not verified yet.
type Log struct {
	dir   *directory
	space *patientFS // the file system of dir, which waits for space; see OnNoSpace
	lock  io.Closer

	// The locks are taken in this order, and all of them to close the log.
	fillMu sync.Mutex // one Restore, Fill, Repair or mending of tiles at a time
	syncMu sync.Mutex // one Sync or WriteCheckpoint at a time

	mu         sync.Mutex
	failed     error
	changed    chan struct{}
	content    content
	fill       *filler // backfill in progress, or nil; its file is guarded by fillMu
	durable    uint64  // number of entries from 0 on that are durable
	checkpoint []byte
}

// Restore tells the log what the replicated state covers: the f.Size() entries
// whose tree is f, with the roots of its full segments. It is called whenever
// the state machine restored a snapshot, and before the first Append to an
// empty state.
//
// A log that holds fewer entries has a gap from then on; see Missing. A log that
// holds more entries keeps them, and compares them when they are appended again.
// If its entries are not those of f, Restore returns ErrDiverged.
func (l *Log) Restore(f Frontier, segmentRoots []Hash) error {
	l.fillMu.Lock()
	defer l.fillMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return l.failed
	}
	if folded := FoldSegments(segmentRoots); !folded.Equal(f.segments()) {
		return fmt.Errorf("%w: %d segment roots do not lead to a frontier of %d entries", ErrMalformed, len(segmentRoots), f.size)
	}
	if err := l.content.restore(f, segmentRoots); err != nil {
		return l.fail(fmt.Errorf("restoring to %d entries: %w", f.size, err))
	}
	if from, to, ok := l.missing(); ok {
		l.dir.logger.Warn("audit history is missing here", "from", from, "to", to)
	}
	return nil
}

// Append adds entries in order, with the leaf hash of each, which the caller had
// to compute for its own tree anyway. When it returns, the operating system has
// them; they are on disk only after Sync. If an entry with the same index is
// already stored, it must be the same one; otherwise Append returns ErrDiverged.
// Any error except ErrGap and ErrMalformed, which store nothing, stops the log.
func (l *Log) Append(entries []Entry, leaves []Hash) error {
	if len(entries) != len(leaves) {
		return fmt.Errorf("%w: %d leaf hashes for %d entries", ErrMalformed, len(leaves), len(entries))
	}
	for i := range entries {
		if err := entries[i].Check(); err != nil {
			return err
		}
		if i > 0 && entries[i].Index != entries[i-1].Index+1 {
			return fmt.Errorf("%w: %d after %d", ErrGap, entries[i].Index, entries[i-1].Index)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return l.failed
	}
	if !l.content.restored {
		return fmt.Errorf("%w: Restore was not called yet", ErrGap)
	}
	if len(entries) == 0 {
		return nil
	}
	if i := entries[0].Index; i > l.content.next {
		return fmt.Errorf("%w: entry %d, expected %d", ErrGap, i, l.content.next)
	}
	if err := l.content.store(entries, leaves); err != nil {
		return l.fail(err)
	}
	l.notify()
	return nil
}

// fail stops the log and returns err.
func (l *Log) fail(err error) error {
	if l.failed == nil {
		l.failed = fmt.Errorf("%w: %w", ErrFailed, err)
		l.dir.logger.Error("audit log stopped", "err", err)
		l.notify()
	}
	return err
}

// Size returns the number of entries in the tree, including those missing here.
// It is the index that the next new entry will have. Before Restore it is the
// number of entries in the files.
func (l *Log) Size() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.content.size()
}

// Changed returns a channel that is closed at the next change: when entries are
// appended or filled in, or the log stops. To follow the log, take the channel,
// read, and wait on the channel if there was nothing to read.
func (l *Log) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
		if l.failed != nil {
			close(l.changed)
		}
	}
	return l.changed
}

func (l *Log) notify() {
	if l.changed != nil {
		select {
		case <-l.changed: // already closed; Changed makes a new one
		default:
			close(l.changed)
		}
		l.changed = nil
	}
}

// Err returns why the log stopped; nil while it runs.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// Close makes everything durable, unless the log stopped, and releases the
// directory.
func (l *Log) Close() error {
	err := l.Sync()
	if errors.Is(err, ErrFailed) {
		err = nil // reported before
	}
	l.fillMu.Lock()
	defer l.fillMu.Unlock()
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(l.failed, ErrClosed) {
		return nil
	}
	if l.failed == nil {
		l.failed = ErrClosed
	} else {
		l.failed = fmt.Errorf("%w; %w", l.failed, ErrClosed)
	}
	l.notify()
	return errors.Join(err, l.release())
}

// release closes all files and releases the lock of the directory.
func (l *Log) release() error {
	var err error
	runs := l.content.files()
	if l.fill != nil {
		runs = append(runs, l.fill.run)
	}
	for _, r := range runs {
		err = errors.Join(err, r.file.Close())
	}
	return errors.Join(err, l.lock.Close())
}
