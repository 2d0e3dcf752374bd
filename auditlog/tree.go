package auditlog

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// fold is the root of the complete tree over hashes, whose number is a power of
// two.
func fold(hashes []Hash) Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	m := len(hashes) / 2
	return nodeHash(fold(hashes[:m]), fold(hashes[m:]))
}

// treeView reads the hashes of a tree of a fixed size: leaves of the last segment
// from memory, the rest from tiles, which never change. It needs no lock and is
// for one goroutine.
type treeView struct {
	fs     FS
	dir    string
	tree   Frontier
	first  uint64 // index of leaves[0]; a multiple of SegmentSize
	leaves []Hash
	folded []Hash // roots of the full tiles of leaves
	tiles  map[string][]Hash
}

// node is the root of the complete subtree number n of a height.
func (v *treeView) node(level int, n uint64) (Hash, error) {
	begin, end := n<<level, (n+1)<<level
	if end > v.tree.size || end <= begin {
		return Hash{}, fmt.Errorf("%w: no subtree %d of height %d in a tree of %d", ErrMissing, n, level, v.tree.size)
	}
	if begin >= v.first && level >= layout.TileHeight {
		return fold(v.folded[(begin-v.first)>>layout.TileHeight : (end-v.first)>>layout.TileHeight]), nil
	}
	if begin >= v.first {
		return fold(v.leaves[begin-v.first : end-v.first]), nil
	}
	L, r := level/layout.TileHeight, level%layout.TileHeight
	if t := n << r >> layout.TileHeight; (t+1)<<(layout.TileHeight*(L+1)) <= v.tree.size {
		hashes, err := v.tile(L, t)
		if err != nil {
			return Hash{}, err
		}
		i := n << r % TileWidth
		return fold(hashes[i : i+1<<r]), nil
	}
	// The tile is not full yet, so it is not stored; the full tiles below are.
	hashes := make([]Hash, 1<<r)
	for i := range hashes {
		below, err := v.tile(L-1, n<<r+uint64(i))
		if err != nil {
			return Hash{}, err
		}
		hashes[i] = fold(below)
	}
	return fold(hashes), nil
}

func (v *treeView) tile(level int, n uint64) ([]Hash, error) {
	name := layout.TilePath(level, n)
	if t := v.tiles[name]; t != nil {
		return t, nil
	}
	b, err := ReadFile(v.fs, filepath.Join(v.dir, name), TileWidth*HashSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: no tile %s", ErrCorrupt, name)
	}
	if err != nil {
		return nil, err
	}
	if len(b) != TileWidth*HashSize {
		return nil, fmt.Errorf("%w: tile %s has %d bytes", ErrCorrupt, name, len(b))
	}
	t := make([]Hash, TileWidth)
	for i := range t {
		copy(t[i][:], b[i*HashSize:])
	}
	if v.tiles == nil || len(v.tiles) >= 1024 {
		v.tiles = make(map[string][]Hash)
	}
	v.tiles[name] = t
	return t, nil
}

// at is the tree when it had size leaves.
func (v *treeView) at(size uint64) (Frontier, error) {
	if size == v.tree.size {
		return v.tree, nil
	}
	if size > v.tree.size {
		return Frontier{}, fmt.Errorf("%w: the tree has %d entries, not %d", ErrMissing, v.tree.size, size)
	}
	f := Frontier{size: size}
	for l := range f.nodes {
		if size>>l&1 == 0 {
			continue
		}
		if size>>l == v.tree.size>>l {
			// The same subtree is on the right edge now: the smaller ones alone have
			// to be put together again, which are few when little came since.
			f.nodes[l] = v.tree.nodes[l]
			continue
		}
		var err error
		if f.nodes[l], err = v.node(l, size>>(l+1)<<1); err != nil {
			return Frontier{}, err
		}
	}
	return f, nil
}

// ReadHashes implements tlog.HashReader.
func (v *treeView) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		level, n := tlog.SplitStoredHashIndex(x)
		h, err := v.node(level, uint64(n))
		if err != nil {
			return nil, err
		}
		hashes[i] = tlog.Hash(h)
	}
	return hashes, nil
}
