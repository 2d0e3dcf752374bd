package auditlog

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// ErrArchived is returned, as an [ArchivedError], for entries whose segments were removed from
// this node, since they are in an archive. Their hashes are still here.
var ErrArchived = errors.New("audit entries were moved to an archive")

// ArchivedError says where an entry is that is not here.
type ArchivedError struct {
	Index uint64
	Place string
}

// Error implements error.
func (e *ArchivedError) Error() string {
	return fmt.Sprintf("%v: entry %d is in %s", ErrArchived, e.Index, e.Place)
}

// Is implements the interface of errors.Is.
func (e *ArchivedError) Is(err error) bool { return err == ErrArchived }

// Removed says which segments were removed from a log directory.
type Removed = layout.Removed

// ReadRemoved reads what was removed from the log directory dir.
func ReadRemoved(fsys FS, dir string) (Removed, error) {
	b, err := ReadFile(fsys, filepath.Join(dir, layout.RemovedFile), layout.MaxRemoved)
	if errors.Is(err, fs.ErrNotExist) {
		return Removed{}, nil
	}
	if err != nil {
		return Removed{}, err
	}
	r, err := layout.DecodeRemoved(b)
	if err != nil {
		err = fmt.Errorf("%w: %s: %w", ErrCorrupt, layout.RemovedFile, err)
	}
	return r, err
}

// here returns ErrArchived for an entry that was removed.
func (s *segments) here(index uint64) error {
	if index >= s.removed.Segments*SegmentSize {
		return nil
	}
	return &ArchivedError{index, s.removed.Place}
}

// Removed returns which segments were removed.
func (l *Log) Removed() Removed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.content.removed
}

// RemoveSegments removes the files of the first n segments, which the caller has copied to the
// archive at place. Each is scrubbed first, so that the tiles that stay are intact: for damage,
// RemoveSegments returns ErrCorrupt, and keeps that segment and those after it.
//
// What is removed is noted durably before. A crash in between leaves files that the next Open
// removes.
func (l *Log) RemoveSegments(n uint64, place string) error {
	for r := l.Removed(); r.Segments < n; r = l.Removed() {
		if err := l.Scrub(r.Segments); err != nil {
			return err
		}
		if err := l.removeSegment(Removed{Segments: r.Segments + 1, Place: place}); err != nil {
			return err
		}
	}
	return nil
}

// removeSegment removes the last of the segments that are then removed.
func (l *Log) removeSegment(r Removed) error {
	l.fillMu.Lock()
	defer l.fillMu.Unlock()
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	durable, had := l.durable, l.content.removed.Segments
	l.mu.Unlock()
	content, err := r.Encode()
	if err != nil || had != r.Segments-1 || r.Segments*SegmentSize >= durable {
		return fmt.Errorf("%w: segment %d cannot be removed", ErrMissing, r.Segments-1)
	}
	return l.replace(func() error {
		if err := l.dir.put(layout.RemovedFile, content, true); err != nil {
			return err
		}
		l.mu.Lock()
		l.content.removed = r
		l.mu.Unlock()
		if err := l.dir.remove(layout.SegmentPath(r.Segments - 1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return l.dir.fs.SyncDir(l.dir.at(layout.SegmentDir))
	})
}

// treeOfRemoved returns the tree over the segments that were removed.
func (s *segments) treeOfRemoved() (Frontier, error) {
	// The number of segments is what a file says. The roots grow only by those that have a tile.
	v, roots := treeView{dir: s.dir}, []Hash(nil)
	for n := range s.removed.Segments {
		hashes, err := v.tile(1, n)
		if err != nil {
			return Frontier{}, err
		}
		roots = append(roots, fold(hashes))
	}
	return FoldSegments(roots), nil
}

// leavesOfRemoved returns the leaf hashes of a segment that was removed.
func (d *directory) leavesOfRemoved(n uint64) ([]Hash, error) {
	v, leaves := treeView{dir: d}, make([]Hash, 0, SegmentSize)
	for i := range uint64(TileWidth) {
		hashes, err := v.tile(0, n*TileWidth+i)
		if err != nil {
			return nil, err
		}
		leaves = append(leaves, hashes...)
	}
	return leaves, nil
}
