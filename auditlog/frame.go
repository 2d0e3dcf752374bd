package auditlog

import (
	"encoding/binary"
	"fmt"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// AppendFrame appends e's frame to b; leaf is its leaf hash.
func AppendFrame(b []byte, e *Entry, leaf *Hash) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(layout.FrameOverhead-4+len(e.Body)))
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

// DecodeFrame decodes a frame, which must be all of b, and checks it against its
// leaf hash, which it returns. It returns ErrMalformed for anything else. The
// entry's body is a slice of b.
func DecodeFrame(b []byte) (e Entry, leaf Hash, err error) {
	if len(b) < layout.FrameOverhead {
		return e, leaf, fmt.Errorf("%w: a frame of %d bytes", ErrMalformed, len(b))
	}
	if n, err := layout.FrameLen(b); err != nil || n != len(b) {
		return e, leaf, fmt.Errorf("%w: frame length does not match", ErrMalformed)
	}
	e = DecodeHead(b)
	e.Body = b[layout.FrameHead : len(b)-HashSize : len(b)-HashSize]
	leaf = e.LeafHash()
	if leaf != Hash(b[len(b)-HashSize:]) {
		return e, leaf, fmt.Errorf("%w: frame does not match its leaf hash", ErrMalformed)
	}
	return e, leaf, nil
}

// DecodeHead decodes the fields before the body of a frame. b must contain at
// least those. It checks nothing, so use it only to report what a damaged frame
// claims to be, and DecodeFrame for everything else.
func DecodeHead(b []byte) (e Entry) {
	e.Index = binary.BigEndian.Uint64(b[4:])
	e.RaftIndex = binary.BigEndian.Uint64(b[12:])
	e.Time = int64(binary.BigEndian.Uint64(b[20:]))
	copy(e.RequestID[:], b[28:])
	e.Generation = binary.BigEndian.Uint32(b[44:])
	copy(e.Salt[:], b[48:])
	copy(e.Commitment[:], b[64:])
	return e
}
