package auditlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// createPending makes the file for entries after a gap. Its header holds the tree
// before its first entry, so that the gap can be checked when it is filled, even
// when the state has moved on.
func createPending(fsys FS, dir string, before Frontier) (*pending, error) {
	name := layout.PendingPath(before.size)
	r, err := createRun(fsys, dir, name, before.size, layout.Seal(layout.PendingMagic, before.appendBinary(nil)))
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", name, err)
	}
	before.segment = Hash{}
	return &pending{run: r, before: before, tree: before}, nil
}

// openPending reads a pending file. A torn end is cut off; durable is the index
// up to which there must be none.
func openPending(fsys FS, dir, name string, durable uint64) (p *pending, cut int64, err error) {
	path := filepath.Join(dir, name)
	f, err := fsys.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	before, head, size, err := ReadPendingHeader(f)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", name, err)
	}
	if name != layout.PendingPath(before.size) {
		return nil, 0, fmt.Errorf("%s: %w: it holds entries from %d on", name, ErrMalformed, before.size)
	}
	p = &pending{before: before, tree: before}
	p.run = &run{fs: fsys, path: path, name: name, file: f, first: before.size, head: head, end: head}
	err = layout.ScanFrames(f, head, size, func(off int64, frame []byte) error {
		e, leaf, err := DecodeFrame(frame)
		if err == nil && e.Index != p.next() {
			err = fmt.Errorf("%w: entry %d where %d belongs", ErrMalformed, e.Index, p.next())
		}
		if err != nil {
			return &layout.FrameError{Off: off, Err: err}
		}
		p.found(off, len(frame))
		p.tree.Append(leaf)
		return nil
	})
	if bad := (*layout.FrameError)(nil); errors.As(err, &bad) {
		if p.next() < durable {
			return nil, 0, fmt.Errorf("%w: %s, entry %d, %w", ErrCorrupt, name, p.next(), err)
		}
		cut = size - p.end
		p.dirty = true
		err = f.Truncate(p.end)
	}
	if err == nil && p.next() < durable {
		err = fmt.Errorf("%w: %s ends at entry %d, but %d were durable", ErrCorrupt, name, p.next(), durable)
	}
	return p, cut, err
}

// ReadPendingHeader reads the header of a pending file: the tree before its first
// entry, the offset of its first frame, and the size of the file. A header that is
// damaged is ErrMalformed.
func ReadPendingHeader(f File) (before Frontier, head, size int64, err error) {
	if size, err = f.Size(); err != nil {
		return before, 0, 0, err
	}
	b := make([]byte, min(size, int64(layout.SealedSize(maxFrontier))))
	if _, err = f.ReadAt(b, 0); err != nil && int64(len(b)) != size {
		return before, 0, 0, err
	}
	content, n, err := layout.Unseal(layout.PendingMagic, b)
	if err == nil {
		err = before.UnmarshalBinary(content)
	}
	return before, int64(n), size, err
}

// append writes entries and grows the run's tree.
func (p *pending) append(entries []Entry, leaves []Hash) error {
	if err := p.run.append(entries, leaves); err != nil {
		return err
	}
	for _, h := range leaves {
		p.tree.Append(h)
	}
	return nil
}

// at is the tree when it had size entries, which the run covers.
func (p *pending) at(size uint64) (Frontier, error) {
	if size == p.next() {
		return p.tree, nil
	}
	f := p.before
	if size == p.first {
		return f, nil
	}
	err := p.span(p.first).scan(p.fs, p.first, func(_ *Entry, leaf Hash) error {
		if f.Append(leaf); f.size == size {
			return errStop
		}
		return nil
	})
	return f, err
}

// mergeAll moves pending entries that the gap no longer parts from the others,
// holding mu throughout.
func (l *Log) mergeAll() error {
	for len(l.pending) > 0 && l.pending[0].first <= l.tree.size {
		done, err := l.mergeSome(1 << 30)
		if err != nil {
			return err
		}
		if !done {
			return fmt.Errorf("%w: %s does not join", ErrCorrupt, l.pending[0].name)
		}
	}
	return nil
}

// mergeSome moves at most n entries of the first pending run to its place behind
// the others, and says whether that was all of it. Until then new entries go on
// being appended to the run. Its file goes at the Sync that made its entries
// durable where they now are.
func (l *Log) mergeSome(n int) (done bool, err error) {
	p := l.pending[0]
	if l.tree.size == p.first && !l.tree.Equal(p.before) {
		return false, fmt.Errorf("%w: the entries below %d are not those before %s", ErrDiverged, p.first, p.name)
	}
	const batch = 256
	var entries []Entry
	var leaves []Hash
	move := func() error {
		err := l.extend(entries, leaves)
		entries, leaves = entries[:0], leaves[:0]
		return err
	}
	if l.tree.size < p.next() {
		err = p.span(l.tree.size).scan(l.fs, l.tree.size, func(e *Entry, leaf Hash) error {
			c := *e
			c.Body = append([]byte(nil), e.Body...)
			entries, leaves = append(entries, c), append(leaves, leaf)
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
	if l.tree.size < p.next() {
		return false, nil
	}
	if l.tree.size == p.next() && !l.tree.Equal(p.tree) {
		return false, fmt.Errorf("%w: the entries of %s changed", ErrCorrupt, p.name)
	}
	l.pending = l.pending[1:]
	l.retired = append(l.retired, p)
	l.notify()
	return true, nil
}
