package auditlog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// Read returns entries from index from on, at most max and, beyond the first,
// at most maxBytes of bodies. It may return fewer. There are none at the end of
// the log, and ErrMissing where history is missing.
func (l *Log) Read(from uint64, max, maxBytes int) ([]Entry, error) {
	// A pending file goes away when its entries have moved; then look again.
	for attempt := 0; ; attempt++ {
		entries, err := l.read(from, max, maxBytes)
		if err == nil || attempt == 3 || !errors.Is(err, fs.ErrNotExist) {
			return entries, err
		}
	}
}

func (l *Log) read(from uint64, max, maxBytes int) ([]Entry, error) {
	l.mu.Lock()
	s, err := l.span(from)
	l.mu.Unlock()
	if err != nil || s.path == "" || max <= 0 {
		return nil, err
	}
	if s.unmarked {
		r, err := l.locate(s)
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		l.keepMarks(r.first/SegmentSize, r.marks)
		l.mu.Unlock()
		s = r.span(from)
	}
	var entries []Entry
	size := 0
	err = s.scan(l.fs, from, func(e *Entry, _ Hash) error {
		if len(entries) > 0 && size+len(e.Body) > maxBytes {
			return errStop
		}
		c := *e
		c.Body = append([]byte(nil), e.Body...)
		entries = append(entries, c)
		if size += len(e.Body); len(entries) == max {
			return errStop
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return entries, nil
}

// span finds where entry index is. There is none, and no error, at the end of the
// log. In a sealed segment whose offsets are not known the span is unmarked and
// begins at the first entry.
func (l *Log) span(index uint64) (span, error) {
	switch p := l.pendingAt(index); {
	case l.failed != nil:
		return span{}, l.failed
	case l.seg != nil && index >= l.seg.first && index < l.seg.next():
		return l.seg.span(index), nil
	case index < l.tree.size:
		n := index / SegmentSize
		name := layout.SegmentPath(n)
		s := span{path: filepath.Join(l.dir, name), name: name, next: (n + 1) * SegmentSize}
		s.index, s.off, s.unmarked = n*SegmentSize, layout.SegmentHeaderSize, true
		if m := l.marks[n]; m != nil {
			k := index % SegmentSize / markEvery
			s.index, s.off, s.unmarked = s.index+k*markEvery, m[k], false
		}
		return s, nil
	case p != nil && index < p.next():
		return p.span(index), nil
	}
	if q := l.pendingAfter(index); q != nil {
		return span{}, fmt.Errorf("%w: entry %d, backfill is due up to %d", ErrMissing, index, q.first)
	}
	return span{}, nil
}

// locate learns the offsets in the sealed segment of a span.
func (l *Log) locate(s span) (*run, error) {
	f, err := l.fs.OpenFile(s.path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	r := &run{path: s.path, name: s.name, first: s.index, head: s.off, end: s.off}
	err = layout.ScanFrames(f, r.head, size, func(off int64, frame []byte) error {
		r.found(off, len(frame))
		return nil
	})
	if bad := (*layout.FrameError)(nil); errors.As(err, &bad) {
		return nil, fmt.Errorf("%w: %s, entry %d, %w", ErrCorrupt, s.name, r.next(), err)
	}
	if err == nil && r.count != SegmentSize {
		err = fmt.Errorf("%w: %s holds %d entries", ErrCorrupt, s.name, r.count)
	}
	return r, err
}

// keepMarks remembers offsets in a sealed segment; 8 KiB each, a few of them.
func (l *Log) keepMarks(segment uint64, marks []int64) {
	if l.marks == nil {
		l.marks = make(map[uint64][]int64)
	}
	for n := range l.marks {
		if len(l.marks) < 32 {
			break
		}
		delete(l.marks, n)
	}
	l.marks[segment] = marks
}

// scan calls fn with the entries of the span from index on, each checked against
// its leaf hash. The entry is valid only during the call.
func (s span) scan(fsys FS, index uint64, fn func(*Entry, Hash) error) error {
	f, err := fsys.OpenFile(s.path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if s.end == 0 { // a sealed segment
		if s.end, err = f.Size(); err != nil {
			return err
		}
	}
	next := s.index
	err = layout.ScanFrames(f, s.off, s.end, func(off int64, frame []byte) error {
		if next < index {
			next++
			return nil
		}
		e, leaf, err := DecodeFrame(frame)
		if err == nil && (e.Index != next || next == s.next) {
			err = fmt.Errorf("%w: entry %d does not belong here", ErrMalformed, e.Index)
		}
		if err != nil {
			return &layout.FrameError{Off: off, Err: err}
		}
		next++
		return fn(&e, leaf)
	})
	if errors.Is(err, errStop) {
		return nil
	}
	if bad := (*layout.FrameError)(nil); errors.As(err, &bad) {
		return fmt.Errorf("%w: %s, entry %d, %w", ErrCorrupt, s.name, next, err)
	}
	if err == nil && next != s.next {
		return fmt.Errorf("%w: %s ends at entry %d, not %d", ErrCorrupt, s.name, next, s.next)
	}
	return err
}
