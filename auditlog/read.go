package auditlog

import (
	"errors"
	"io/fs"
)

// Read returns entries beginning at index from: at most max of them and, after
// the first, at most maxBytes of bodies. It may return fewer, returns none at
// the end of the log, and returns ErrMissing where history is missing.
func (l *Log) Read(from uint64, max, maxBytes int) ([]Entry, error) {
	// A pending file is removed when its entries have moved; then they have to
	// be found again.
	for attempt := 0; ; attempt++ {
		entries, err := l.read(from, max, maxBytes)
		if err == nil || attempt == 3 || !errors.Is(err, fs.ErrNotExist) {
			return entries, err
		}
	}
}

func (l *Log) read(from uint64, max, maxBytes int) ([]Entry, error) {
	l.mu.Lock()
	s, err := span{}, l.failed
	if err == nil {
		s, err = l.content.span(from)
	}
	l.mu.Unlock()
	if err != nil || s.path == "" || max <= 0 {
		return nil, err
	}
	if s.unmarked {
		r, err := s.locate(l.dir.fs)
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		l.content.keepMarks(r.first/SegmentSize, r.marks)
		l.mu.Unlock()
		s = r.span(from)
	}
	var entries []Entry
	size := 0
	err = s.scan(l.dir.fs, from, func(e *Entry, _ Hash) error {
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

// Marks returns where in the file of full segment n each 64th entry begins, for a caller who
// keeps that longer than the log, which remembers it for few segments and for no longer than
// the process runs. The caller must not change it.
func (l *Log) Marks(n uint64) ([]int64, error) {
	l.mu.Lock()
	s, err := span{}, l.failed
	if err == nil && (n+1)*SegmentSize > l.content.tree.size {
		err = ErrMissing
	}
	if err == nil {
		s, err = l.content.span(n * SegmentSize)
	}
	marks := l.content.marks[n]
	l.mu.Unlock()
	if err != nil || marks != nil {
		return marks, err
	}
	r, err := s.locate(l.dir.fs)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.content.keepMarks(n, r.marks)
	return r.marks, nil
}

// Remember tells the log what Marks returned for full segment n, so that Read finds an entry
// of it without reading the segment from its beginning. As Read checks what it reads, wrong
// marks make it return an error, and nothing else; see Forget.
func (l *Log) Remember(n uint64, marks []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(marks) == SegmentSize/markEvery && l.content.marks[n] == nil && (n+1)*SegmentSize <= l.content.tree.size {
		l.content.keepMarks(n, marks)
	}
}

// Forget undoes Remember.
func (l *Log) Forget(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.content.marks, n)
}
