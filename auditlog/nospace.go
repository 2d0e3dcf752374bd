package auditlog

import (
	"errors"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"
)

// NoSpace is called when a write failed because the file system is full or a quota
// is used up. It waits for as long as it likes and returns whether to try again.
// Such a failure loses nothing: the bytes never went into the page cache, unlike
// those of an fsync that failed.
type NoSpace func(error) (again bool)

// Retry runs f until it succeeds or fails for another reason than lack of space,
// or until ns returns false. It must be possible to repeat f.
func (ns NoSpace) Retry(f func() error) error {
	for {
		err := f()
		if ns == nil || !isNoSpace(err) || !ns(err) {
			return err
		}
	}
}

// isNoSpace reports whether a system call failed for lack of space. It reports false
// for an fsync, which cannot be repeated: what it could not write may be lost.
func isNoSpace(err error) bool {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return false
	}
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Op != "sync"
	}
	_, ok := errors.AsType[*os.LinkError](err)
	return ok
}

// OnNoSpace makes the log call ns when its file system has no space. Without it, the
// first such write stops the log. If ns is nil, every wait ends.
func (l *Log) OnNoSpace(ns NoSpace) { l.space.ns.Store(&ns) }

// patientFS is a file system that waits for space.
type patientFS struct {
	FS
	ns atomic.Pointer[NoSpace]
}

func (p *patientFS) retry(f func() error) error {
	return NoSpace(func(err error) bool {
		ns := p.ns.Load()
		return ns != nil && *ns != nil && (*ns)(err)
	}).Retry(f)
}

func (p *patientFS) OpenFile(name string, flag int, perm fs.FileMode) (f File, err error) {
	err = p.retry(func() (err error) { f, err = p.FS.OpenFile(name, flag, perm); return err })
	if err != nil {
		return nil, err
	}
	return patientFile{f, p}, nil
}

func (p *patientFS) MkdirAll(name string, perm fs.FileMode) error {
	return p.retry(func() error { return p.FS.MkdirAll(name, perm) })
}

func (p *patientFS) Rename(from, to string) error {
	return p.retry(func() error { return p.FS.Rename(from, to) })
}

type patientFile struct {
	File
	fs *patientFS
}

func (f patientFile) WriteAt(b []byte, at int64) (n int, err error) {
	err = f.fs.retry(func() (err error) { n, err = f.File.WriteAt(b, at); return err })
	return n, err
}
