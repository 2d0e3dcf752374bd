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
// The leaf hash covers every other byte: the fields themselves, the body by its
// hash, and so the length too. It is the frame's checksum as well as its place in
// the tree.
const (
	FrameHead = 4 + 8 + 8 + 8 + 16 + 4 + 16 + sha256.Size // up to the body
	// FrameOverhead is what a frame has besides its body, of which every frame has some.
	FrameOverhead = FrameHead + sha256.Size
	MaxFrame      = FrameOverhead + MaxBody
)

// MaxBody is the longest sealed record body a frame may carry. A record is at most
// 65,535 bytes in the clear; sealing adds a nonce and a tag.
const MaxBody = 65_535 + 28

// FrameLen is the length of the whole frame whose first four bytes are in b.
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

// ErrTorn is a frame that the end of the file cuts short.
var ErrTorn = errors.New("frame cut short")

// ScanFrames calls fn with each frame between off and end, undecoded. The bytes
// are valid only during the call. A length that is impossible, or leads past the
// end, is a *FrameError.
func ScanFrames(r io.ReaderAt, off, end int64, fn func(off int64, frame []byte) error) error {
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
