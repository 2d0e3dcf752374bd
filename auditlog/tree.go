package auditlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// fold returns the root of the complete tree over hashes, whose number must be
// a power of two.
func fold(hashes []Hash) Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	m := len(hashes) / 2
	return nodeHash(fold(hashes[:m]), fold(hashes[m:]))
}

// SegmentRoot returns the root of a full segment with those leaves; if they are not a full
// segment, the zero hash, which is the root of none.
func SegmentRoot(leaves []Hash) Hash {
	if len(leaves) != SegmentSize {
		return Hash{}
	}
	return fold(leaves)
}

// JoinHashes returns the content of a tile's file.
func JoinHashes(hashes []Hash) []byte {
	b := make([]byte, 0, len(hashes)*HashSize)
	for i := range hashes {
		b = append(b, hashes[i][:]...)
	}
	return b
}

// treeView reads the hashes of a tree of a fixed size: leaves of the last segment
// from memory, and the rest from tiles, which never change. It needs no lock, but
// is not safe for concurrent use.
type treeView struct {
	dir    *directory
	tree   Frontier
	first  uint64 // index of leaves[0]; a multiple of SegmentSize
	leaves []Hash
	folded []Hash // roots of the full tiles of leaves
	tiles  map[string][]Hash
}

// node returns the root of the n-th complete subtree of a height.
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
	b, err := v.dir.read(name, TileWidth*HashSize)
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

// at returns the tree when it had size leaves.
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
			// The same subtree is still on the right edge, so only the smaller ones
			// have to be computed again, which are few if little was added since.
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

// tiledTree is the Merkle tree over the entries from 0 on: its right edge, and its
// hashes. Those that are in no full tile are in memory. When grow returns, every full
// tile is in its file. It has no lock of its own.
type tiledTree struct {
	dir *directory
	Frontier
	leaves []Hash   // of the newest segment, unless that is full
	folded []Hash   // roots of the tiles that leaves fill
	tiles  []string // files that are not durable yet
	// opening is set while the log is opened, when the file of a tile may
	// already exist.
	opening bool
}

// grow adds a leaf to the tree and writes the tiles that it fills.
func (t *tiledTree) grow(leaf Hash) error {
	if t.leaves == nil {
		// Allocated at its final size, as growing would copy it over and over.
		t.leaves = make([]Hash, 0, SegmentSize)
		t.folded = make([]Hash, 0, SegmentSize/TileWidth)
	}
	t.leaves = append(t.leaves, leaf)
	if len(t.leaves)%TileWidth != 0 {
		t.carry(leaf, 0, nil)
		return nil
	}
	var full []Hash // roots of the tiles that are full now, from level 0 up
	t.carry(leaf, 0, func(level int, h Hash) {
		if level > 0 && level%layout.TileHeight == 0 {
			full = append(full, h)
		}
	})
	t.folded = append(t.folded, full[0])
	for level, root := range full {
		if err := t.writeTile(level, root); err != nil {
			return err
		}
	}
	return nil
}

// writeTile writes the tile of a level that the newest leaf filled.
func (t *tiledTree) writeTile(level int, root Hash) error {
	n := t.size>>(layout.TileHeight*(level+1)) - 1
	var hashes []Hash
	switch level {
	case 0:
		hashes = t.leaves[len(t.leaves)-TileWidth:]
	case 1:
		hashes = t.folded // of the whole segment
	default:
		// Not with node, which would look in the tile that is being made.
		v := t.view()
		for i := range uint64(TileWidth) {
			below, err := v.tile(level-1, n<<layout.TileHeight+i)
			if err != nil {
				return err
			}
			hashes = append(hashes, fold(below))
		}
	}
	b := JoinHashes(hashes)
	name := layout.TilePath(level, n)
	// The tile is not durable yet. The tiles of the newest segment are made again
	// from it when the log is opened, so only those of full segments have to be on
	// disk.
	t.tiles = append(t.tiles, name)
	// Above the leaves, a tile is made from other tiles, which may have been
	// damaged since.
	if level > 0 && fold(hashes) != root {
		return fmt.Errorf("%w: the tiles below %s do not match its root", ErrCorrupt, name)
	}
	if t.opening {
		have, err := t.dir.read(name, TileWidth*HashSize)
		if err == nil && bytes.Equal(have, b) {
			return nil
		}
		t.dir.logger.Warn("making an audit tile again", "file", name)
	}
	err := t.dir.put(name, b, false)
	if errors.Is(err, fs.ErrNotExist) { // the first in its directory
		if err = t.dir.makeFor(name); err == nil {
			err = t.dir.put(name, b, false)
		}
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

// firstLeaf returns the index of leaves[0].
func (t *tiledTree) firstLeaf() uint64 { return t.size - uint64(len(t.leaves)) }

// view returns a view of the tree as it is now.
func (t *tiledTree) view() *treeView {
	return &treeView{dir: t.dir, tree: t.Frontier, first: t.firstLeaf(), leaves: t.leaves, folded: t.folded}
}

// removeTiles removes tiles of entries that were lost in a crash.
func (t *tiledTree) removeTiles() error {
	levels, err := t.dir.list(layout.TileDir)
	if err != nil {
		return err
	}
	for _, name := range levels {
		level, err := strconv.Atoi(strings.TrimSuffix(name, "/"))
		if err != nil || level < 0 || level > 7 {
			continue
		}
		// They are in the directory of the first tile that is not full, or in
		// later ones.
		full := t.size >> (layout.TileHeight * (level + 1))
		for group := full / 1000; ; group++ {
			dir := filepath.Dir(layout.TilePath(level, group*1000))
			names, err := t.dir.list(dir)
			if errors.Is(err, fs.ErrNotExist) {
				break
			}
			if err != nil {
				return err
			}
			for _, name := range names {
				i, err := strconv.ParseUint(name, 10, 16)
				if err != nil || group*1000+i < full {
					continue
				}
				t.dir.dirty(dir)
				if err := t.dir.remove(filepath.Join(dir, name)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
