package auditlog

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

const (
	// SegmentSize is the number of entries in a full segment file.
	SegmentSize = 1 << segmentLevel
	// TileWidth is the number of hashes in a full tile.
	TileWidth = 1 << layout.TileHeight

	segmentLevel = 16 // height of the subtree over one segment
)

// Frontier is a Merkle tree of which only the right edge is kept: its size and
// the roots of its complete subtrees, at most 63 hashes. That is enough to append
// and to know the root. It is a value: a copy shares nothing with its original.
// The zero value is the empty tree.
type Frontier struct {
	size uint64
	// nodes[l] is the root of the complete subtree of height l on the right edge
	// if bit l of size is set, and zero otherwise.
	nodes [64]Hash
	// segment is the root of the segment that the last Append completed.
	segment Hash
}

func nodeHash(left, right Hash) Hash {
	var b [1 + 2*HashSize]byte
	b[0] = 0x01
	copy(b[1:], left[:])
	copy(b[1+HashSize:], right[:])
	return sha256.Sum256(b[:])
}

// Append adds a leaf, given by its hash.
func (f *Frontier) Append(leaf Hash) {
	f.carry(leaf, 0, nil)
}

// appendSegment adds a whole segment, given by its root, to a tree of whole
// segments.
func (f *Frontier) appendSegment(root Hash) { f.carry(root, segmentLevel, nil) }

// carry adds a complete subtree. It works as binary addition does, with hashing
// as the carry. It calls visit for each complete subtree that results.
func (f *Frontier) carry(h Hash, level int, visit func(level int, h Hash)) {
	old := f.size
	f.segment = Hash{}
	f.size += 1 << level
	if f.size > math.MaxInt64 {
		panic("auditlog: tree overflow")
	}
	for ; ; level++ {
		if level == segmentLevel {
			f.segment = h
		}
		if visit != nil {
			visit(level, h)
		}
		if old>>level&1 == 0 {
			f.nodes[level] = h
			return
		}
		h = nodeHash(f.nodes[level], h)
		f.nodes[level] = Hash{}
	}
}

// Size returns the number of leaves.
func (f *Frontier) Size() uint64 { return f.size }

// Root returns the hash of the tree; for the empty tree, the SHA-256 of
// nothing.
func (f Frontier) Root() Hash {
	if f.size == 0 {
		return sha256.Sum256(nil)
	}
	l := bits.TrailingZeros64(f.size)
	h := f.nodes[l]
	for l++; l < len(f.nodes); l++ {
		if f.size>>l&1 == 1 {
			h = nodeHash(f.nodes[l], h)
		}
	}
	return h
}

// SegmentRoot returns the root of the segment that the last Append completed.
// It may be called only right after that, when Size is a positive multiple of
// SegmentSize: the tree forgets the root as it grows, and a decoded frontier
// has none.
func (f *Frontier) SegmentRoot() Hash {
	if f.segment == (Hash{}) {
		panic("auditlog: SegmentRoot without a segment just completed")
	}
	return f.segment
}

// Equal reports whether f and g are the same tree.
func (f Frontier) Equal(g Frontier) bool { return f.size == g.size && f.nodes == g.nodes }

// segments returns the part of the tree that covers whole segments.
func (f *Frontier) segments() Frontier {
	g := Frontier{size: f.size &^ (SegmentSize - 1)}
	copy(g.nodes[segmentLevel:], f.nodes[segmentLevel:])
	return g
}

// FoldSegments returns the tree over segments with those roots.
func FoldSegments(roots []Hash) Frontier {
	var f Frontier
	for _, r := range roots {
		f.appendSegment(r)
	}
	f.segment = Hash{}
	return f
}

const (
	frontierFormat = 1
	// maxFrontier is the longest encoding of a Frontier.
	maxFrontier = 1 + 8 + 63*HashSize
)

// MarshalBinary encodes f: format byte, size, and the hashes of its complete
// subtrees from the largest to the smallest. A tree has only one encoding.
func (f Frontier) MarshalBinary() ([]byte, error) {
	return f.appendBinary(nil), nil
}

func (f *Frontier) appendBinary(b []byte) []byte {
	b = append(b, frontierFormat)
	b = binary.BigEndian.AppendUint64(b, f.size)
	for l := len(f.nodes) - 1; l >= 0; l-- {
		if f.size>>l&1 == 1 {
			b = append(b, f.nodes[l][:]...)
		}
	}
	return b
}

// UnmarshalBinary decodes exactly what MarshalBinary encodes.
func (f *Frontier) UnmarshalBinary(b []byte) error {
	if len(b) < 9 || b[0] != frontierFormat {
		return fmt.Errorf("%w: not a frontier", ErrMalformed)
	}
	size := binary.BigEndian.Uint64(b[1:])
	if size > math.MaxInt64 || len(b) != 9+bits.OnesCount64(size)*HashSize {
		return fmt.Errorf("%w: a frontier of %d leaves in %d bytes", ErrMalformed, size, len(b))
	}
	g := Frontier{size: size}
	b = b[9:]
	for l := len(g.nodes) - 1; l >= 0; l-- {
		if size>>l&1 == 1 {
			copy(g.nodes[l][:], b)
			b = b[HashSize:]
		}
	}
	*f = g
	return nil
}
