package auditlog

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
)

// fullFS has no space for the first calls of each operation.
type fullFS struct {
	FS
	short map[string]int // by operation
	sync  error
}

func (f *fullFS) find(op string) error {
	if f.short[op] > 0 {
		f.short[op]--
		return &fs.PathError{Op: op, Path: "file", Err: syscall.ENOSPC}
	}
	return nil
}

func (f *fullFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	if flag&os.O_CREATE != 0 {
		if err := f.find("open"); err != nil {
			return nil, err
		}
	}
	file, err := f.FS.OpenFile(name, flag, perm)
	return fullFile{file, f}, err
}

func (f *fullFS) Rename(from, to string) error {
	if err := f.find("rename"); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.EDQUOT}
	}
	return f.FS.Rename(from, to)
}

type fullFile struct {
	File
	fs *fullFS
}

func (f fullFile) WriteAt(b []byte, at int64) (int, error) {
	if err := f.fs.find("write"); err != nil {
		n, _ := f.File.WriteAt(b[:len(b)/2], at)
		return n, err
	}
	return f.File.WriteAt(b, at)
}

func (f fullFile) Sync() error {
	if f.fs.sync != nil {
		return f.fs.sync
	}
	return f.File.Sync()
}

// TestLogWaitsForSpace appends and syncs on a disk that is full for a while at
// each step, and opens the result.
func TestLogWaitsForSpace(t *testing.T) {
	mem := newMemFS()
	full := &fullFS{FS: mem, short: map[string]int{}}
	l, err := Open("/log", Options{FS: full, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Restore(Frontier{}, nil); err != nil {
		t.Fatal(err)
	}
	waits := 0
	l.OnNoSpace(func(err error) bool { waits++; return true })
	entries, leaves := testEntries(0, 300), testLeaves(300) // more than one tile
	full.short = map[string]int{"open": 3, "write": 5, "rename": 2}
	if err := l.Append(entries[:200], leaves[:200]); err != nil {
		t.Fatal(err)
	}
	full.short["write"] = 4
	if err := l.Append(entries[200:], leaves[200:]); err != nil {
		t.Fatal(err)
	}
	full.short["write"], full.short["open"], full.short["rename"] = 2, 2, 2
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	if waits < 15 {
		t.Errorf("%d waits for space", waits)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = Open("/log", Options{FS: mem, Logger: quiet}); err != nil {
		t.Fatal(err)
	}
	if got := l.Size(); got != 300 {
		t.Errorf("%d entries were kept, want 300", got)
	}
	l.Close()
}

// TestWhatIsNoWantOfSpace: an fsync without space stops the log, as what it was to
// write is lost, and a write is not repeated once nobody waits for space any more.
func TestWhatIsNoWantOfSpace(t *testing.T) {
	full := &fullFS{FS: newMemFS(), short: map[string]int{}}
	l, err := Open("/log", Options{FS: full, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Restore(Frontier{}, nil); err != nil {
		t.Fatal(err)
	}
	l.OnNoSpace(func(error) bool { t.Error("it waits for space after an fsync"); return false })
	entries, leaves := testEntries(0, 10), testLeaves(10)
	if err := l.Append(entries, leaves); err != nil {
		t.Fatal(err)
	}
	full.sync = &fs.PathError{Op: "sync", Path: "file", Err: syscall.ENOSPC}
	if err := l.Sync(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("an fsync without space: %v", err)
	}
	for _, err := range []error{syscall.ENOSPC, os.NewSyscallError("fdatasync", syscall.ENOSPC), full.sync, &fs.PathError{Op: "write", Err: syscall.EIO}, nil} {
		if isNoSpace(err) {
			t.Errorf("%v passes for a write without space", err)
		}
	}
	calls := 0
	err = NoSpace(nil).Retry(func() error { calls++; return &fs.PathError{Op: "write", Err: syscall.ENOSPC} })
	if calls != 1 || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "write") {
		t.Errorf("with nobody who waits, %d calls and %v", calls, err)
	}
}
