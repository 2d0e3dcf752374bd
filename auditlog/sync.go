package auditlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// Sync makes everything appended so far durable. It may run beside Append.
func (l *Log) Sync() error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	return l.sync()
}

// sync does Sync's work; syncMu is held.
//
// The order survives a crash at any point: entries first, then the names of their
// files, then the durable mark, which is what Open believes, then the removal of
// what the mark no longer names.
func (l *Log) sync() error {
	l.mu.Lock()
	if l.failed != nil {
		defer l.mu.Unlock()
		return l.failed
	}
	var runs []*run
	use := func(r *run) {
		if r.dirty {
			r.dirty = false // again by an append that comes meanwhile
			runs = append(runs, r)
		}
	}
	mark := DurableMark{Tree: l.tree}
	for _, p := range l.pending {
		use(p.run)
		mark.Pending = append(mark.Pending, PendingRange{p.first, p.next()})
	}
	sealed := l.sealed
	for _, r := range sealed {
		use(r)
	}
	if l.seg != nil {
		use(l.seg)
	}
	var tiles []string
	if len(sealed) > 0 {
		tiles, l.tiles = l.tiles, nil
		// Those of the segment that began since are not due; doing them is harmless.
	}
	for _, name := range tiles {
		for d := filepath.Dir(name); ; d = filepath.Dir(d) {
			l.dirty(d)
			if d == "." {
				break
			}
		}
	}
	dirs := l.dirs
	retired := l.retired
	l.sealed, l.dirs, l.retired = nil, nil, nil
	l.mu.Unlock()

	if len(runs)+len(tiles)+len(dirs)+len(retired) == 0 {
		return nil
	}
	if err := l.flush(runs, sealed, tiles, dirs, mark, retired); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.fail(err)
	}
	l.mu.Lock()
	l.durable = mark.Tree.size
	l.mu.Unlock()
	return nil
}

func (l *Log) flush(runs, sealed []*run, tiles []string, dirs map[string]struct{}, mark DurableMark, retired []*pending) error {
	for _, r := range runs {
		if err := r.file.Sync(); err != nil {
			return fmt.Errorf("syncing %s: %w", r.name, err)
		}
	}
	for _, r := range sealed {
		if err := r.file.Close(); err != nil {
			return fmt.Errorf("closing %s: %w", r.name, err)
		}
	}
	for _, name := range tiles {
		if err := l.syncFile(name); err != nil {
			return err
		}
	}
	for d := range dirs {
		if err := l.fs.SyncDir(filepath.Join(l.dir, d)); err != nil {
			return fmt.Errorf("syncing directory %s: %w", d, err)
		}
	}
	if err := put(l.fs, l.dir, layout.DurableFile, mark.encode(), true); err != nil {
		return fmt.Errorf("writing the durable mark: %w", err)
	}
	for _, p := range retired {
		if err := errors.Join(p.file.Close(), l.fs.Remove(p.path)); err != nil {
			return fmt.Errorf("removing %s: %w", p.name, err)
		}
	}
	return nil
}

func (l *Log) syncFile(name string) error {
	f, err := l.fs.OpenFile(filepath.Join(l.dir, name), os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		return fmt.Errorf("syncing %s: %w", name, err)
	}
	return nil
}
