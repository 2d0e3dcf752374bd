package auditlog

import (
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// ErrProof is returned for an invalid proof.
var ErrProof = errors.New("invalid proof")

// maxTree bounds the trees of proofs, whose arithmetic is done in int64.
const maxTree = 1 << 56

func tlogSize(n uint64) (int64, error) {
	if n > maxTree {
		return 0, fmt.Errorf("%w: a tree of %d entries", ErrProof, n)
	}
	return int64(n), nil
}

// ProveInclusion returns a proof that the tree of the first size entries has the
// entry at index, as in RFC 6962 section 2.1.1.
func (l *Log) ProveInclusion(index, size uint64) ([]Hash, error) {
	if index >= size {
		return nil, fmt.Errorf("%w: entry %d in a tree of %d", ErrProof, index, size)
	}
	v, t, err := l.proofView(size)
	if err != nil {
		return nil, err
	}
	p, err := tlog.ProveRecord(t, int64(index), v)
	if err != nil {
		return nil, fmt.Errorf("proving entry %d in %d: %w", index, size, err)
	}
	f, err := v.at(size)
	if err != nil {
		return nil, err
	}
	leaf, err := v.node(0, index)
	if err != nil {
		return nil, err
	}
	proof := fromTlog(p)
	// A damaged tile must not lead to a wrong proof.
	if err := VerifyInclusion(proof, index, size, leaf, f.Root()); err != nil {
		return nil, fmt.Errorf("%w: the tiles below entry %d", ErrCorrupt, size)
	}
	return proof, nil
}

// ProveConsistency returns a proof that the tree of the first size entries begins
// with the tree of the first old ones, as in RFC 6962 section 2.1.2. Both must be
// positive.
func (l *Log) ProveConsistency(old, size uint64) ([]Hash, error) {
	if old == 0 || old > size {
		return nil, fmt.Errorf("%w: from a tree of %d to one of %d", ErrProof, old, size)
	}
	v, t, err := l.proofView(size)
	if err != nil {
		return nil, err
	}
	p, err := tlog.ProveTree(t, int64(old), v)
	if err != nil {
		return nil, fmt.Errorf("proving %d in %d: %w", old, size, err)
	}
	before, err := v.at(old)
	if err != nil {
		return nil, err
	}
	f, err := v.at(size)
	if err != nil {
		return nil, err
	}
	proof := fromTlog(p)
	if err := VerifyConsistency(proof, old, size, before.Root(), f.Root()); err != nil {
		return nil, fmt.Errorf("%w: the tiles below entry %d", ErrCorrupt, size)
	}
	return proof, nil
}

func (l *Log) proofView(size uint64) (*treeView, int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return nil, 0, l.failed
	}
	if size > l.content.tree.size {
		return nil, 0, fmt.Errorf("%w: a tree of %d entries; %d are here", ErrMissing, size, l.content.tree.size)
	}
	t, err := tlogSize(size)
	return l.content.tree.view(), t, err
}

// VerifyInclusion verifies a proof that the tree of size entries with that root
// has the leaf at index.
func VerifyInclusion(proof []Hash, index, size uint64, leaf, root Hash) error {
	t, err := tlogSize(size)
	if err != nil || index >= size {
		return fmt.Errorf("%w: entry %d in a tree of %d", ErrProof, index, size)
	}
	if err := tlog.CheckRecord(toTlog(proof), t, tlog.Hash(root), int64(index), tlog.Hash(leaf)); err != nil {
		return fmt.Errorf("%w: entry %d in a tree of %d", ErrProof, index, size)
	}
	return nil
}

// VerifyConsistency verifies a proof that the tree of size entries with that
// root begins with the tree of old entries with root oldRoot.
func VerifyConsistency(proof []Hash, old, size uint64, oldRoot, root Hash) error {
	t, err := tlogSize(size)
	if err != nil || old == 0 || old > size {
		return fmt.Errorf("%w: from a tree of %d to one of %d", ErrProof, old, size)
	}
	if err := tlog.CheckTree(toTlog(proof), t, tlog.Hash(root), int64(old), tlog.Hash(oldRoot)); err != nil {
		return fmt.Errorf("%w: a tree of %d entries does not begin with that of %d", ErrProof, size, old)
	}
	return nil
}

func toTlog(hashes []Hash) []tlog.Hash {
	out := make([]tlog.Hash, len(hashes))
	for i, h := range hashes {
		out[i] = tlog.Hash(h)
	}
	return out
}

func fromTlog(hashes []tlog.Hash) []Hash {
	out := make([]Hash, len(hashes))
	for i, h := range hashes {
		out[i] = Hash(h)
	}
	return out
}

// Tile returns the first width hashes, at most TileWidth, of a tile of the tree of the first
// size entries: those of the complete subtrees of height 8·level that are numbered from
// 256·n on. It returns ErrProof if the tree has not that many, and ErrMissing if this log does
// not have the tree.
func (l *Log) Tile(level int, n uint64, width int, size uint64) ([]Hash, error) {
	v, _, err := l.proofView(size)
	if err != nil {
		return nil, err
	}
	if level < 0 || level > 6 || width < 1 || width > TileWidth || n > maxTree>>layout.TileHeight || n*TileWidth+uint64(width) > size>>(layout.TileHeight*level) {
		return nil, fmt.Errorf("%w: tile %d of level %d with %d hashes in a tree of %d entries", ErrProof, n, level, width, size)
	}
	hashes := make([]Hash, width)
	for i := range hashes {
		if hashes[i], err = v.node(layout.TileHeight*level, n*TileWidth+uint64(i)); err != nil {
			return nil, err
		}
	}
	return hashes, nil
}
