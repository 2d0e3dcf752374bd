// Package layout describes a log directory: the names of its files, their headers, and
// where one frame ends and the next begins.
//
// Those who need this must agree on it: auditlog, which writes a log directory,
// auditlog/verify, which checks one without opening it, and auditlog/archive, which keeps
// its files elsewhere. The meaning of frames and the tree over the entries belong to
// auditlog. docs/audit-format.md specifies the formats. Nothing here does I/O of its own or
// keeps state.
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
	RemovedFile    = "removed"
	SegmentDir     = "segments"
	PendingDir     = "pending"
	TileDir        = "tile"
	TmpDir         = "tmp"
)

// TileHeight is the height of the subtree over one full tile.
const TileHeight = 8

// MaxCheckpoint is the longest checkpoint that is read, in bytes: with its own two signatures,
// and cosignatures of some witnesses, which may be of 3.3 KiB each.
const MaxCheckpoint = 64 << 10

// Every file of frames begins with a header that says which it is.
const (
	segmentMagic = "CNCLVSEG"
	// PendingMagic, DurableMagic and RemovedMagic begin the checksummed header of a pending
	// file, the durable mark, and the note of what was removed; see Seal.
	PendingMagic = "CNCLVPND"
	DurableMagic = "CNCLVDUR"
	RemovedMagic = "CNCLVRMV"
	fileFormat   = 1
)

// SegmentHeaderSize is the length of a segment's header: the first frame follows it.
const SegmentHeaderSize = 8 + 4 + 8

// ErrMalformed is returned for bytes that cannot be decoded.
var ErrMalformed = errors.New("malformed audit data")

// SegmentPath returns the path of segment n.
func SegmentPath(n uint64) string { return filepath.Join(SegmentDir, fmt.Sprintf("%08d.seg", n)) }

// SegmentNumber is the inverse of SegmentPath's last element.
func SegmentNumber(name string) (uint64, bool) {
	s, ok := strings.CutSuffix(name, ".seg")
	n, err := strconv.ParseUint(s, 10, 47)
	return n, ok && err == nil && filepath.Base(SegmentPath(n)) == name
}

// PendingPath returns the path of the pending file whose first entry is first.
func PendingPath(first uint64) string {
	return filepath.Join(PendingDir, fmt.Sprintf("%020d.seg", first))
}

// TilePath returns the path of a full tile, as in C2SP tlog-tiles.
func TilePath(level int, n uint64) string {
	s := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		s = fmt.Sprintf("x%03d/%s", n%1000, s)
	}
	return filepath.Join(TileDir, strconv.Itoa(level), s)
}

// SegmentHeader returns the header of segment n.
func SegmentHeader(n uint64) []byte {
	b := append(make([]byte, 0, SegmentHeaderSize), segmentMagic...)
	b = binary.BigEndian.AppendUint32(b, fileFormat)
	return binary.BigEndian.AppendUint64(b, n)
}

// Seal adds a header and a checksum to a small structure: magic, format,
// length, content, and the SHA-256 of all of these. It is for content that
// nothing else checks.
func Seal(magic string, content []byte) []byte {
	b := append(make([]byte, 0, SealedSize(len(content))), magic...)
	b = binary.BigEndian.AppendUint32(b, fileFormat)
	b = binary.BigEndian.AppendUint32(b, uint32(len(content)))
	b = append(b, content...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// SealedSize returns the length of the result of Seal for a content of n bytes.
func SealedSize(n int) int { return sealedHead + n + sha256.Size }

const sealedHead = 8 + 4 + 4

// Unseal checks the result of Seal at the start of b, and returns its content
// and its length.
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
