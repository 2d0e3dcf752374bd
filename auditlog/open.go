package auditlog

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// Open opens the log in a directory, which it creates if necessary, and takes
// its lock. What a crash left unfinished since the last Sync is cut off or made
// again. For damage to what was durable, Open returns ErrCorrupt.
func Open(dir string, opts Options) (_ *Log, err error) {
	space := &patientFS{FS: opts.FS}
	if space.FS == nil {
		space.FS = OSFS()
	}
	d := &directory{fs: space, path: dir, logger: opts.Logger}
	if d.logger == nil {
		d.logger = slog.Default()
	}
	l := &Log{dir: d, space: space, content: newContent(d)}
	defer func() {
		if err != nil {
			err = fmt.Errorf("opening the audit log in %s: %w", dir, err)
		}
	}()
	for _, name := range []string{"", layout.SegmentDir, layout.PendingDir, layout.TileDir, layout.TmpDir} {
		if err := d.fs.MkdirAll(d.at(name), dirPerm); err != nil {
			return nil, err
		}
		d.dirty(name)
	}
	d.dirty("..") // the name of dir itself
	if l.lock, err = d.fs.Lock(d.at(layout.LockFile)); err != nil {
		return nil, err
	}
	if err := l.load(); err != nil {
		return nil, errors.Join(err, l.release())
	}
	// Without a mark, what was found is not known to be durable: the next crash
	// must not take it.
	if err := l.Sync(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Log) load() error {
	if err := l.dir.clearTmp(); err != nil {
		return err
	}
	mark, err := ReadDurableMark(l.dir.fs, l.dir.path)
	switch {
	case errors.Is(err, fs.ErrNotExist): // never synced, so nothing was promised to be durable
	case errors.Is(err, ErrMalformed):
		return fmt.Errorf("%w: %s: %w", ErrCorrupt, layout.DurableFile, err)
	case err != nil:
		return err
	}
	l.durable = mark.Tree.size
	if err := l.content.load(&mark); err != nil {
		return err
	}
	l.checkpoint, err = l.dir.loadCheckpoint(l.content.tree.view())
	return err
}
