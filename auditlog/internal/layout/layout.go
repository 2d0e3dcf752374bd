// Package layout says what lies where in a log directory: the names of its files, their
// headers, and where one frame ends and the next begins.
//
// It exists because two packages must agree on that and nobody else needs it: auditlog,
// which writes a log directory, and auditlog/verify, which checks one without opening it.
// What a frame means, and the tree over the entries, is auditlog's. DESIGN.md of auditlog
// specifies the formats. Nothing here does I/O of its own or keeps state.
package layout

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// The files and directories of a log directory.
const (
	LockFile       = "lock"
	DurableFile    = "durable"
	CheckpointFile = "checkpoint"
	SegmentDir     = "segments"
	PendingDir     = "pending"
	TileDir        = "tile"
	TmpDir         = "tmp"
)

// TileHeight is the height of the subtree over one full tile.
const TileHeight = 8

// MaxCheckpoint is the longest checkpoint that is read, in bytes.
const MaxCheckpoint = 16 << 10

// Every file of frames begins with a header that says which it is.
const (
	segmentMagic = "CNCLVSEG"
	// PendingMagic and DurableMagic begin the sealed parts of a pending file and of the
	// durable mark.
	PendingMagic = "CNCLVPND"
	DurableMagic = "CNCLVDUR"
	fileFormat   = 1
)

// SegmentHeaderSize is the length of a segment's header: the first frame follows it.
const SegmentHeaderSize = 8 + 4 + 8

// ErrMalformed is returned for bytes that are not what they should encode.
var ErrMalformed = errors.New("malformed audit data")

// SegmentPath is where segment n lies.
func SegmentPath(n uint64) string { return filepath.Join(SegmentDir, fmt.Sprintf("%08d.seg", n)) }

// SegmentNumber is the inverse of SegmentPath's last element.
func SegmentNumber(name string) (uint64, bool) {
	s, ok := strings.CutSuffix(name, ".seg")
	n, err := strconv.ParseUint(s, 10, 47)
	return n, ok && err == nil && filepath.Base(SegmentPath(n)) == name
}

// PendingPath is where the entries after a gap lie that begin with entry first.
func PendingPath(first uint64) string {
	return filepath.Join(PendingDir, fmt.Sprintf("%020d.seg", first))
}

// TilePath is where a full tile lies: C2SP tlog-tiles.
func TilePath(level int, n uint64) string {
	s := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		s = fmt.Sprintf("x%03d/%s", n%1000, s)
	}
	return filepath.Join(TileDir, strconv.Itoa(level), s)
}

// SegmentHeader is what segment n begins with.
func SegmentHeader(n uint64) []byte {
	b := append(make([]byte, 0, SegmentHeaderSize), segmentMagic...)
	b = binary.BigEndian.AppendUint32(b, fileFormat)
	return binary.BigEndian.AppendUint64(b, n)
}

// Seal frames a small structure: magic, format, length, content, SHA-256 of all
// that. It is for files whose content has no other check.
func Seal(magic string, content []byte) []byte {
	b := append(make([]byte, 0, SealedSize(len(content))), magic...)
	b = binary.BigEndian.AppendUint32(b, fileFormat)
	b = binary.BigEndian.AppendUint32(b, uint32(len(content)))
	b = append(b, content...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// SealedSize is the length of what Seal makes of a content of n bytes.
func SealedSize(n int) int { return sealedHead + n + sha256.Size }

const sealedHead = 8 + 4 + 4

// Unseal returns the content that Seal framed at the start of b, and the length
// of the whole.
func Unseal(magic string, b []byte) (content []byte, n int, err error) {
	if len(b) < sealedHead || string(b[:8]) != magic || binary.BigEndian.Uint32(b[8:]) != fileFormat {
		return nil, 0, fmt.Errorf("%w: header", ErrMalformed)
	}
	size := uint64(binary.BigEndian.Uint32(b[12:]))
	if uint64(len(b)) < sealedHead+size+sha256.Size {
		return nil, 0, fmt.Errorf("%w: header cut short", ErrMalformed)
	}
	n = SealedSize(int(size))
	if sum := sha256.Sum256(b[:n-sha256.Size]); !bytes.Equal(sum[:], b[n-sha256.Size:n]) {
		return nil, 0, fmt.Errorf("%w: header checksum", ErrMalformed)
	}
	return b[sealedHead : sealedHead+size], n, nil
}
