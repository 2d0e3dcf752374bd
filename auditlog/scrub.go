package auditlog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// Scrub reads full segment n and compares it with its root in the state. It
// returns ErrCorrupt for damage, which Repair can mend. If the segment is
// intact, damaged tiles over it are made again. Of a segment that was removed, it
// reads the tiles. The first Size()/SegmentSize segments are full, unless some are
// missing.
func (l *Log) Scrub(n uint64) error {
	root, err := l.sealedRoot(n)
	if err != nil {
		return err
	}
	leaves, err := l.dir.readSegment(n)
	if n < l.Removed().Segments { // maybe only since it is read, so that its file is missing
		leaves, err = l.dir.leavesOfRemoved(n)
	}
	if err != nil {
		return err
	}
	if SegmentRoot(leaves) != root {
		return fmt.Errorf("%w: the root of %s is not the cluster's", ErrCorrupt, layout.SegmentPath(n))
	}
	l.fillMu.Lock()
	defer l.fillMu.Unlock()
	return l.mendTiles(n, leaves)
}

// sealedRoot returns the root that full segment n must have.
func (l *Log) sealedRoot(n uint64) (Hash, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.failed != nil:
		return Hash{}, l.failed
	case n >= l.content.tree.size/SegmentSize:
		return Hash{}, fmt.Errorf("%w: segment %d is not full here", ErrMissing, n)
	case n >= uint64(len(l.content.roots)):
		return Hash{}, fmt.Errorf("%w: the root of segment %d is not known yet", ErrMissing, n)
	}
	return l.content.roots[n], nil
}

// readSegment checks a segment file's frames and returns their leaf hashes.
func (d *directory) readSegment(n uint64) ([]Hash, error) {
	name := layout.SegmentPath(n)
	path := d.at(name)
	f, err := d.fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	defer f.Close()
	head := make([]byte, layout.SegmentHeaderSize)
	if _, err := f.ReadAt(head, 0); err != nil || !bytes.Equal(head, layout.SegmentHeader(n)) {
		return nil, fmt.Errorf("%w: %s: header", ErrCorrupt, name)
	}
	s := span{path: path, name: name, index: n * SegmentSize, off: layout.SegmentHeaderSize, next: (n + 1) * SegmentSize}
	leaves := make([]Hash, 0, SegmentSize)
	err = s.scan(d.fs, s.index, func(_ *Entry, leaf Hash) error {
		leaves = append(leaves, leaf)
		return nil
	})
	return leaves, err
}

// mendTiles compares the tiles that segment n filled with what they must be, and
// writes those that differ again. fillMu is held.
func (l *Log) mendTiles(n uint64, leaves []Hash) error {
	l.mu.Lock()
	roots := l.content.roots
	l.mu.Unlock()
	return EachTile(n, leaves, roots, func(level int, n uint64, hashes []Hash) error {
		name, want := layout.TilePath(level, n), JoinHashes(hashes)
		have, err := l.dir.read(name, TileWidth*HashSize)
		if err == nil && bytes.Equal(have, want) {
			return nil
		}
		l.dir.logger.Warn("making a damaged audit tile again", "file", name, "err", err)
		return l.replace(func() error {
			if err := l.dir.makeFor(name); err != nil {
				return err
			}
			return l.dir.put(name, want, true)
		})
	})
}

// EachTile calls fn with the tiles that segment n filled. Those of levels 0 and 1 follow
// from leaves, which are the leaf hashes of the segment, and those above from the roots
// of the segments up to it.
func EachTile(n uint64, leaves, roots []Hash, fn func(level int, n uint64, hashes []Hash) error) error {
	level1 := make([]Hash, TileWidth)
	for i := range level1 {
		t := leaves[i*TileWidth : (i+1)*TileWidth]
		if err := fn(0, n*TileWidth+uint64(i), t); err != nil {
			return err
		}
		level1[i] = fold(t)
	}
	if err := fn(1, n, level1); err != nil {
		return err
	}
	// A hash of level 2 covers one segment, one of level 3 covers 256, and so
	// on.
	for level, each := 2, uint64(1); (n+1)%(each*TileWidth) == 0; level, each = level+1, each*TileWidth {
		t := (n+1)/(each*TileWidth) - 1
		hashes := make([]Hash, TileWidth)
		for i := range hashes {
			first := (t*TileWidth + uint64(i)) * each
			hashes[i] = fold(roots[first : first+each])
		}
		if err := fn(level, t, hashes); err != nil {
			return err
		}
	}
	return nil
}

// replace changes files that are in use, and stops the log if that fails.
func (l *Log) replace(change func() error) error {
	l.mu.Lock()
	failed := l.failed
	l.mu.Unlock()
	if failed != nil {
		return failed
	}
	if err := change(); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.fail(err)
	}
	return nil
}

const repairFile = "repair"

// Repair replaces full segment n by entries from a peer. It calls fetch with the
// next index that it needs until it has them all; what fetch returns must begin
// there. If the entries do not lead to the segment's root in the state, Repair
// returns ErrRejected and changes nothing.
func (l *Log) Repair(n uint64, fetch func(from uint64) ([]Entry, error)) error {
	root, err := l.sealedRoot(n)
	if err != nil {
		return err
	}
	l.fillMu.Lock()
	defer l.fillMu.Unlock()
	tmp, name := filepath.Join(layout.TmpDir, repairFile), layout.SegmentPath(n)
	if err := l.dir.remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	leaves, err := l.dir.fetchSegment(tmp, n, fetch)
	if err != nil {
		return err
	}
	if SegmentRoot(leaves) != root {
		return fmt.Errorf("%w: the root of %s is not the cluster's", ErrRejected, name)
	}
	err = l.replace(func() error {
		if n < l.Removed().Segments { // only its tiles are mended
			return l.dir.remove(tmp)
		}
		if err := l.dir.fs.Rename(l.dir.at(tmp), l.dir.at(name)); err != nil {
			return err
		}
		return l.dir.fs.SyncDir(l.dir.at(layout.SegmentDir))
	})
	if err != nil {
		return err
	}
	l.dir.logger.Warn("replaced a damaged audit segment by a peer's", "file", name)
	l.mu.Lock()
	delete(l.content.marks, n) // they may be offsets in the damaged file
	l.mu.Unlock()
	return l.mendTiles(n, leaves)
}

// fetchSegment writes the entries of segment n that fetch returns to the file name,
// durably, and returns their leaf hashes.
func (d *directory) fetchSegment(name string, n uint64, fetch func(from uint64) ([]Entry, error)) (leaves []Hash, err error) {
	r, err := d.create(name, n*SegmentSize, layout.SegmentHeader(n))
	if err != nil {
		return nil, fmt.Errorf("creating a file for repair: %w", err)
	}
	defer func() { err = errors.Join(err, r.file.Close()) }()
	leaves = make([]Hash, 0, SegmentSize)
	for r.count < SegmentSize {
		entries, err := fetch(r.next())
		if err != nil {
			return nil, fmt.Errorf("fetching entry %d: %w", r.next(), err)
		}
		entries = entries[:min(uint64(len(entries)), SegmentSize-r.count)]
		if len(entries) == 0 {
			return nil, fmt.Errorf("%w: none from %d on", ErrRejected, r.next())
		}
		more, err := hashFrom(entries, r.next())
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRejected, err)
		}
		if err := r.append(entries, more); err != nil {
			return nil, err
		}
		leaves = append(leaves, more...)
	}
	if err := r.file.Sync(); err != nil {
		return nil, fmt.Errorf("syncing a repaired segment: %w", err)
	}
	return leaves, nil
}
