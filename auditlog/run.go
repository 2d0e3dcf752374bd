package auditlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Every file of frames begins with a header that says which it is.
const (
	segmentMagic = "CNCLVSEG"
	pendingMagic = "CNCLVPND"
	durableMagic = "CNCLVDUR"
	fileFormat   = 1
)

const segmentHeaderSize = 8 + 4 + 8

// segmentHeader is what segment n begins with.
func segmentHeader(n uint64) []byte {
	b := append(make([]byte, 0, segmentHeaderSize), segmentMagic...)
	b = binary.BigEndian.AppendUint32(b, fileFormat)
	return binary.BigEndian.AppendUint64(b, n)
}

// sealed frames a small structure: magic, format, length, content, SHA-256 of all
// that. It is for files whose content has no other check.
func sealed(magic string, content []byte) []byte {
	b := append(make([]byte, 0, 8+4+4+len(content)+sha256.Size), magic...)
	b = binary.BigEndian.AppendUint32(b, fileFormat)
	b = binary.BigEndian.AppendUint32(b, uint32(len(content)))
	b = append(b, content...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// unseal returns the content that sealed framed at the start of b, and the length
// of the whole.
func unseal(magic string, b []byte) (content []byte, n int, err error) {
	const head = 8 + 4 + 4
	if len(b) < head || string(b[:8]) != magic || binary.BigEndian.Uint32(b[8:]) != fileFormat {
		return nil, 0, fmt.Errorf("%w: header", ErrMalformed)
	}
	size := uint64(binary.BigEndian.Uint32(b[12:]))
	if uint64(len(b)) < head+size+sha256.Size {
		return nil, 0, fmt.Errorf("%w: header cut short", ErrMalformed)
	}
	n = head + int(size) + sha256.Size
	if sum := sha256.Sum256(b[:n-sha256.Size]); !bytes.Equal(sum[:], b[n-sha256.Size:n]) {
		return nil, 0, fmt.Errorf("%w: header checksum", ErrMalformed)
	}
	return b[head : head+size], n, nil
}

// run is a file of consecutive frames that is being appended to: the newest
// segment, entries after a gap, or backfill not yet verified.
type run struct {
	fs    FS
	path  string
	name  string // path within the log directory, for messages
	file  File
	first uint64 // index of the first entry
	count uint64
	head  int64 // where the first frame begins
	end   int64
	marks []int64 // offset of each markEvery-th frame
	dirty bool
	buf   []byte
}

// markEvery is the distance between frames whose offset is remembered.
const markEvery = 64

// writeChunk bounds how much a single write carries.
const writeChunk = 1 << 20

// create makes a new file with a header.
func createRun(fsys FS, dir, name string, first uint64, header []byte) (*run, error) {
	path := filepath.Join(dir, name)
	f, err := fsys.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, filePerm)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(header, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &run{fs: fsys, path: path, name: name, file: f, first: first, head: int64(len(header)), end: int64(len(header)), dirty: true}, nil
}

// next is the index of the entry that follows the run.
func (r *run) next() uint64 { return r.first + r.count }

// append writes frames. On an error the file's end is unknown.
func (r *run) append(entries []Entry, leaves []Hash) error {
	r.dirty = true
	r.buf = r.buf[:0]
	for i := range entries {
		if r.count%markEvery == 0 {
			r.marks = append(r.marks, r.end+int64(len(r.buf)))
		}
		r.buf = appendFrame(r.buf, &entries[i], &leaves[i])
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

// found takes note of a frame that is already in the file, in order.
func (r *run) found(off int64, n int) {
	if r.count%markEvery == 0 {
		r.marks = append(r.marks, off)
	}
	r.count++
	r.end = off + int64(n)
}

// clear empties the run and lets it begin at another index.
func (r *run) clear(first uint64) error {
	if err := r.file.Truncate(r.head); err != nil {
		return fmt.Errorf("truncating %s: %w", r.name, err)
	}
	r.first, r.count, r.end, r.marks = first, 0, r.head, nil
	return nil
}

// span is where the frames from one marked frame to the end of what is readable
// lie.
type span struct {
	path, name string
	index      uint64 // of the frame at off
	off, end   int64
	next       uint64 // index after the last frame before end
	unmarked   bool
}

// span is the part of the run in which entry index lies.
func (r *run) span(index uint64) span {
	m := (index - r.first) / markEvery
	return span{path: r.path, name: r.name, index: r.first + m*markEvery, off: r.marks[m], end: r.end, next: r.next()}
}

// errStop ends a scan early.
var errStop = errors.New("stop")

// frameError is damage found by scanFrames.
type frameError struct {
	off int64
	err error
}

func (e *frameError) Error() string { return fmt.Sprintf("at offset %d: %v", e.off, e.err) }
func (e *frameError) Unwrap() error { return e.err }

// errTorn is a frame that the end of the file cuts short.
var errTorn = errors.New("frame cut short")

// scanFrames calls fn with each frame between off and end, undecoded. The bytes
// are valid only during the call. A length that is impossible, or leads past the
// end, is a *frameError.
func scanFrames(r io.ReaderAt, off, end int64, fn func(off int64, frame []byte) error) error {
	buf := make([]byte, max(0, min(end-off, 256<<10)))
	have := buf[:0] // bytes of the file from off on
	fill := func(n int) error {
		if n > cap(buf) {
			bigger := make([]byte, min(int64(2*n), end-off))
			buf = bigger
		}
		n0 := copy(buf, have)
		want := min(int64(len(buf)), end-off)
		k, err := r.ReadAt(buf[n0:want], off+int64(n0))
		have = buf[:n0+k]
		if len(have) >= n {
			return nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	for off < end {
		if end-off < 4 {
			return &frameError{off, errTorn}
		}
		if len(have) < 4 {
			if err := fill(4); err != nil {
				return err
			}
		}
		n, err := frameLen(have)
		if err != nil {
			return &frameError{off, err}
		}
		if int64(n) > end-off {
			return &frameError{off, errTorn}
		}
		if len(have) < n {
			if err := fill(n); err != nil {
				return err
			}
		}
		if err := fn(off, have[:n:n]); err != nil {
			return err
		}
		off += int64(n)
		have = have[n:]
	}
	return nil
}
