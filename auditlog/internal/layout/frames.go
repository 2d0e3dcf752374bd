package layout

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A frame is an entry in a segment file:
//
//	length      4  of what follows
//	index       8  ┐
//	raft index  8  │
//	time        8  │ integers are big endian
//	request id 16  │
//	generation  4  │
//	salt       16  │
//	commitment 32  ┘
//	body        …  length − 124 bytes
//	leaf hash  32
//
// The leaf hash covers all other bytes: the fields directly, and the body and
// thus the length by the body's hash. It serves as the frame's checksum and is
// its leaf in the tree.
const (
	FrameHead = 4 + 8 + 8 + 8 + 16 + 4 + 16 + sha256.Size // up to the body
	// FrameOverhead is the size of a frame without its body, which is never empty.
	FrameOverhead = FrameHead + sha256.Size
	MaxFrame      = FrameOverhead + MaxBody
)

// MaxBody is the length of the longest encrypted record that a frame may carry. A
// record has at most 65,535 bytes in the clear; encryption adds a nonce and a tag.
const MaxBody = 65_535 + 28

// FrameLen returns the length of the whole frame that begins with the four
// bytes in b.
func FrameLen(b []byte) (int, error) {
	n := 4 + uint64(binary.BigEndian.Uint32(b))
	if n <= FrameOverhead || n > MaxFrame {
		return 0, fmt.Errorf("%w: a frame of %d bytes", ErrMalformed, n)
	}
	return int(n), nil
}

// FrameError is damage found by ScanFrames.
type FrameError struct {
	Off int64 // where the frame begins
	Err error
}

func (e *FrameError) Error() string { return fmt.Sprintf("at offset %d: %v", e.Off, e.Err) }
func (e *FrameError) Unwrap() error { return e.Err }

// ErrTorn is returned for a frame that is cut short by the end of the file.
var ErrTorn = errors.New("frame cut short")

// minRead and maxRead bound how many bytes ScanFrames reads at once, unless a frame is longer.
const minRead, maxRead = 32 << 10, 256 << 10

// ScanFrames calls fn with each frame between off and end, undecoded. The bytes
// are valid only during the call. It returns a *FrameError for a length that is
// impossible or leads past the end.
func ScanFrames(r io.ReaderAt, off, end int64, fn func(off int64, frame []byte) error) error {
	// Often only the first frames are wanted, so it begins with few, and then reads more at once.
	buf := make([]byte, max(0, min(end-off, minRead)))
	have := buf[:0] // bytes of the file from off on
	first := true
	fill := func(n int) error {
		into := buf
		if want := max(2*n, min(2*len(buf), maxRead)); !first && want > len(buf) || n > len(buf) {
			into = make([]byte, min(int64(want), end-off))
		}
		first = false
		n0 := copy(into, have)
		buf = into
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
			return &FrameError{off, ErrTorn}
		}
		if len(have) < 4 {
			if err := fill(4); err != nil {
				return err
			}
		}
		n, err := FrameLen(have)
		if err != nil {
			return &FrameError{off, err}
		}
		if int64(n) > end-off {
			return &FrameError{off, ErrTorn}
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
