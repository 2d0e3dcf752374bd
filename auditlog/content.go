package auditlog

import (
	"fmt"
	"slices"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// content is all entries that the log holds: those from 0 on, and those after gaps. It
// knows where an entry is or belongs, and keeps the first pending run after the end of
// the segments. It has no lock of its own: Log.mu guards it.
type content struct {
	segments
	gaps     gaps
	restored bool
	next     uint64 // index that the next new entry must have
}

func newContent(d *directory) content {
	return content{segments: segments{dir: d, tree: tiledTree{dir: d}}, gaps: gaps{dir: d}}
}

// load reads the files. What mark covers must be undamaged.
func (c *content) load(mark *DurableMark) error {
	c.tree.opening = true
	defer func() { c.tree.opening = false }()
	if err := c.loadSegments(mark); err != nil {
		return err
	}
	if err := c.tree.removeTiles(); err != nil {
		return err
	}
	if err := c.gaps.load(mark, c.tree.size); err != nil {
		return err
	}
	return c.mergeAll()
}

// size returns the number of entries in the tree, including those missing here.
func (c *content) size() uint64 {
	size := max(c.tree.size, c.next)
	if n := len(c.gaps.runs); n > 0 {
		size = max(size, c.gaps.runs[n-1].next())
	}
	return size
}

// files returns all open files.
func (c *content) files() (runs []*run) {
	runs = append(runs, c.sealed...)
	if c.newest != nil {
		runs = append(runs, c.newest)
	}
	for _, p := range slices.Concat(c.gaps.runs, c.gaps.retired) {
		runs = append(runs, p.run)
	}
	return runs
}

// restore does the work of Log.Restore, except for checking the roots and
// reporting a gap.
func (c *content) restore(f Frontier, roots []Hash) error {
	v := c.tree.view()
	if err := checkSegments(v, f, roots); err != nil {
		return err
	}
	if f.size <= c.tree.size {
		have, err := v.at(f.size)
		if err != nil {
			return err
		}
		if !have.Equal(f) {
			return fmt.Errorf("%w: %s has other entries below %d", ErrDiverged, layout.SegmentPath(f.size/SegmentSize), f.size)
		}
	} else if err := c.gaps.begin(f); err != nil {
		return err
	}
	c.roots = c.moreRoots(v, slices.Clone(roots))
	c.next = f.size
	c.restored = true
	return nil
}

// store compares the entries that are already stored and writes the others.
func (c *content) store(entries []Entry, leaves []Hash) error {
	for len(entries) > 0 {
		i := entries[0].Index
		p := c.gaps.at(i)
		n, err := len(entries), error(nil)
		switch {
		case i < c.tree.size || p != nil && i < p.next():
			n, err = c.compare(entries, leaves)
		case p != nil && i == p.next():
			if q := c.gaps.after(i); q != nil {
				n = int(min(uint64(n), q.first-i))
			}
			err = p.append(entries[:n], leaves[:n])
		case i == c.tree.size:
			if q := c.gaps.after(i); q != nil {
				n = int(min(uint64(n), q.first-i))
			}
			if err = c.extend(entries[:n], leaves[:n]); err == nil {
				// An older snapshot may be replayed up to where the gap ends.
				err = c.mergeAll()
			}
		default:
			return fmt.Errorf("%w: entry %d cannot be compared", ErrMissing, i)
		}
		if err != nil {
			return err
		}
		entries, leaves = entries[n:], leaves[n:]
		c.next = max(c.next, i+uint64(n))
	}
	return nil
}

// compare checks that entries are equal to the stored ones, for as long as there
// are any, and returns how many it checked. The first one is stored.
func (c *content) compare(entries []Entry, leaves []Hash) (int, error) {
	i := entries[0].Index
	if first := c.tree.firstLeaf(); i >= first && i < c.tree.size {
		have := c.tree.leaves[i-first:]
		n := min(len(have), len(leaves))
		for k := range n {
			if have[k] != leaves[k] {
				return 0, fmt.Errorf("%w: entry %d in %s has other content", ErrDiverged, i+uint64(k), layout.SegmentPath(i/SegmentSize))
			}
		}
		return n, nil
	}
	if c.here(i) != nil {
		have, err := c.tree.view().tile(0, i/TileWidth)
		n := min(uint64(len(leaves)), TileWidth-i%TileWidth)
		if err == nil && !slices.Equal(have[i%TileWidth:][:n], leaves[:n]) {
			err = fmt.Errorf("%w: entries %d to %d, which were removed, had other content", ErrDiverged, i, i+n-1)
		}
		return int(n), err
	}
	s, err := c.span(i)
	if err != nil {
		return 0, err
	}
	if s.unmarked {
		r, err := s.locate(c.dir.fs)
		if err != nil {
			return 0, err
		}
		c.keepMarks(r.first/SegmentSize, r.marks)
		s = r.span(i)
	}
	n := 0
	err = s.scan(c.dir.fs, i, func(e *Entry, leaf Hash) error {
		if leaf != leaves[n] {
			return fmt.Errorf("%w: entry %d in %s has other content", ErrDiverged, e.Index, s.name)
		}
		if n++; n == len(leaves) {
			return errStop
		}
		return nil
	})
	return n, err
}

// span finds where entry index is. At the end of the log it returns an empty span
// and no error.
func (c *content) span(index uint64) (span, error) {
	switch p := c.gaps.at(index); {
	case index < c.tree.size:
		return c.segments.span(index), c.here(index)
	case p != nil && index < p.next():
		return p.span(index), nil
	}
	if q := c.gaps.after(index); q != nil {
		return span{}, fmt.Errorf("%w: entry %d, but backfill must reach %d first", ErrMissing, index, q.first)
	}
	return span{}, nil
}

// mergeAll moves all pending entries to the segments that a gap no longer
// separates from them.
func (c *content) mergeAll() error {
	for c.joins() {
		done, err := c.mergeSome(1 << 30)
		if err != nil {
			return err
		}
		if !done {
			return fmt.Errorf("%w: %s does not continue the entries before it", ErrCorrupt, c.gaps.runs[0].name)
		}
	}
	return nil
}

// joins reports whether no gap separates the first pending run from the segments any
// more.
func (c *content) joins() bool { return len(c.gaps.runs) > 0 && c.gaps.runs[0].first <= c.tree.size }

// mergeSome moves at most n entries of the first pending run to the end of the
// segments, and reports whether that was all of it. Until then, new entries
// continue to be appended to the run. Its file is removed by the Sync that makes
// its entries durable in their new place.
func (c *content) mergeSome(n int) (done bool, err error) {
	p := c.gaps.runs[0]
	if c.tree.size == p.first && !c.tree.Equal(p.before) {
		return false, fmt.Errorf("%w: the entries below %d are not those before %s", ErrDiverged, p.first, p.name)
	}
	const batch = 256
	var entries []Entry
	var leaves []Hash
	move := func() error {
		err := c.extend(entries, leaves)
		entries, leaves = entries[:0], leaves[:0]
		return err
	}
	if c.tree.size < p.next() {
		err = p.span(c.tree.size).scan(c.dir.fs, c.tree.size, func(e *Entry, leaf Hash) error {
			own := *e
			own.Body = append([]byte(nil), e.Body...)
			entries, leaves = append(entries, own), append(leaves, leaf)
			if len(entries) == batch {
				if err := move(); err != nil {
					return err
				}
			}
			if n--; n == 0 {
				return errStop
			}
			return nil
		})
		if err == nil {
			err = move()
		}
		if err != nil {
			return false, fmt.Errorf("moving entries out of %s: %w", p.name, err)
		}
	}
	if c.tree.size < p.next() {
		return false, nil
	}
	if c.tree.size == p.next() && !c.tree.Equal(p.tree) {
		return false, fmt.Errorf("%w: the entries of %s changed", ErrCorrupt, p.name)
	}
	c.gaps.runs = c.gaps.runs[1:]
	c.gaps.retired = append(c.gaps.retired, p)
	return true, nil
}

// checkSegments compares the roots of the full segments that v and f both have.
func checkSegments(v *treeView, f Frontier, roots []Hash) error {
	n := min(v.tree.size, f.size) / SegmentSize
	have, err := v.at(n * SegmentSize)
	if err != nil {
		return err
	}
	if have.Equal(FoldSegments(roots[:n])) {
		return nil
	}
	for i := range n {
		if h, err := v.node(segmentLevel, i); err != nil || h != roots[i] {
			return fmt.Errorf("%w: the root of %s is not the cluster's", ErrDiverged, layout.SegmentPath(i))
		}
	}
	return fmt.Errorf("%w: a tile above the segments is not the cluster's", ErrDiverged)
}

// settle compares verified entries with the stored ones and appends the rest.
func (c *content) settle(entries []Entry, leaves []Hash) error {
	for len(entries) > 0 {
		n, err := len(entries), error(nil)
		if entries[0].Index < c.tree.size {
			n, err = c.compare(entries, leaves)
		} else {
			err = c.extend(entries, leaves)
		}
		if err != nil {
			return err
		}
		entries, leaves = entries[n:], leaves[n:]
	}
	return nil
}
