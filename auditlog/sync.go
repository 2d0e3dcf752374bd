package auditlog

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// Sync makes everything appended so far durable. It may run concurrently with
// Append.
func (l *Log) Sync() error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	if l.failed != nil {
		defer l.mu.Unlock()
		return l.failed
	}
	due := l.content.takeDue()
	l.mu.Unlock()
	if due.none() {
		return nil
	}
	err := due.flush(l.dir)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		return l.fail(err)
	}
	l.durable = due.mark.Tree.size
	return nil
}

// due is what a Sync has to do, collected from the content at one moment.
type due struct {
	runs    []*run // with frames that are not durable
	sealed  []*run // to be closed
	tiles   []string
	dirs    map[string]struct{}
	mark    DurableMark // to write when all of that is done
	retired []*pending
}

// takeDue collects what is due. What is appended from then on is left to the
// next Sync.
func (c *content) takeDue() due {
	d := due{mark: DurableMark{Tree: c.tree.Frontier}, sealed: c.sealed, retired: c.gaps.retired}
	use := func(r *run) {
		if r.dirty {
			r.dirty = false // an append in the meantime sets it again
			d.runs = append(d.runs, r)
		}
	}
	for _, p := range c.gaps.runs {
		use(p.run)
		d.mark.Pending = append(d.mark.Pending, PendingRange{p.first, p.next()})
	}
	for _, r := range d.sealed {
		use(r)
	}
	if c.newest != nil {
		use(c.newest)
	}
	if len(d.sealed) > 0 {
		d.tiles, c.tree.tiles = c.tree.tiles, nil
		// Tiles of the segment that began since are not due yet; syncing them does
		// no harm.
	}
	for _, name := range d.tiles {
		for dir := filepath.Dir(name); ; dir = filepath.Dir(dir) {
			c.dir.dirty(dir)
			if dir == "." {
				break
			}
		}
	}
	d.dirs = c.dir.unsynced
	c.sealed, c.dir.unsynced, c.gaps.retired = nil, nil, nil
	return d
}

func (d *due) none() bool { return len(d.runs)+len(d.tiles)+len(d.dirs)+len(d.retired) == 0 }

// flush does what is due.
//
// The order survives a crash at any point: first the entries, then the names of
// their files, then the durable mark, which Open relies on, and then the removal
// of files that the mark no longer names.
func (d *due) flush(dir *directory) error {
	for _, r := range d.runs {
		if err := r.file.Sync(); err != nil {
			return fmt.Errorf("syncing %s: %w", r.name, err)
		}
	}
	for _, r := range d.sealed {
		if err := r.file.Close(); err != nil {
			return fmt.Errorf("closing %s: %w", r.name, err)
		}
	}
	for _, name := range d.tiles {
		if err := dir.syncFile(name); err != nil {
			return err
		}
	}
	for name := range d.dirs {
		if err := dir.fs.SyncDir(dir.at(name)); err != nil {
			return fmt.Errorf("syncing directory %s: %w", name, err)
		}
	}
	if err := dir.put(layout.DurableFile, d.mark.encode(), true); err != nil {
		return fmt.Errorf("writing the durable mark: %w", err)
	}
	for _, p := range d.retired {
		if err := errors.Join(p.file.Close(), dir.remove(p.name)); err != nil {
			return fmt.Errorf("removing %s: %w", p.name, err)
		}
	}
	return nil
}
