package auditlog

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// Open opens the log in a directory, which it creates when there is none, and
// takes its lock. What a crash left half done since the last Sync is cut off or
// made again; damage to what was durable is ErrCorrupt.
func Open(dir string, opts Options) (_ *Log, err error) {
	l := &Log{dir: dir, space: &patientFS{FS: opts.FS}, logger: opts.Logger}
	if l.space.FS == nil {
		l.space.FS = OSFS()
	}
	l.fs = l.space
	if l.logger == nil {
		l.logger = slog.Default()
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("opening the audit log in %s: %w", dir, err)
		}
	}()
	for _, d := range []string{"", layout.SegmentDir, layout.PendingDir, layout.TileDir, layout.TmpDir} {
		if err := l.fs.MkdirAll(filepath.Join(dir, d), dirPerm); err != nil {
			return nil, err
		}
		l.dirty(d)
	}
	l.dirty("..") // the name of dir itself
	if l.lock, err = l.fs.Lock(filepath.Join(dir, layout.LockFile)); err != nil {
		return nil, err
	}
	l.opening = true
	if err := l.load(); err != nil {
		return nil, errors.Join(err, l.release())
	}
	l.opening = false
	// What was found without a mark must not depend on the next crash.
	if err := l.Sync(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Log) load() error {
	if err := l.clearTmp(); err != nil {
		return err
	}
	mark, err := ReadDurableMark(l.fs, l.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist): // never synced, so nothing is promised
	case errors.Is(err, ErrMalformed):
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, layout.DurableFile, err)
	case err != nil:
		return err
	}
	l.durable = mark.Tree.size
	if err := l.loadSegments(&mark); err != nil {
		return err
	}
	if err := l.removeTiles(); err != nil {
		return err
	}
	if err := l.loadPending(&mark); err != nil {
		return err
	}
	if err := l.mergeAll(); err != nil {
		return err
	}
	return l.loadCheckpoint()
}

// clearTmp removes what unfinished writes left.
func (l *Log) clearTmp() error {
	names, err := l.fs.ReadDir(filepath.Join(l.dir, layout.TmpDir))
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := l.fs.Remove(filepath.Join(l.dir, layout.TmpDir, name)); err != nil {
			return err
		}
	}
	return nil
}

// loadSegments reads the segments from the durable mark's on, whose content is
// not known to be whole, and notes that the earlier ones exist.
func (l *Log) loadSegments(mark *DurableMark) error {
	names, err := l.fs.ReadDir(filepath.Join(l.dir, layout.SegmentDir))
	if err != nil {
		return err
	}
	have := make(map[uint64]bool, len(names))
	for _, name := range names {
		n, ok := layout.SegmentNumber(name)
		if !ok {
			l.logger.Warn("unknown file among the audit segments", "file", name)
			continue
		}
		have[n] = true
	}
	l.tree = mark.Tree.segments()
	first := l.tree.size / SegmentSize
	for n := range first {
		if !have[n] {
			return fmt.Errorf("%w: %s is gone", ErrCorrupt, layout.SegmentPath(n))
		}
		delete(have, n)
	}
	for n := first; have[n]; n++ {
		delete(have, n)
		whole, err := l.loadSegment(n, mark)
		if err != nil {
			return err
		}
		if !whole {
			break
		}
	}
	if l.tree.size < mark.Tree.size {
		return fmt.Errorf("%w: %s ends at entry %d, but %d were durable", ErrCorrupt,
			layout.SegmentPath(l.tree.size/SegmentSize), l.tree.size, mark.Tree.size)
	}
	for n := range have { // after the end: their predecessors never reached the disk
		if n < first {
			continue
		}
		l.logger.Warn("removing an audit segment beyond the end of the log", "file", layout.SegmentPath(n))
		if err := l.fs.Remove(filepath.Join(l.dir, layout.SegmentPath(n))); err != nil {
			return err
		}
	}
	return nil
}

// loadSegment reads one segment and says whether another may follow.
func (l *Log) loadSegment(n uint64, mark *DurableMark) (whole bool, err error) {
	name := layout.SegmentPath(n)
	path := filepath.Join(l.dir, name)
	f, err := l.fs.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	r := &run{fs: l.fs, path: path, name: name, file: f, first: l.tree.size, head: layout.SegmentHeaderSize, end: layout.SegmentHeaderSize, dirty: true}
	defer func() {
		if err != nil || r.file == nil {
			err = errors.Join(err, f.Close())
		}
	}()
	size, err := f.Size()
	if err != nil {
		return false, err
	}
	head := make([]byte, min(size, layout.SegmentHeaderSize))
	if _, err := f.ReadAt(head, 0); err != nil && int64(len(head)) != size {
		return false, err
	}
	if string(head) != string(layout.SegmentHeader(n)) {
		if l.tree.size < mark.Tree.size {
			return false, fmt.Errorf("%w: %s: header", ErrCorrupt, name)
		}
		l.logger.Warn("removing an audit segment without a header", "file", name)
		r.file = nil
		return false, l.fs.Remove(path)
	}
	err = layout.ScanFrames(f, layout.SegmentHeaderSize, size, func(off int64, frame []byte) error {
		e, leaf, err := DecodeFrame(frame)
		if err == nil && (e.Index != r.next() || r.count == SegmentSize) {
			err = fmt.Errorf("%w: entry %d does not belong here", ErrMalformed, e.Index)
		}
		if err != nil {
			return &layout.FrameError{Off: off, Err: err}
		}
		r.found(off, len(frame))
		if err := l.grow(leaf); err != nil {
			return err
		}
		if l.tree.size == mark.Tree.size && !l.tree.Equal(mark.Tree) {
			return fmt.Errorf("%w: %s has other entries below %d than when it was synced", ErrCorrupt, name, l.tree.size)
		}
		return nil
	})
	if bad := (*layout.FrameError)(nil); errors.As(err, &bad) {
		if l.tree.size < mark.Tree.size {
			return false, fmt.Errorf("%w: %s, entry %d, %w", ErrCorrupt, name, l.tree.size, err)
		}
		l.logger.Warn("cutting off the torn end of an audit segment", "file", name, "index", l.tree.size, "bytes", size-r.end, "err", err)
		if err = f.Truncate(r.end); err != nil {
			return false, err
		}
	}
	if err != nil {
		return false, err
	}
	if l.seg = r; r.count < SegmentSize {
		return false, nil
	}
	l.seal()
	return true, nil
}

// removeTiles removes tiles of entries that a crash took.
func (l *Log) removeTiles() error {
	levels, err := l.fs.ReadDir(filepath.Join(l.dir, layout.TileDir))
	if err != nil {
		return err
	}
	for _, name := range levels {
		level, err := strconv.Atoi(strings.TrimSuffix(name, "/"))
		if err != nil || level < 0 || level > 7 {
			continue
		}
		// They lie in the directory of the first tile that is not full, or follow.
		full := l.tree.size >> (layout.TileHeight * (level + 1))
		for group := full / 1000; ; group++ {
			dir := filepath.Dir(layout.TilePath(level, group*1000))
			names, err := l.fs.ReadDir(filepath.Join(l.dir, dir))
			if errors.Is(err, fs.ErrNotExist) {
				break
			}
			if err != nil {
				return err
			}
			for _, name := range names {
				i, err := strconv.ParseUint(name, 10, 16)
				if err != nil || group*1000+i < full {
					continue
				}
				l.dirty(dir)
				if err := l.fs.Remove(filepath.Join(l.dir, dir, name)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// loadPending opens the pending runs that still stand apart.
func (l *Log) loadPending(mark *DurableMark) error {
	durable := make(map[uint64]uint64)
	for _, p := range mark.Pending {
		durable[p.First] = p.Next
	}
	names, err := l.fs.ReadDir(filepath.Join(l.dir, layout.PendingDir))
	if err != nil {
		return err
	}
	for _, base := range names { // sorted, and so by index
		name := filepath.Join(layout.PendingDir, base)
		s, ok := strings.CutSuffix(base, ".seg")
		first, err := strconv.ParseUint(s, 10, 63)
		if !ok || err != nil || layout.PendingPath(first) != name {
			l.logger.Warn("unknown file among the pending audit entries", "file", name)
			continue
		}
		next, was := durable[first]
		delete(durable, first)
		p, cut, err := openPending(l.fs, l.dir, name, next)
		if errors.Is(err, ErrMalformed) && !errors.Is(err, ErrCorrupt) {
			if was {
				return fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			l.logger.Warn("removing pending audit entries without a header", "file", name, "err", err)
			if err := l.fs.Remove(filepath.Join(l.dir, name)); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if cut > 0 {
			l.logger.Warn("cut off the torn end of pending audit entries", "file", name, "index", p.next(), "bytes", cut)
		}
		if p.next() <= l.tree.size { // moved, and the crash came before its removal
			l.retired = append(l.retired, p)
			continue
		}
		l.pending = append(l.pending, p)
	}
	for first := range durable {
		return fmt.Errorf("%w: %s is gone", ErrCorrupt, layout.PendingPath(first))
	}
	return nil
}
