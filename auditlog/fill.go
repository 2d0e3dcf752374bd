package auditlog

import (
	"fmt"
	"path/filepath"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// filler collects backfilled entries up to a point where the tree over them can
// be compared with one from the state. Until then they are in a file that a
// restart removes, and cannot be read.
type filler struct{ treeRun }

const fillFile = "backfill"

// Missing returns the range of entries, [from, to), that Fill wants next; ok is
// false if nothing is missing. It may begin before the gap, with entries that the
// log has but cannot verify by themselves.
func (l *Log) Missing() (from, to uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.missing()
}

func (l *Log) missing() (from, to uint64, ok bool) {
	c := &l.content
	p := c.gaps.after(c.tree.size)
	if p == nil || !c.restored {
		return 0, 0, false
	}
	if l.fill != nil && l.fill.next() < p.first {
		return l.fill.next(), p.first, true
	}
	return c.tree.size, p.first, true
}

// Fill adds entries from a peer, in order, beginning with the one that Missing
// names. It ignores entries beyond the gap. It keeps entries once they lead to a
// root in the state: that of their segment, or the one where the gap ends. For
// entries that do not, it returns ErrRejected and discards everything since the
// last such root: call Missing again, and ask another peer. When a gap is filled,
// the entries that were appended after it are joined.
func (l *Log) Fill(entries []Entry) error {
	l.fillMu.Lock()
	defer l.fillMu.Unlock()
	for len(entries) > 0 {
		n, err := l.collect(entries)
		if err != nil || n == 0 {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

// collect takes entries up to the next point where the tree can be compared, and
// returns how many it took; 0 if nothing is missing. fillMu is held.
func (l *Log) collect(entries []Entry) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed != nil {
		return 0, l.failed
	}
	from, to, ok := l.missing()
	if !ok {
		return 0, nil
	}
	if entries[0].Index != from {
		return 0, fmt.Errorf("%w: backfill begins at %d, not at %d", ErrGap, entries[0].Index, from)
	}
	if err := l.beginFill(from); err != nil {
		return 0, l.fail(err)
	}
	end := min(to, (from/SegmentSize+1)*SegmentSize)
	n := int(min(uint64(len(entries)), end-from))
	leaves, err := hashFrom(entries[:n], from)
	if err != nil {
		return 0, l.reject(err.Error())
	}
	if err := l.fill.append(entries[:n], leaves); err != nil {
		return 0, l.fail(err)
	}
	if l.fill.tree.size < end {
		return n, nil
	}
	known, why := l.content.vouches(&l.fill.tree, end, to)
	switch {
	case why != "":
		return 0, l.reject(why)
	case !known:
		return n, nil
	}
	return n, l.keep()
}

// hashFrom returns the leaf hashes of a peer's entries, which have to be numbered
// consecutively beginning with from.
func hashFrom(entries []Entry, from uint64) ([]Hash, error) {
	leaves := make([]Hash, len(entries))
	for i := range entries {
		e := &entries[i]
		if err := e.Check(); err != nil || e.Index != from+uint64(i) {
			return nil, fmt.Errorf("entry %d where %d belongs, or too long", e.Index, from+uint64(i))
		}
		leaves[i] = e.LeafHash()
	}
	return leaves, nil
}

// vouches compares the tree over backfilled entries with that of the state at end, where
// either a segment ends or the gap, which ends at to. If they differ, why says so. known
// is false if the restored state is older and does not have the root of the segment.
func (c *content) vouches(tree *Frontier, end, to uint64) (known bool, why string) {
	if k := end / SegmentSize; end%SegmentSize == 0 {
		switch {
		case k <= uint64(len(c.roots)) && tree.segment != c.roots[k-1]:
			return true, fmt.Sprintf("the root of %s is not the cluster's", layout.SegmentPath(k-1))
		case k > uint64(len(c.roots)) && end < to:
			return false, ""
		}
	}
	if end == to && !tree.Equal(c.gaps.after(to-1).before) {
		return true, fmt.Sprintf("the tree of %d entries is not the cluster's", to)
	}
	return true, ""
}

// beginFill creates the file for collected entries if there is none, and empties
// it if its entries reach past the gap, because a state was restored in which the
// gap ends sooner.
func (l *Log) beginFill(from uint64) error {
	if l.fill != nil {
		if l.fill.next() == from {
			return nil
		}
		l.fill.tree = l.content.tree.Frontier
		return l.fill.clear(from)
	}
	r, err := l.dir.create(filepath.Join(layout.TmpDir, fillFile), l.content.tree.size, nil)
	if err != nil {
		return fmt.Errorf("creating a file for backfill: %w", err)
	}
	l.fill = &filler{treeRun{r, l.content.tree.Frontier}}
	return nil
}

// reject discards what was collected. If that began in the middle of a segment,
// the error may be in this node's own entries before it, so the whole segment is
// requested next and compared with them.
func (l *Log) reject(why string) error {
	f := l.fill
	start := l.content.tree.size
	if f.first == start {
		start -= start % SegmentSize
	}
	err := f.clear(start)
	if err == nil {
		f.tree, err = l.content.tree.view().at(start)
	}
	if err != nil {
		return l.fail(err)
	}
	l.dir.logger.Warn("rejected backfilled audit entries", "reason", why)
	return fmt.Errorf("%w: %s", ErrRejected, why)
}

// keep moves the collected entries, which are verified, to their place, and joins
// pending entries if that closes the gap. It releases mu from time to time so that
// appends can go on.
func (l *Log) keep() error {
	f := l.fill
	breathe := func() error {
		l.mu.Unlock()
		l.mu.Lock()
		return l.failed
	}
	for i := f.first; i < f.next(); {
		var entries []Entry
		var leaves []Hash
		err := f.span(i).scan(l.dir.fs, i, func(e *Entry, leaf Hash) error {
			c := *e
			c.Body = append([]byte(nil), e.Body...)
			entries, leaves = append(entries, c), append(leaves, leaf)
			if len(entries) == fillBatch {
				return errStop
			}
			return nil
		})
		if err != nil {
			return l.fail(err)
		}
		if err := l.content.settle(entries, leaves); err != nil {
			return l.fail(err)
		}
		i += uint64(len(entries))
		if err := breathe(); err != nil {
			return err
		}
	}
	for l.content.joins() {
		done, err := l.content.mergeSome(fillBatch)
		if err != nil {
			return l.fail(err)
		}
		if done {
			l.notify()
		}
		if err := breathe(); err != nil {
			return err
		}
	}
	// The next collection begins where the entries now end.
	if err := f.clear(l.content.tree.size); err != nil {
		return l.fail(err)
	}
	f.tree = l.content.tree.Frontier
	l.notify()
	return nil
}

// fillBatch is how many entries are moved at a time.
const fillBatch = 1024
