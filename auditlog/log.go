package auditlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// Options are how a log is opened. The zero value works.
type Options struct {
	// Logger is told of repairs and lost ends; slog.Default when nil.
	Logger *slog.Logger
	// FS is the file system; the operating system's when nil.
	FS FS
}

// Log is a log directory that this process writes. Its methods are safe for
// concurrent use; entries are appended by one goroutine at a time.
type Log struct {
	dir    string
	fs     FS         // space
	space  *patientFS // which waits for space if it was told how
	logger *slog.Logger
	lock   io.Closer
	// opening is set while Open reads what is there, before anyone else is.
	opening bool

	// Taken in this order, and all before the log closes.
	fillMu sync.Mutex // one Restore, Fill, Repair or mending of tiles at a time
	syncMu sync.Mutex // one Sync or WriteCheckpoint at a time

	mu       sync.Mutex
	failed   error
	restored bool
	next     uint64 // index that the next new entry must have

	// The entries from 0 on without a gap. Entries of the newest segment are in
	// seg, with their leaf hashes in leaves and the roots of the tiles that these
	// fill in folded; seg is nil at a segment's boundary.
	tree   Frontier
	seg    *run
	leaves []Hash
	folded []Hash

	// Entries after a gap, by index. A pending run is there from when a snapshot
	// moves the state past the local end until the gap before it is filled.
	pending []*pending
	roots   []Hash  // of full segments from 0 on, as far as the state or memory vouch for them
	fill    *filler // backfill under way; guarded by fillMu for changes

	// What the next Sync has to do besides the files in use.
	sealed  []*run
	tiles   []string
	dirs    map[string]struct{}
	retired []*pending

	durable    uint64 // entries from 0 on that a crash cannot take
	checkpoint []byte
	changed    chan struct{}
	marks      map[uint64][]int64 // offsets in sealed segments, for reading
}

// pending is a run of entries after a gap.
type pending struct {
	*run
	before Frontier // the tree up to its first entry, from the state
	tree   Frontier // the tree up to its end
}

// Restore tells the log what the replicated state covers: the f.Size() entries
// whose tree is f, with the roots of its full segments. It is called once the
// state machine restored a snapshot, and at the start of an empty state, before
// Append.
//
// A log that holds less has a gap from then on, see Missing. One that holds more
// keeps it, and compares the entries as they are appended again. One whose
// entries are not those of f answers ErrDiverged.
func (l *Log) Restore(f Frontier, segmentRoots []Hash) error {
	l.fillMu.Lock()
	defer l.fillMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return l.failed
	}
	if folded := foldSegments(segmentRoots); !folded.Equal(f.segments()) {
		return fmt.Errorf("%w: %d segment roots do not lead to a frontier of %d entries", ErrMalformed, len(segmentRoots), f.size)
	}
	if err := l.restore(f, segmentRoots); err != nil {
		return l.fail(fmt.Errorf("restoring to %d entries: %w", f.size, err))
	}
	return nil
}

func (l *Log) restore(f Frontier, roots []Hash) error {
	v := l.view()
	if err := checkSegments(v, f, roots); err != nil {
		return err
	}
	if f.size <= l.tree.size {
		have, err := v.at(f.size)
		if err != nil {
			return err
		}
		if !have.Equal(f) {
			return fmt.Errorf("%w: %s has other entries below %d", ErrDiverged, layout.SegmentPath(f.size/SegmentSize), f.size)
		}
	} else if err := l.restorePending(f); err != nil {
		return err
	}
	l.roots = l.moreRoots(v, slices.Clone(roots))
	l.next = f.size
	l.restored = true
	if from, to, ok := l.missing(); ok {
		l.logger.Warn("audit history is missing here", "from", from, "to", to)
	}
	return nil
}

// moreRoots adds the roots of the full segments that the log has and f's state
// does not cover. They come from tiles; the tree, which does not, has to agree.
func (l *Log) moreRoots(v *treeView, roots []Hash) []Hash {
	more := slices.Clone(roots)
	for n := uint64(len(roots)); n < l.tree.size/SegmentSize; n++ {
		h, err := v.node(segmentLevel, n)
		if err != nil {
			l.logger.Warn("audit tiles are damaged", "err", err)
			return roots
		}
		more = append(more, h)
	}
	if l.tree.size >= uint64(len(roots))*SegmentSize && !foldSegments(more).Equal(l.tree.segments()) {
		l.logger.Warn("audit tiles do not lead to the tree", "segments", len(more))
		return roots
	}
	return more
}

// checkSegments compares the full segments that both have.
func checkSegments(v *treeView, f Frontier, roots []Hash) error {
	n := min(v.tree.size, f.size) / SegmentSize
	have, err := v.at(n * SegmentSize)
	if err != nil {
		return err
	}
	if have.Equal(foldSegments(roots[:n])) {
		return nil
	}
	for i := range n {
		if h, err := v.node(segmentLevel, i); err != nil || h != roots[i] {
			return fmt.Errorf("%w: the root of %s is not the cluster's", ErrDiverged, layout.SegmentPath(i))
		}
	}
	return fmt.Errorf("%w: a tile above the segments is not the cluster's", ErrDiverged)
}

// restorePending finds or makes the pending run that f's state goes on with.
func (l *Log) restorePending(f Frontier) error {
	i := len(l.pending)
	for i > 0 && l.pending[i-1].first > f.size {
		i--
	}
	if i > 0 && l.pending[i-1].next() >= f.size {
		p := l.pending[i-1]
		have, err := p.at(f.size)
		if err != nil {
			return err
		}
		if !have.Equal(f) {
			return fmt.Errorf("%w: %s has other entries below %d", ErrDiverged, p.name, f.size)
		}
		return nil
	}
	if len(l.pending) >= maxPending {
		return fmt.Errorf("%w: more than %d gaps", ErrMissing, maxPending)
	}
	p, err := createPending(l.fs, l.dir, f)
	if err != nil {
		return err
	}
	l.dirty(layout.PendingDir)
	l.pending = slices.Insert(l.pending, i, p)
	return nil
}

// Append adds entries in order, with the leaf hash of each, which the caller had
// to compute for its own tree anyway. The system has them when it returns, the
// disk only after Sync. An entry whose index is already stored must be the stored
// one, else ErrDiverged. Any error but ErrGap and ErrMalformed, which store
// nothing, stops the log.
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
	if !l.restored {
		return fmt.Errorf("%w: nothing was restored yet", ErrGap)
	}
	if len(entries) == 0 {
		return nil
	}
	if i := entries[0].Index; i > l.next {
		return fmt.Errorf("%w: entry %d, expected %d", ErrGap, i, l.next)
	}
	if err := l.store(entries, leaves); err != nil {
		return l.fail(err)
	}
	return nil
}

// store compares the entries that are there and writes the others.
func (l *Log) store(entries []Entry, leaves []Hash) error {
	for len(entries) > 0 {
		i := entries[0].Index
		p := l.pendingAt(i)
		n, err := len(entries), error(nil)
		switch {
		case i < l.tree.size || p != nil && i < p.next():
			n, err = l.compare(entries, leaves)
		case p != nil && i == p.next():
			if q := l.pendingAfter(i); q != nil {
				n = int(min(uint64(n), q.first-i))
			}
			err = p.append(entries[:n], leaves[:n])
		case i == l.tree.size:
			if q := l.pendingAfter(i); q != nil {
				n = int(min(uint64(n), q.first-i))
			}
			if err = l.extend(entries[:n], leaves[:n]); err == nil {
				// An older snapshot may be replayed up to where the gap ends.
				err = l.mergeAll()
			}
		default:
			return fmt.Errorf("%w: entry %d cannot be compared", ErrMissing, i)
		}
		if err != nil {
			return err
		}
		entries, leaves = entries[n:], leaves[n:]
		l.next = max(l.next, i+uint64(n))
	}
	l.notify()
	return nil
}

// pendingAt is the pending run that index i lies in or follows, nil for none.
func (l *Log) pendingAt(i uint64) *pending {
	for _, p := range slices.Backward(l.pending) {
		if p.first <= i && i <= p.next() {
			return p
		}
	}
	return nil
}

// pendingAfter is the first pending run that begins after index i.
func (l *Log) pendingAfter(i uint64) *pending {
	for _, p := range l.pending {
		if p.first > i {
			return p
		}
	}
	return nil
}

// compare checks that entries, of which the first is stored, are the stored ones,
// and returns how many it checked.
func (l *Log) compare(entries []Entry, leaves []Hash) (int, error) {
	i := entries[0].Index
	if first := l.firstLeaf(); i >= first && i < l.tree.size {
		have := l.leaves[i-first:]
		n := min(len(have), len(leaves))
		for k := range n {
			if have[k] != leaves[k] {
				return 0, fmt.Errorf("%w: entry %d in %s is another one", ErrDiverged, i+uint64(k), layout.SegmentPath(i/SegmentSize))
			}
		}
		return n, nil
	}
	s, err := l.span(i)
	if err != nil {
		return 0, err
	}
	if s.unmarked {
		r, err := l.locate(s)
		if err != nil {
			return 0, err
		}
		l.keepMarks(r.first/SegmentSize, r.marks)
		s = r.span(i)
	}
	n := 0
	err = s.scan(l.fs, i, func(e *Entry, leaf Hash) error {
		if leaf != leaves[n] {
			return fmt.Errorf("%w: entry %d in %s is another one", ErrDiverged, e.Index, s.name)
		}
		if n++; n == len(leaves) {
			return errStop
		}
		return nil
	})
	return n, err
}

// extend appends to the entries from 0 on, sealing segments as they fill.
func (l *Log) extend(entries []Entry, leaves []Hash) error {
	for len(entries) > 0 {
		if l.seg == nil {
			n := l.tree.size / SegmentSize
			seg, err := createRun(l.fs, l.dir, layout.SegmentPath(n), l.tree.size, layout.SegmentHeader(n))
			if err != nil {
				return fmt.Errorf("creating a segment: %w", err)
			}
			l.seg = seg
			l.dirty(layout.SegmentDir)
		}
		n := int(min(uint64(len(entries)), SegmentSize-l.seg.count))
		if err := l.seg.append(entries[:n], leaves[:n]); err != nil {
			return err
		}
		for _, h := range leaves[:n] {
			if err := l.grow(h); err != nil {
				return err
			}
		}
		if l.seg.count == SegmentSize {
			l.seal()
		}
		entries, leaves = entries[n:], leaves[n:]
	}
	return nil
}

// grow adds a leaf to the tree and writes the tiles that it fills.
func (l *Log) grow(leaf Hash) error {
	if l.leaves == nil {
		// As many as there will be: growing copies them over and over.
		l.leaves = make([]Hash, 0, SegmentSize)
		l.folded = make([]Hash, 0, SegmentSize/TileWidth)
	}
	l.leaves = append(l.leaves, leaf)
	if len(l.leaves)%TileWidth != 0 {
		l.tree.carry(leaf, 0, nil)
		return nil
	}
	var full []Hash // roots of the tiles that are full now, from level 0 up
	l.tree.carry(leaf, 0, func(level int, h Hash) {
		if level > 0 && level%layout.TileHeight == 0 {
			full = append(full, h)
		}
	})
	l.folded = append(l.folded, full[0])
	for level, root := range full {
		if err := l.writeTile(level, root); err != nil {
			return err
		}
	}
	return nil
}

// writeTile writes the tile of a level that the newest leaf filled.
func (l *Log) writeTile(level int, root Hash) error {
	n := l.tree.size>>(layout.TileHeight*(level+1)) - 1
	var hashes []Hash
	switch level {
	case 0:
		hashes = l.leaves[len(l.leaves)-TileWidth:]
	case 1:
		hashes = l.folded // of the whole segment
	default:
		// Not by way of node, which would look in the tile that is being made.
		v := l.view()
		for i := range uint64(TileWidth) {
			below, err := v.tile(level-1, n<<layout.TileHeight+i)
			if err != nil {
				return err
			}
			hashes = append(hashes, fold(below))
		}
	}
	b := make([]byte, 0, TileWidth*HashSize)
	for i := range hashes {
		b = append(b, hashes[i][:]...)
	}
	name := layout.TilePath(level, n)
	// Not yet durable: the tiles of the newest segment are made again from it when
	// the log is opened, so only a sealed segment's have to be on disk.
	l.tiles = append(l.tiles, name)
	// Above the leaves a tile is made from tiles, which may have rotted since.
	if level > 0 && fold(hashes) != root {
		return fmt.Errorf("%w: the tiles below %s do not lead to its root", ErrCorrupt, name)
	}
	if l.opening {
		have, err := ReadFile(l.fs, filepath.Join(l.dir, name), TileWidth*HashSize)
		if err == nil && bytes.Equal(have, b) {
			return nil
		}
		l.logger.Warn("making an audit tile again", "file", name)
	}
	err := put(l.fs, l.dir, name, b, false)
	if errors.Is(err, fs.ErrNotExist) { // the first of its directory
		if err = l.fs.MkdirAll(filepath.Dir(filepath.Join(l.dir, name)), dirPerm); err == nil {
			err = put(l.fs, l.dir, name, b, false)
		}
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

// seal closes the newest segment, which is full.
func (l *Log) seal() {
	n := l.seg.first / SegmentSize
	l.keepMarks(n, l.seg.marks)
	if n == uint64(len(l.roots)) {
		l.roots = append(l.roots, l.tree.segment)
	}
	l.sealed = append(l.sealed, l.seg)
	l.seg = nil
	l.leaves, l.folded = nil, nil // views may still read the old ones
}

// firstLeaf is the index of leaves[0].
func (l *Log) firstLeaf() uint64 { return l.tree.size - uint64(len(l.leaves)) }

// view is the tree as it is now.
func (l *Log) view() *treeView {
	return &treeView{fs: l.fs, dir: l.dir, tree: l.tree, first: l.firstLeaf(), leaves: l.leaves, folded: l.folded}
}

func (l *Log) dirty(dir string) {
	if l.dirs == nil {
		l.dirs = make(map[string]struct{})
	}
	l.dirs[dir] = struct{}{}
}

// fail stops the log and returns err.
func (l *Log) fail(err error) error {
	if l.failed == nil {
		l.failed = fmt.Errorf("%w: %w", ErrFailed, err)
		l.logger.Error("audit log stopped", "err", err)
		l.notify()
	}
	return err
}

// Size is the number of entries in the tree, those missing here included: the
// index that the next new entry will have. Before Restore it is what the files
// hold.
func (l *Log) Size() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := max(l.tree.size, l.next)
	if n := len(l.pending); n > 0 {
		size = max(size, l.pending[n-1].next())
	}
	return size
}

// Changed returns a channel that is closed at the next change: entries appended
// or filled in, or the log stopped. To follow the log, take the channel, read,
// and wait when there was nothing to read.
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
		case <-l.changed: // closed for good by Changed
		default:
			close(l.changed)
		}
		l.changed = nil
	}
}

// Err is why the log stopped, nil while it runs.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// Close makes everything durable and releases the directory. A log that stopped
// is closed without.
func (l *Log) Close() error {
	err := l.Sync()
	if errors.Is(err, ErrFailed) {
		err = nil // said before
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

// release closes all files and gives up the directory.
func (l *Log) release() error {
	var err error
	runs := l.sealed
	if l.seg != nil {
		runs = append(runs, l.seg)
	}
	for _, p := range append(l.pending, l.retired...) {
		runs = append(runs, p.run)
	}
	if l.fill != nil {
		runs = append(runs, l.fill.run)
	}
	for _, r := range runs {
		err = errors.Join(err, r.file.Close())
	}
	return errors.Join(err, l.lock.Close())
}
