// Package disk is the file system that an audit log is in.
//
// It is apart from auditlog, which names its types, because it knows nothing of logs.
package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// FS is the file system that a log is in. It exists so that tests can make any
// single write, fsync or rename fail, and can simulate a loss of power.
type FS interface {
	// OpenFile is os.OpenFile. Its error must satisfy errors.Is(err, fs.ErrNotExist)
	// where there is no file.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// ReadDir returns the names in a directory, sorted; those of directories end in
	// "/".
	ReadDir(name string) ([]string, error)
	MkdirAll(name string, perm fs.FileMode) error
	Rename(from, to string) error
	Remove(name string) error
	// SyncDir makes the names in a directory durable.
	SyncDir(name string) error
	// Lock takes an exclusive lock on a file, which it creates if necessary, or
	// fails at once with ErrLocked. Closing releases the lock, as does the end
	// of the process.
	Lock(name string) (io.Closer, error)
}

// File is an open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	// Sync makes the file's bytes and length durable.
	Sync() error
}

// FilePerm is the mode of files in a log directory.
const FilePerm fs.FileMode = 0o600

// ErrLocked is returned for a lock that another process has.
var ErrLocked = errors.New("in use by another process")

// OS returns the operating system's file system. In a log directory it follows no
// symbolic link and opens only regular files and directories, so that somebody who
// can change names in the directory cannot lead a reader elsewhere or make it wait.
func OS() FS { return osFS{} }

type osFS struct{}

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !st.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", f.Name())
	}
	return st.Size(), nil
}

func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	// Nothing in a log directory is a symbolic link, and following one could
	// lead a write out of it. Nothing is a pipe or a device either, which could
	// block the reader for ever: opening does not wait, and only regular files
	// are read.
	f, err := os.OpenFile(name, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, perm)
	if err != nil {
		return nil, err
	}
	o := osFile{f}
	if _, err := o.Size(); err != nil {
		f.Close()
		return nil, err
	}
	return o, nil
}

func (osFS) ReadDir(name string) ([]string, error) {
	d, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	des, err := d.ReadDir(-1)
	d.Close()
	if err != nil {
		return nil, err
	}
	slices.SortFunc(des, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	names := make([]string, len(des))
	for i, de := range des {
		names[i] = de.Name()
		if de.IsDir() {
			names[i] += "/"
		}
	}
	return names, nil
}

func (osFS) MkdirAll(name string, perm fs.FileMode) error { return os.MkdirAll(name, perm) }
func (osFS) Rename(from, to string) error                 { return os.Rename(from, to) }
func (osFS) Remove(name string) error                     { return os.Remove(name) }

func (osFS) SyncDir(name string) error {
	d, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, FilePerm)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrLocked, name)
		}
		return nil, fmt.Errorf("locking %s: %w", name, err)
	}
	return f, nil
}
