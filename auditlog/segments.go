package auditlog

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// segments are the entries from 0 on without a gap: the files of the segments, and the
// tree over them. If the newest segment is not full, it is in newest, and its leaf
// hashes are in the tree. It has no lock of its own.
type segments struct {
	dir    *directory
	tree   tiledTree
	newest *run               // nil at the boundary of a segment
	sealed []*run             // full, and not yet durable
	roots  []Hash             // of full segments from 0 on, as far as they are known from the state or from memory
	marks  map[uint64][]int64 // offsets in full segments, for reading
	// removed are the first segments, of which only the tiles are here.
	removed Removed
}

// extend appends entries, and closes segments as they become full.
func (s *segments) extend(entries []Entry, leaves []Hash) error {
	for len(entries) > 0 {
		if s.newest == nil {
			n := s.tree.size / SegmentSize
			seg, err := s.dir.create(layout.SegmentPath(n), s.tree.size, layout.SegmentHeader(n))
			if err != nil {
				return fmt.Errorf("creating a segment: %w", err)
			}
			s.newest = seg
			s.dir.dirty(layout.SegmentDir)
		}
		n := int(min(uint64(len(entries)), SegmentSize-s.newest.count))
		if err := s.newest.append(entries[:n], leaves[:n]); err != nil {
			return err
		}
		for _, h := range leaves[:n] {
			if err := s.tree.grow(h); err != nil {
				return err
			}
		}
		if s.newest.count == SegmentSize {
			s.seal()
		}
		entries, leaves = entries[n:], leaves[n:]
	}
	return nil
}

// seal closes the newest segment, which is full.
func (s *segments) seal() {
	n := s.newest.first / SegmentSize
	s.keepMarks(n, s.newest.marks)
	if n == uint64(len(s.roots)) {
		s.roots = append(s.roots, s.tree.segment)
	}
	s.sealed = append(s.sealed, s.newest)
	s.newest = nil
	s.tree.leaves, s.tree.folded = nil, nil // views may still read the old slices
}

// moreRoots adds the roots of the full segments that the log has and the state
// does not cover. They are read from tiles, and are checked against the tree,
// which is not.
func (s *segments) moreRoots(v *treeView, roots []Hash) []Hash {
	more := slices.Clone(roots)
	for n := uint64(len(roots)); n < s.tree.size/SegmentSize; n++ {
		h, err := v.node(segmentLevel, n)
		if err != nil {
			s.dir.logger.Warn("audit tiles are damaged", "err", err)
			return roots
		}
		more = append(more, h)
	}
	if s.tree.size >= uint64(len(roots))*SegmentSize && !FoldSegments(more).Equal(s.tree.segments()) {
		s.dir.logger.Warn("audit tiles do not match the tree", "segments", len(more))
		return roots
	}
	return more
}

// span finds where entry index is, which must be in a segment. In a full segment
// whose offsets are not known, the span is unmarked and begins at the first entry.
func (s *segments) span(index uint64) span {
	if s.newest != nil && index >= s.newest.first {
		return s.newest.span(index)
	}
	n := index / SegmentSize
	name := layout.SegmentPath(n)
	if m := s.marks[n]; m != nil {
		k := index % SegmentSize / markEvery
		return span{path: s.dir.at(name), name: name, index: n*SegmentSize + k*markEvery, off: m[k], next: (n + 1) * SegmentSize}
	}
	return span{path: s.dir.at(name), name: name, index: n * SegmentSize, off: layout.SegmentHeaderSize, next: (n + 1) * SegmentSize, unmarked: true}
}

// keepMarks remembers the offsets in a full segment, which take 8 KiB, for a
// few segments.
func (s *segments) keepMarks(segment uint64, marks []int64) {
	if s.marks == nil {
		s.marks = make(map[uint64][]int64)
	}
	for n := range s.marks {
		if len(s.marks) < 32 {
			break
		}
		delete(s.marks, n)
	}
	s.marks[segment] = marks
}

// loadSegments reads the segments from that of the durable mark on, which may
// end in a torn frame, and checks that the earlier ones exist.
func (s *segments) loadSegments(mark *DurableMark) error {
	names, err := s.dir.list(layout.SegmentDir)
	if err != nil {
		return err
	}
	have := make(map[uint64]bool, len(names))
	for _, name := range names {
		n, ok := layout.SegmentNumber(name)
		if !ok {
			s.dir.logger.Warn("unknown file among the audit segments", "file", name)
			continue
		}
		have[n] = true
	}
	if s.removed, err = ReadRemoved(s.dir.fs, s.dir.path); err != nil {
		return err
	}
	s.tree.Frontier = mark.Tree.segments()
	if s.tree.size < s.removed.Segments*SegmentSize { // there is no mark
		if s.tree.Frontier, err = s.treeOfRemoved(); err != nil {
			return err
		}
	}
	first := s.tree.size / SegmentSize
	for n := range first {
		if n < s.removed.Segments {
			if have[n] {
				if err := s.dir.remove(layout.SegmentPath(n)); err != nil {
					return err
				}
			}
		} else if !have[n] {
			return fmt.Errorf("%w: %s is gone", ErrCorrupt, layout.SegmentPath(n))
		}
		delete(have, n)
	}
	for n := first; have[n]; n++ {
		delete(have, n)
		whole, err := s.loadSegment(n, mark)
		if err != nil {
			return err
		}
		if !whole {
			break
		}
	}
	if s.tree.size < mark.Tree.size {
		return fmt.Errorf("%w: %s ends at entry %d, but %d were durable", ErrCorrupt,
			layout.SegmentPath(s.tree.size/SegmentSize), s.tree.size, mark.Tree.size)
	}
	for n := range have { // after the end: those before them never reached the disk
		if n < first {
			continue
		}
		s.dir.logger.Warn("removing an audit segment beyond the end of the log", "file", layout.SegmentPath(n))
		if err := s.dir.remove(layout.SegmentPath(n)); err != nil {
			return err
		}
	}
	return nil
}

// loadSegment reads one segment and reports whether another may follow.
func (s *segments) loadSegment(n uint64, mark *DurableMark) (whole bool, err error) {
	name := layout.SegmentPath(n)
	path := s.dir.at(name)
	f, err := s.dir.fs.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	r := &run{fs: s.dir.fs, path: path, name: name, file: f, first: s.tree.size, head: layout.SegmentHeaderSize, end: layout.SegmentHeaderSize, dirty: true}
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
		if s.tree.size < mark.Tree.size {
			return false, fmt.Errorf("%w: %s: header", ErrCorrupt, name)
		}
		s.dir.logger.Warn("removing an audit segment without a header", "file", name)
		r.file = nil
		return false, s.dir.remove(name)
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
		if err := s.tree.grow(leaf); err != nil {
			return err
		}
		if s.tree.size == mark.Tree.size && !s.tree.Equal(mark.Tree) {
			return fmt.Errorf("%w: %s has other entries below %d than when it was synced", ErrCorrupt, name, s.tree.size)
		}
		return nil
	})
	if bad := (*layout.FrameError)(nil); errors.As(err, &bad) {
		if s.tree.size < mark.Tree.size {
			return false, fmt.Errorf("%w: %s, entry %d, %w", ErrCorrupt, name, s.tree.size, err)
		}
		s.dir.logger.Warn("cutting off the torn end of an audit segment", "file", name, "index", s.tree.size, "bytes", size-r.end, "err", err)
		if err = f.Truncate(r.end); err != nil {
			return false, err
		}
	}
	if err != nil {
		return false, err
	}
	if s.newest = r; r.count < SegmentSize {
		return false, nil
	}
	s.seal()
	return true, nil
}
