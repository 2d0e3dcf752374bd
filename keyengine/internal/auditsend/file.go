package auditsend

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	// fileBytes is the size from which on a file is followed by another, unless it is
	// configured.
	fileBytes = 128 << 20
	// maxLine is longer than any line of a record.
	maxLine = 4 << 20

	fileBegin, fileEnd = "audit-", ".jsonl"
)

// File configures a directory of the node that leads. Files in it are named after the index of
// their first record. When another node leads, the files go on there.
type File struct {
	Directory string `json:"directory"` // it exists
	// MaxBytes is the size at which a file ends; the default is 128 MiB.
	MaxBytes int64 `json:"maxBytes,omitzero"`
	// Gaps means that not all records are sent here, so that a gap between their indexes does
	// not begin a new file.
	Gaps bool `json:"-"`
}

type file struct {
	dir  string
	max  int64
	gaps bool
	f    *os.File // nil until there is something to write
	size int64
	next uint64 // after the last record of f, or of the newest file
}

// Open returns a Sender. It fails for what is wrong with the configuration.
func (c *File) Open() (Sender, error) {
	f := &file{dir: c.Directory, max: c.MaxBytes, gaps: c.Gaps}
	if f.max == 0 {
		f.max = fileBytes
	}
	if f.max < 4096 {
		return nil, fmt.Errorf("maxBytes is %d, which is less than 4096", f.max)
	}
	info, err := os.Stat(f.dir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() || !filepath.IsAbs(f.dir) {
		return nil, fmt.Errorf("%s is not an absolute path of a directory", f.dir)
	}
	return f, nil
}

// resume opens the newest file and finds its last record. What follows the last line break is of
// a write that was interrupted, and is removed.
func (f *file) resume() error {
	names, err := filepath.Glob(filepath.Join(f.dir, fileBegin+"*"+fileEnd))
	if err != nil || len(names) == 0 {
		return err
	}
	name := slices.Max(names) // numbers have leading zeros
	o, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	size, next, err := lastOf(o)
	if err == nil {
		err = o.Truncate(size)
	}
	if err == nil {
		_, err = o.Seek(size, io.SeekStart)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", filepath.Base(name), err), o.Close())
	}
	if size == 0 {
		// Nothing of its first record was written.
		return errors.Join(o.Close(), os.Remove(name))
	}
	f.f, f.size, f.next = o, size, next
	return nil
}

// lastOf returns the end of the last whole line of a file, and the index that follows that of its
// record.
func lastOf(o *os.File) (size int64, next uint64, err error) {
	info, err := o.Stat()
	if err != nil {
		return 0, 0, err
	}
	from := max(0, info.Size()-2*maxLine)
	b := make([]byte, info.Size()-from)
	if _, err := o.ReadAt(b, from); err != nil && err != io.EOF {
		return 0, 0, err
	}
	end := bytes.LastIndexByte(b, '\n') + 1
	if end == 0 {
		if from > 0 {
			return 0, 0, errors.New("it has a line that is too long for a record")
		}
		return 0, 0, nil
	}
	line := b[bytes.LastIndexByte(b[:end-1], '\n')+1 : end-1]
	var last struct {
		Conclave struct {
			Index *uint64 `json:"index"`
		} `json:"conclave"`
	}
	if err := json.Unmarshal(line, &last); err != nil || last.Conclave.Index == nil {
		return 0, 0, errors.New("its last line is not a record of the audit log")
	}
	return from + int64(end), *last.Conclave.Index + 1, nil
}

// Send implements Sender. It skips the records that the files have already.
func (f *file) Send(_ context.Context, records []Record) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close()) // and look again at what is there
		}
	}()
	if f.f == nil {
		if err := f.resume(); err != nil {
			return err
		}
	}
	var w *bufio.Writer
	flush := func() error {
		if w == nil {
			return nil
		}
		if err := w.Flush(); err != nil {
			return err
		}
		w = nil
		return f.f.Sync()
	}
	for _, r := range records {
		if f.f != nil && r.Index < f.next {
			continue
		}
		if f.f != nil && (r.Index > f.next && !f.gaps || f.size+int64(len(r.Line)) >= f.max) {
			// Another node has led in between, or the file is full.
			if err := errors.Join(flush(), f.f.Close()); err != nil {
				return err
			}
			f.f = nil
		}
		if f.f == nil {
			if err := f.create(r.Index); err != nil {
				return err
			}
		}
		if w == nil {
			w = bufio.NewWriterSize(f.f, 64<<10)
		}
		n, err := w.Write(append(r.Line[:len(r.Line):len(r.Line)], '\n'))
		f.size += int64(n)
		f.next = r.Index + 1
		if err != nil {
			return err
		}
	}
	return flush()
}

func (f *file) create(first uint64) (err error) {
	name := filepath.Join(f.dir, fmt.Sprintf("%s%020d%s", fileBegin, first, fileEnd))
	if f.f, err = os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err != nil {
		return err
	}
	f.size, f.next = 0, first
	d, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Confirms implements Sender.
func (f *file) Confirms() bool { return true }

// Close implements Sender.
func (f *file) Close() error {
	if f.f == nil {
		return nil
	}
	err := f.f.Close()
	f.f = nil
	if err != nil && strings.Contains(err.Error(), "already closed") {
		return nil
	}
	return err
}
