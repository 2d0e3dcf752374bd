package auditlog

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// directory is a log directory: its files, by their names within it, and which of its
// changes are not durable yet. It has no lock of its own: callers that write files hold
// the locks of Log, and Log.mu guards unsynced.
type directory struct {
	fs     FS
	path   string
	logger *slog.Logger
	// unsynced are the directories within it whose names the next Sync makes durable.
	unsynced map[string]struct{}
}

// at returns the path of a file in the directory.
func (d *directory) at(name string) string { return filepath.Join(d.path, name) }

func (d *directory) list(name string) ([]string, error) { return d.fs.ReadDir(d.at(name)) }

func (d *directory) remove(name string) error { return d.fs.Remove(d.at(name)) }

func (d *directory) read(name string, limit int64) ([]byte, error) {
	return ReadFile(d.fs, d.at(name), limit)
}

// dirty makes the next Sync sync the directory that name is in.
func (d *directory) dirty(name string) {
	if d.unsynced == nil {
		d.unsynced = make(map[string]struct{})
	}
	d.unsynced[name] = struct{}{}
}

// makeFor creates the directory for a file.
func (d *directory) makeFor(name string) error {
	return d.fs.MkdirAll(filepath.Dir(d.at(name)), dirPerm)
}

// put replaces the file name by one with the content b, so that after a crash
// there is either the old file or the new one. If durable is set, the new one
// is on disk when put returns. It is created in tmp, which a restart clears.
func (d *directory) put(name string, b []byte, durable bool) (err error) {
	// The whole name is used because several tiles have the same last element.
	tmp := d.at(filepath.Join(layout.TmpDir, strings.ReplaceAll(name, string(filepath.Separator), "-")))
	f, err := d.fs.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	to := d.at(name)
	if err := d.fs.Rename(tmp, to); err != nil {
		return err
	}
	if durable {
		return d.fs.SyncDir(filepath.Dir(to))
	}
	return nil
}

func (d *directory) syncFile(name string) error {
	f, err := d.fs.OpenFile(d.at(name), os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		return fmt.Errorf("syncing %s: %w", name, err)
	}
	return nil
}

// clearTmp removes what unfinished writes left behind.
func (d *directory) clearTmp() error {
	names, err := d.list(layout.TmpDir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := d.remove(filepath.Join(layout.TmpDir, name)); err != nil {
			return err
		}
	}
	return nil
}
