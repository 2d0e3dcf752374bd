package raftlog

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/signal"
)

const (
	// journalBytes is the maximum size of the frames in one journal file.
	journalBytes = 4 << 20
	// keptBuffer is the size of the largest buffer that is kept for the next write.
	keptBuffer = 256 << 10
)

// journalNames are the names of a journal's files.
var journalNames = [2]string{"journal.0", "journal.1"}

// errJournal is returned to callers that wait for a journal that has stopped.
var errJournal = errors.New("the journal was stopped by an earlier error")

// journal keeps the newest entries of Raft's log until they are moved to bbolt, many in one
// transaction. An append to the journal is one write and one fsync. A transaction of bbolt
// is two fsyncs and, for entries of our size, takes five times the processor time.
//
// It has two files. One is written to while the entries in the other one are stored in
// bbolt. That file is then marked as stored and can be written to again.
type journal struct {
	size int64 // the maximum size of a file's frames

	// turn is held while an entry is written and while the files are switched.
	turn    sync.Mutex
	turned  sync.Cond
	files   [2]*journalFile
	now     int    // index of the file that is written to
	flushed uint64 // the newest generation that bbolt has
	stopped bool
	buf     []byte

	flushing sync.Mutex    // one flush at a time
	filled   chan struct{} // there is something to flush
	hurry    chan struct{} // a caller waits for the flush

	mu      sync.RWMutex // guards pending and last
	pending map[uint64]*raft.Log
	last    uint64 // the index that was stored last; pending ends with it
}

// makeJournal creates the files of a journal in dir.
func makeJournal(dir string) error {
	for _, name := range journalNames {
		if err := makeJournalFile(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// openJournal opens the journal in dir. replay must be called before anything else.
func openJournal(dir string, size int64) (*journal, error) {
	var files [2]*journalFile
	for i, name := range journalNames {
		f, err := openJournalFile(filepath.Join(dir, name), size)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %s is missing", ErrCorrupt, filepath.Join(dir, name))
		}
		if err != nil {
			if i > 0 {
				err = errors.Join(err, files[0].disk.Close())
			}
			return nil, err
		}
		files[i] = f
	}
	return newJournal(files, size), nil
}

func newJournal(files [2]*journalFile, size int64) *journal {
	j := &journal{
		size: size, files: files, filled: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
		pending: make(map[uint64]*raft.Log),
	}
	j.turned.L = &j.turn
	if files[1].generation > files[0].generation {
		j.now = 1
	}
	return j
}

// ids returns the ids of both files.
func (j *journal) ids() []byte { return append(j.files[0].id[:], j.files[1].id[:]...) }

// replay passes the entries that a stop left in the files to store, oldest first, and
// empties the journal. After an orderly stop there are none, and nothing is written.
func (j *journal) replay(store func([]sealedLog) error) error {
	for _, f := range []*journalFile{j.files[1-j.now], j.files[j.now]} {
		if len(f.logs) == 0 {
			continue
		}
		if err := store(f.logs); err != nil {
			return err
		}
		if err := f.mark(); err != nil {
			return err
		}
	}
	j.flushed = j.files[j.now].generation
	j.files[j.now].begin(j.flushed + 1)
	return nil
}

// append stores entries durably. If they are too many for the journal, it does nothing and
// fits is false.
func (j *journal) append(logs []sealedLog) (fits bool, err error) {
	size := int64(blocks(frameSize(logs)))
	if size > j.size {
		return false, nil
	}
	j.turn.Lock()
	defer j.turn.Unlock()
	for j.files[j.now].end+size > framesAt+j.size {
		if err := j.wait(); err != nil {
			return false, err
		}
	}
	f := j.files[j.now]
	buf, err := f.write(j.buf, logs)
	if err != nil {
		return false, err
	}
	if cap(buf) <= keptBuffer {
		j.buf = buf
	} else {
		j.buf = nil
	}
	f.logs = append(f.logs, logs...)
	j.mu.Lock()
	for _, l := range logs {
		j.pending[l.Index] = l.Log
		j.last = l.Index
	}
	j.mu.Unlock()
	signal.Send(j.filled)
	return true, nil
}

// wait waits until a file has been flushed. The caller holds turn.
func (j *journal) wait() error {
	if !j.stopped {
		signal.Send(j.hurry)
		j.turned.Wait()
	}
	if j.stopped {
		return errJournal
	}
	return nil
}

// drain waits until bbolt has everything that was stored before the call.
func (j *journal) drain() error {
	j.turn.Lock()
	defer j.turn.Unlock()
	want := j.files[j.now].generation
	if len(j.files[j.now].logs) == 0 {
		want-- // a flush may be in progress
	}
	for j.flushed < want {
		if err := j.wait(); err != nil {
			return err
		}
	}
	return nil
}

// flush switches files and passes the entries of the one that was in use to store. After an
// error the journal must be stopped.
func (j *journal) flush(store func([]sealedLog) error) error {
	j.flushing.Lock()
	defer j.flushing.Unlock()
	j.turn.Lock()
	f := j.files[j.now]
	if len(f.logs) == 0 {
		j.turn.Unlock()
		return nil
	}
	j.now = 1 - j.now
	j.files[j.now].begin(f.generation + 1)
	j.turned.Broadcast()
	j.turn.Unlock()
	if err := store(f.logs); err != nil {
		return err
	}
	if err := f.mark(); err != nil {
		return err
	}
	j.mu.Lock()
	for _, l := range f.logs {
		if j.pending[l.Index] == l.Log {
			delete(j.pending, l.Index)
		}
	}
	j.mu.Unlock()
	j.turn.Lock()
	defer j.turn.Unlock()
	j.flushed, f.logs = f.generation, nil
	j.turned.Broadcast()
	return nil
}

// stop ends all waits.
func (j *journal) stop() {
	j.turn.Lock()
	defer j.turn.Unlock()
	j.stopped = true
	j.turned.Broadcast()
}

// get returns an entry that bbolt may not have yet.
func (j *journal) get(index uint64) (*raft.Log, bool) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	l, ok := j.pending[index]
	return l, ok
}

// firstIndex returns the first index of the log. stored returns that of bbolt.
func (j *journal) firstIndex(stored func() (uint64, error)) (uint64, error) {
	j.mu.RLock()
	defer j.mu.RUnlock() // an entry leaves pending only once bbolt has it
	first, err := stored()
	if first == 0 {
		for i := range j.pending {
			if first == 0 || i < first {
				first = i
			}
		}
	}
	return first, err
}

// lastIndex returns the last index of the log. stored returns that of bbolt.
func (j *journal) lastIndex(stored func() (uint64, error)) (uint64, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	if len(j.pending) > 0 {
		return j.last, nil
	}
	return stored()
}

func (j *journal) close() error {
	return errors.Join(j.files[0].disk.Close(), j.files[1].disk.Close())
}
