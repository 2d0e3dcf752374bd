// Package files reads files with a limit on their length, and writes them atomically.
package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// ReadLimited reads all of r, which errors call what. It refuses more than limit
// bytes.
func ReadLimited(r io.Reader, what string, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", what, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is longer than %d bytes", what, limit)
	}
	return b, nil
}

// Read reads a file. It refuses more than limit bytes.
func Read(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadLimited(f, name, limit)
}

// Write writes a file atomically and durably, readable only by its owner.
func Write(name string, data []byte) error { return writeMode(name, data, 0o600) }

// WritePublic is Write for a file that everybody may read.
func WritePublic(name string, data []byte) error { return writeMode(name, data, 0o644) }

func writeMode(name string, data []byte, mode fs.FileMode) error {
	return writeFrom(name, mode, os.Rename, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// WriteFrom is Write for a file that write writes. If write returns an error, there is no
// file, or still the one that there was.
func WriteFrom(name string, write func(w io.Writer) error) error {
	return writeFrom(name, 0o600, os.Rename, write)
}

// CreateFrom is WriteFrom for a file that does not exist yet: if there is one with this name, it
// stays as it is, and the error wraps fs.ErrExist.
func CreateFrom(name string, write func(w io.Writer) error) error {
	return writeFrom(name, 0o600, func(from, to string) error {
		if err := os.Link(from, to); err != nil {
			return err
		}
		return os.Remove(from)
	}, write)
}

// writeFrom writes a file under another name, and gives it its own with place.
func writeFrom(name string, mode fs.FileMode, place func(from, to string) error, write func(w io.Writer) error) (err error) {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, "."+filepath.Base(name)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if err = write(f); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = place(f.Name(), name); err != nil {
		return err
	}
	return SyncDir(dir)
}

// SyncDir makes the creation, renaming and removal of files in a directory
// durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Exists reports whether there is a file, or anything else, with this name.
func Exists(name string) (bool, error) {
	_, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
