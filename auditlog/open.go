package auditlog

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// Open opens the log in a directory, which it creates when there is none, and
// takes its lock. What a crash left half done since the last Sync is cut off or
// made again; damage to what was durable is ErrCorrupt.
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
	// What was found without a mark must not depend on the next crash.
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
	case errors.Is(err, fs.ErrNotExist): // never synced, so nothing is promised
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
