// Package depot keeps backups, and the archive of the audit log, in a directory or in a bucket
// of an S3-compatible store.
//
// A place is written as the path of a file or directory, as file:// and such a path, or as
// s3://BUCKET/KEY?OPTION=VALUE&…. In both, an object has its name only when it is whole:
// whoever finds one never finds a part of it. Nothing that a store answers is trusted beyond
// its size: what is kept is authenticated by whoever opens it.
package depot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/internal/files"
)

// Store has objects, by name. Names contain no slash. It is safe for concurrent use.
type Store interface {
	// Put stores what write writes, and returns its size. If it returns an error, there is
	// no such object, or still the one that there was; only if the error is that of the
	// last request to a bucket, the object may be there, whole.
	Put(ctx context.Context, name string, write func(io.Writer) error) (int64, error)
	// Create is Put for an object that does not exist yet. If there is one with this name, it
	// stays as it is, and the error wraps fs.ErrExist.
	Create(ctx context.Context, name string, write func(io.Writer) error) (int64, error)
	// Open returns an object's content. Its error wraps fs.ErrNotExist if there is none. The
	// content ends with an error if it is shorter than the store has announced.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	// List returns the names that begin with a prefix, in ascending order.
	List(ctx context.Context, prefix string) ([]string, error)
	// Remove removes an object.
	Remove(ctx context.Context, name string) error
	// Sweep removes what is left of objects whose Put was cut off by a crash before the given
	// time, if their names begin with the prefix. Objects are not touched.
	Sweep(ctx context.Context, prefix string, before time.Time) error
	// String returns the place, without anything secret.
	String() string
}

const (
	// scheme begins the places that are in a bucket.
	scheme = "s3://"
	// fileScheme may begin those that are in a directory.
	fileScheme = "file://"
)

// local returns the path of a place that is not in a bucket.
func local(place string) string { return strings.TrimPrefix(place, fileScheme) }

// Parse returns the store at a place: a directory, which must exist when the store is used,
// or a bucket with a prefix of keys. Nothing is contacted. The error says what is wrong with
// the place.
func Parse(place string) (Store, error) {
	if !strings.HasPrefix(place, scheme) {
		dir := local(place)
		if dir == "" {
			return nil, errors.New("no directory or bucket is named")
		}
		return directory(filepath.Clean(dir)), nil
	}
	p, err := parseBucket(place)
	if err != nil {
		return nil, err
	}
	if p.prefix != "" && !strings.HasSuffix(p.prefix, "/") {
		p.prefix += "/"
	}
	return &bucket{place: p}, nil
}

// ParseFile returns the store that a file is in, and the file's name there.
func ParseFile(file string) (Store, string, error) {
	if !strings.HasPrefix(file, scheme) {
		dir, name := filepath.Split(local(file))
		if err := checkName(name); err != nil {
			return nil, "", fmt.Errorf("%s: %w", file, err)
		}
		return directory(filepath.Clean(dir)), name, nil
	}
	p, err := parseBucket(file)
	if err != nil {
		return nil, "", err
	}
	i := strings.LastIndexByte(p.prefix, '/') + 1
	name := p.prefix[i:]
	p.prefix = p.prefix[:i]
	if err := checkName(name); err != nil {
		return nil, "", fmt.Errorf("%s: %w", file, err)
	}
	return &bucket{place: p}, name, nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return errors.New("no file is named")
	}
	return nil
}

// directory is a Store in a directory.
type directory string

// String implements Store.
func (d directory) String() string { return string(d) }

// Put implements Store. The file is on the disk, and so is its name, when Put returns.
func (d directory) Put(_ context.Context, name string, write func(io.Writer) error) (int64, error) {
	return d.put(name, files.WriteFrom, write)
}

// Create implements Store.
func (d directory) Create(_ context.Context, name string, write func(io.Writer) error) (int64, error) {
	return d.put(name, files.CreateFrom, write)
}

func (d directory) put(name string, with func(string, func(io.Writer) error) error, write func(io.Writer) error) (int64, error) {
	if err := checkName(name); err != nil {
		return 0, err
	}
	var n counter
	err := with(filepath.Join(string(d), name), func(w io.Writer) error { return write(io.MultiWriter(w, &n)) })
	return int64(n), err
}

// Open implements Store. It opens only regular files: others could make the reader wait for ever,
// even in opening them.
func (d directory) Open(_ context.Context, name string) (io.ReadCloser, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	path := filepath.Join(string(d), name)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: errNotRegular}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

var errNotRegular = errors.New("not a regular file")

// List implements Store.
func (d directory) List(_ context.Context, prefix string) (names []string, err error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Type().IsRegular() && strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Remove implements Store.
func (d directory) Remove(_ context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	path := filepath.Join(string(d), name)
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return &fs.PathError{Op: "remove", Path: path, Err: errNotRegular}
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return files.SyncDir(string(d))
}

// Sweep implements Store. Put writes to a hidden file beside the one that it makes.
func (d directory) Sweep(_ context.Context, prefix string, before time.Time) error {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasPrefix(e.Name(), "."+prefix) {
			continue
		}
		fi, err := e.Info()
		if err == nil && fi.ModTime().Before(before) {
			err = os.Remove(filepath.Join(string(d), e.Name()))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// counter counts what is written to it.
type counter int64

// Write implements io.Writer.
func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}
