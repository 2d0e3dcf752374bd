package auditlog

import (
	"encoding/binary"
	"fmt"
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
	frameHead     = 4 + 8 + 8 + 8 + 16 + 4 + 16 + HashSize // up to the body
	frameOverhead = frameHead + HashSize
	maxFrame      = frameOverhead + MaxBody
)

// appendFrame appends e's frame to b; leaf is its leaf hash.
func appendFrame(b []byte, e *Entry, leaf *Hash) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(frameOverhead-4+len(e.Body)))
	b = binary.BigEndian.AppendUint64(b, e.Index)
	b = binary.BigEndian.AppendUint64(b, e.RaftIndex)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Time))
	b = append(b, e.RequestID[:]...)
	b = binary.BigEndian.AppendUint32(b, e.Generation)
	b = append(b, e.Salt[:]...)
	b = append(b, e.Commitment[:]...)
	b = append(b, e.Body...)
	return append(b, leaf[:]...)
}

// frameLen is the length of the whole frame whose first four bytes are in b.
func frameLen(b []byte) (int, error) {
	n := 4 + uint64(binary.BigEndian.Uint32(b))
	if n <= frameOverhead || n > maxFrame {
		return 0, fmt.Errorf("%w: a frame of %d bytes", ErrMalformed, n)
	}
	return int(n), nil
}

// decodeFrame decodes the frame that b holds exactly and checks it against its
// leaf hash, which it returns. The entry's body is part of b.
func decodeFrame(b []byte) (e Entry, leaf Hash, err error) {
	if len(b) < frameOverhead {
		return e, leaf, fmt.Errorf("%w: a frame of %d bytes", ErrMalformed, len(b))
	}
	if n, err := frameLen(b); err != nil || n != len(b) {
		return e, leaf, fmt.Errorf("%w: frame length does not match", ErrMalformed)
	}
	e = decodeFields(b)
	e.Body = b[frameHead : len(b)-HashSize : len(b)-HashSize]
	leaf = e.LeafHash()
	if leaf != Hash(b[len(b)-HashSize:]) {
		return e, leaf, fmt.Errorf("%w: frame does not match its leaf hash", ErrMalformed)
	}
	return e, leaf, nil
}

// decodeFields decodes what stands before the body.
func decodeFields(b []byte) (e Entry) {
	e.Index = binary.BigEndian.Uint64(b[4:])
	e.RaftIndex = binary.BigEndian.Uint64(b[12:])
	e.Time = int64(binary.BigEndian.Uint64(b[20:]))
	copy(e.RequestID[:], b[28:])
	e.Generation = binary.BigEndian.Uint32(b[44:])
	copy(e.Salt[:], b[48:])
	copy(e.Commitment[:], b[64:])
	return e
}
