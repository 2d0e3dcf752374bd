package auditlog

import (
	"errors"
	"fmt"
	"os"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// treeRun is a run together with the tree up to its end.
type treeRun struct {
	*run
	tree Frontier
}

// pending is a run of entries after a gap.
type pending struct {
	treeRun
	before Frontier // the tree up to its first entry, from the state
}

// createPending creates the file for entries after a gap. Its header holds the
// tree before its first entry, so that the gap can be checked when it is filled,
// even if the state has moved on.
func createPending(d *directory, before Frontier) (*pending, error) {
	name := layout.PendingPath(before.size)
	r, err := d.create(name, before.size, layout.Seal(layout.PendingMagic, before.appendBinary(nil)))
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", name, err)
	}
	before.segment = Hash{}
	return &pending{treeRun{r, before}, before}, nil
}

// openPending reads a pending file. A torn end is cut off, but not before the
// index durable.
func openPending(d *directory, name string, durable uint64) (p *pending, cut int64, err error) {
	path := d.at(name)
	f, err := d.fs.OpenFile(path, os.O_RDWR, 0)
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
	r := &run{fs: d.fs, path: path, name: name, file: f, first: before.size, head: head, end: head}
	p = &pending{treeRun{r, before}, before}
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

// ReadPendingHeader reads the header of a pending file. It returns the tree before
// the first entry, the offset of the first frame and the size of the file, or
// ErrMalformed if the header is damaged.
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

// append writes entries and adds them to the tree.
func (t *treeRun) append(entries []Entry, leaves []Hash) error {
	if err := t.run.append(entries, leaves); err != nil {
		return err
	}
	for _, h := range leaves {
		t.tree.Append(h)
	}
	return nil
}

// at returns the tree when it had size entries, which must be within the run.
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
