package auditlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/conclavekms/conclave/auditlog/internal/disk"
)

// FS is the file system that a log is in. It exists so that tests can make any
// single write, fsync or rename fail, and can simulate a loss of power.
type FS = disk.FS

// File is an open file.
type File = disk.File

const (
	dirPerm  fs.FileMode = 0o700
	filePerm             = disk.FilePerm
)

// OSFS returns the operating system's file system. In a log directory it follows no
// symbolic link and opens only regular files and directories, so that somebody who
// can change names in the directory cannot lead a reader elsewhere or make it wait.
func OSFS() FS { return disk.OS() }

// ReadFile returns the content of a file, or ErrCorrupt if it is longer than limit
// bytes.
func ReadFile(fsys FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, at most %d are expected", ErrCorrupt, name, size, limit)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}
