package auditlog

import (
	"errors"
	"fmt"
	"os"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// run is a file of consecutive frames that is being appended to: the newest
// segment, entries after a gap, or backfill not yet verified.
type run struct {
	fs    FS
	path  string
	name  string // path within the log directory, for messages
	file  File
	first uint64 // index of the first entry
	count uint64
	head  int64 // offset of the first frame
	end   int64
	marks []int64 // offset of each markEvery-th frame
	dirty bool
	buf   []byte
}

// markEvery is the number of frames from one whose offset is remembered to the
// next.
const markEvery = 64

// writeChunk bounds the bytes in a single write.
const writeChunk = 1 << 20

// create creates a file of frames with a header.
func (d *directory) create(name string, first uint64, header []byte) (*run, error) {
	path := d.at(name)
	f, err := d.fs.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, filePerm)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(header, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &run{fs: d.fs, path: path, name: name, file: f, first: first, head: int64(len(header)), end: int64(len(header)), dirty: true}, nil
}

// next returns the index of the entry that follows the run.
func (r *run) next() uint64 { return r.first + r.count }

// append writes frames. After an error, the end of the file is unknown.
func (r *run) append(entries []Entry, leaves []Hash) error {
	r.dirty = true
	r.buf = r.buf[:0]
	for i := range entries {
		if r.count%markEvery == 0 {
			r.marks = append(r.marks, r.end+int64(len(r.buf)))
		}
		r.buf = AppendFrame(r.buf, &entries[i], &leaves[i])
		r.count++
		if len(r.buf) >= writeChunk || i == len(entries)-1 {
			if _, err := r.file.WriteAt(r.buf, r.end); err != nil {
				return fmt.Errorf("writing %s: %w", r.name, err)
			}
			r.end += int64(len(r.buf))
			r.buf = r.buf[:0]
		}
	}
	if cap(r.buf) > 2*writeChunk {
		r.buf = nil
	}
	return nil
}

// found adds a frame that is already in the file. Frames are added in order.
func (r *run) found(off int64, n int) {
	if r.count%markEvery == 0 {
		r.marks = append(r.marks, off)
	}
	r.count++
	r.end = off + int64(n)
}

// clear empties the run, so that it begins at another index.
func (r *run) clear(first uint64) error {
	if err := r.file.Truncate(r.head); err != nil {
		return fmt.Errorf("truncating %s: %w", r.name, err)
	}
	r.first, r.count, r.end, r.marks = first, 0, r.head, nil
	return nil
}

// span is a part of a file: the frames from one marked frame to the end of what
// can be read.
type span struct {
	path, name string
	index      uint64 // of the frame at off
	off, end   int64
	next       uint64 // index after the last frame before end
	unmarked   bool
}

// span returns the part of the run that contains entry index.
func (r *run) span(index uint64) span {
	m := (index - r.first) / markEvery
	return span{path: r.path, name: r.name, index: r.first + m*markEvery, off: r.marks[m], end: r.end, next: r.next()}
}

// errStop ends a scan early.
var errStop = errors.New("stop")

// locate finds the offsets of frames in the full segment of an unmarked span.
func (s span) locate(fsys FS) (*run, error) {
	f, err := fsys.OpenFile(s.path, os.O_RDONLY, 0)
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

// scan calls fn with the entries of the span, beginning at index, after checking
// each against its leaf hash. The entry is valid only during the call.
func (s span) scan(fsys FS, index uint64, fn func(*Entry, Hash) error) error {
	f, err := fsys.OpenFile(s.path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if s.end == 0 { // a full segment
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
