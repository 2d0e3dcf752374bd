package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/cluster/internal/raftlog/raftlogtest"
)

// testStore opens a store whose writes may take long, since the machine may be busy.
func testStore(t *testing.T, dir string, hooks Hooks) (*Store, chan error) {
	t.Helper()
	return impatientStore(t, dir, time.Minute, hooks)
}

// impatientStore opens a store that takes a write for hanging after the given time.
func impatientStore(t *testing.T, dir string, patience time.Duration, hooks Hooks) (*Store, chan error) {
	t.Helper()
	faults := make(chan error, 16)
	s, err := Open(dir, patience, hooks, nil, func(err error) { faults <- err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-s.stop:
		default:
			s.Close()
		}
	})
	return s, faults
}

func wantFault(t *testing.T, faults chan error, want error) {
	t.Helper()
	select {
	case err := <-faults:
		if !errors.Is(err, want) {
			t.Errorf("fault = %v, want %v", err, want)
		}
	case <-time.After(5 * time.Second):
		t.Fatalf("no fault, want %v", want)
	}
	select {
	case err := <-faults:
		t.Errorf("a second fault: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
}

var sampleLogs = []*raft.Log{
	{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: []byte("configuration")},
	{Index: 2, Term: 2, Type: raft.LogNoop, AppendedAt: time.Unix(1_700_000_000, 123456789)},
	{Index: 3, Term: 2, Type: raft.LogCommand, Data: bytes.Repeat([]byte("command "), 40), Extensions: []byte("ext"), AppendedAt: time.Unix(1_700_000_001, 0)},
}

func TestStoreKeepsLogs(t *testing.T) {
	dir := t.TempDir()
	s, _ := testStore(t, dir, Hooks{})
	if err := s.StoreLogs(sampleLogs); err != nil {
		t.Fatal(err)
	}
	if string(sampleLogs[2].Extensions) != "ext" {
		t.Error("StoreLogs changed the entry it was given")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{boltFile, journalNames[0], journalNames[1]} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v; want 0600", name, fi.Mode(), err)
		}
	}
	s, _ = testStore(t, dir, Hooks{})
	for _, want := range sampleLogs {
		var got raft.Log
		if err := s.GetLog(want.Index, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(*want, got, cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })); diff != "" {
			t.Errorf("entry %d (-want +got):\n%s", want.Index, diff)
		}
	}
	if err := s.GetLog(9, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("GetLog of no entry = %v", err)
	}
	if err := s.DeleteRange(1, 2); err != nil {
		t.Fatal(err)
	}
	if first, err := s.FirstIndex(); first != 3 || err != nil {
		t.Errorf("FirstIndex = %d, %v", first, err)
	}
}

// TestEveryFlippedByteIsFound changes each byte of stored values in turn.
func TestEveryFlippedByteIsFound(t *testing.T) {
	dir := t.TempDir()
	s, _ := testStore(t, dir, Hooks{})
	if err := s.StoreLogs(sampleLogs); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.SetUint64([]byte("CurrentTerm"), 7), s.SetUint64(keyVoteTerm, 7), s.Set(keyVoteCandidate, []byte("10.0.0.1:1"))); err != nil {
		t.Fatal(err)
	}
	s.Close()
	index := []byte{0, 0, 0, 0, 0, 0, 0, 3}
	errHarmless := errors.New("harmless")
	harmless := 0
	for _, v := range []struct {
		bucket string
		key    []byte
		read   func(*Store) error
	}{
		{"logs", index, func(s *Store) error {
			var l raft.Log
			err := s.GetLog(3, &l)
			if err == nil && l.Index == 3 && logSum(&l, l.Extensions) == logSum(sampleLogs[2], sampleLogs[2].Extensions) {
				// In the encoding's name of a field that is zero: what is read is
				// what was stored.
				return errHarmless
			}
			return err
		}},
		{"conf", []byte("CurrentTerm"), func(s *Store) error { _, err := s.GetUint64([]byte("CurrentTerm")); return err }},
		{"conf", keyVote, func(s *Store) error { _, err := s.Get(keyVoteCandidate); return err }},
	} {
		good := raftlogtest.Rewrite(t, filepath.Join(dir, boltFile), v.bucket, v.key, func(b []byte) []byte { return b })
		for i := range good {
			bit := byte(1) << (i % 8)
			raftlogtest.Rewrite(t, filepath.Join(dir, boltFile), v.bucket, v.key, func(b []byte) []byte { b[i] ^= bit; return b })
			s, faults := testStore(t, dir, Hooks{})
			if err := v.read(s); errors.Is(err, errHarmless) {
				harmless++
			} else if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s %q: byte %d of %d flipped by %#x: read = %v", v.bucket, v.key, i, len(good), bit, err)
			} else {
				wantFault(t, faults, ErrCorrupt)
			}
			s.Close()
			raftlogtest.Rewrite(t, filepath.Join(dir, boltFile), v.bucket, v.key, func([]byte) []byte { return good })
		}
		for _, cut := range []int{0, 1, len(good) / 2, len(good) - 1} {
			raftlogtest.Rewrite(t, filepath.Join(dir, boltFile), v.bucket, v.key, func(b []byte) []byte { return b[:cut] })
			s, _ := testStore(t, dir, Hooks{})
			if err := v.read(s); err == nil {
				t.Errorf("%s %q cut to %d bytes was read", v.bucket, v.key, cut)
			}
			s.Close()
			raftlogtest.Rewrite(t, filepath.Join(dir, boltFile), v.bucket, v.key, func([]byte) []byte { return good })
		}
	}
	if harmless > len("Type") {
		t.Errorf("%d flips changed nothing", harmless)
	}
	// An entry under another's index.
	var other []byte
	raftlogtest.Rewrite(t, filepath.Join(dir, boltFile), "logs", []byte{0, 0, 0, 0, 0, 0, 0, 2}, func(b []byte) []byte { other = b; return b })
	raftlogtest.Rewrite(t, filepath.Join(dir, boltFile), "logs", index, func([]byte) []byte { return other })
	s, _ = testStore(t, dir, Hooks{})
	if err := s.GetLog(3, new(raft.Log)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("entry 2 under index 3 = %v", err)
	}
}

// TestFirstWriteErrorStopsTheStore fails writes before and after they reached
// the disk: nothing is written, read or acknowledged afterwards.
func TestFirstWriteErrorStopsTheStore(t *testing.T) {
	for _, when := range []string{"before", "after"} {
		for _, op := range []string{"store", "flush", "delete", "set"} {
			t.Run(when+" "+op, func(t *testing.T) {
				var armed atomic.Bool
				fail := func(got string) error {
					if armed.Load() && got == op {
						return syscall.EIO
					}
					return nil
				}
				hooks := Hooks{Before: fail}
				if when == "after" {
					hooks = Hooks{After: fail}
				}
				s, faults := testStore(t, t.TempDir(), hooks)
				if err := s.StoreLogs(sampleLogs); err != nil {
					t.Fatal(err)
				}
				armed.Store(true)
				do := map[string]func() error{
					"store":  func() error { return s.StoreLog(&raft.Log{Index: 4}) },
					"flush":  s.flush,
					"delete": func() error { return s.DeleteRange(1, 1) },
					"set":    func() error { return s.SetUint64([]byte("CurrentTerm"), 2) },
				}
				if err := do[op](); !errors.Is(err, ErrStorage) || !errors.Is(err, syscall.EIO) {
					t.Fatalf("%s = %v", op, err)
				}
				wantFault(t, faults, ErrStorage)
				armed.Store(false)
				for name, f := range do {
					if err := f(); !errors.Is(err, ErrStorage) {
						t.Errorf("%s after the error = %v", name, err)
					}
				}
				if err := s.GetLog(1, new(raft.Log)); !errors.Is(err, ErrStorage) {
					t.Errorf("GetLog after the error = %v", err)
				}
			})
		}
	}
}

func TestHangingWriteIsNoticed(t *testing.T) {
	release := make(chan struct{})
	var hang atomic.Bool
	s, faults := impatientStore(t, t.TempDir(), 200*time.Millisecond, Hooks{Before: func(string) error {
		if hang.Load() {
			<-release
		}
		return nil
	}})
	if err := s.StoreLogs(sampleLogs); err != nil {
		t.Fatal(err)
	}
	hang.Store(true)
	done := make(chan error, 1)
	go func() { done <- s.StoreLog(&raft.Log{Index: 4}) }()
	wantFault(t, faults, ErrDiskStuck)
	close(release)
	// The write got through after all; it must not be acknowledged any more.
	if err := <-done; !errors.Is(err, ErrDiskStuck) {
		t.Errorf("the write that hung = %v", err)
	}
}

// TestVoteIsOneWrite is hashicorp/raft issue 661: a crash between the term and
// the candidate of a vote must leave the old vote whole.
func TestVoteIsOneWrite(t *testing.T) {
	dir := t.TempDir()
	s, _ := testStore(t, dir, Hooks{})
	if _, err := s.GetUint64(keyVoteTerm); !errors.Is(err, raftboltdb.ErrKeyNotFound) || err.Error() != "not found" {
		t.Errorf("no vote yet: %v", err)
	}
	vote := func(s *Store) string {
		t.Helper()
		term, err1 := s.GetUint64(keyVoteTerm)
		cand, err2 := s.Get(keyVoteCandidate)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d %s", term, cand)
	}
	if err := errors.Join(s.SetUint64(keyVoteTerm, 5), s.Set(keyVoteCandidate, []byte("a"))); err != nil {
		t.Fatal(err)
	}
	if got := vote(s); got != "5 a" {
		t.Errorf("vote = %q", got)
	}
	if err := s.SetUint64(keyVoteTerm, 6); err != nil {
		t.Fatal(err)
	}
	s.Close() // the crash
	s, _ = testStore(t, dir, Hooks{})
	if got := vote(s); got != "5 a" {
		t.Errorf("vote after a cut = %q, want the old one", got)
	}
	if err := errors.Join(s.SetUint64(keyVoteTerm, 6), s.Set(keyVoteCandidate, []byte("b"))); err != nil {
		t.Fatal(err)
	}
	if got := vote(s); got != "6 b" {
		t.Errorf("vote = %q", got)
	}
}

var noSpaceError = &os.PathError{Op: "write", Path: "journal.0", Err: syscall.ENOSPC}

// fullDisk is a journal's file on a disk without space.
type fullDisk struct {
	journalDisk
	full func() bool
}

func (d fullDisk) WriteAt(b []byte, at int64) (int, error) {
	if !d.full() {
		return d.journalDisk.WriteAt(b, at)
	}
	n, _ := d.journalDisk.WriteAt(b[:len(b)/2], at) // what still fitted
	return n, noSpaceError
}

// TestStoreWaitsForSpace stores entries on a disk that is full for longer than a write
// may take, and others on one that stays full until the store is closed.
func TestStoreWaitsForSpace(t *testing.T) {
	dir := t.TempDir()
	s, faults := testStore(t, dir, Hooks{})
	var full, tries atomic.Int64
	for _, f := range s.journal.files {
		p := f.disk.(patientDisk)
		f.disk = patientDisk{fullDisk{p.journalDisk, func() bool { return full.Load() > 0 && tries.Add(1) > 0 }}, p.noSpace}
	}
	if err := s.StoreLogs(someLogs(1, 4, 100)); err != nil {
		t.Fatal(err)
	}
	full.Store(1)
	stored := make(chan error, 1)
	go func() { stored <- s.StoreLogs(someLogs(5, 9, 100)) }()
	clustertest.Eventually(t, 10*time.Second, "several tries", func() bool { return tries.Load() > 3 }) // beyond the limit
	if s.meter.Behind() == 0 {
		t.Error("the node does not know that it is behind")
	}
	select {
	case err := <-stored:
		t.Fatalf("stored on a full disk: %v", err)
	case err := <-faults:
		t.Fatalf("a full disk stopped the store: %v", err)
	default:
	}
	full.Store(0)
	if err := <-stored; err != nil {
		t.Fatalf("with space again: %v", err)
	}
	wantLogs(t, s, 1, 9)

	full.Store(1)
	before := tries.Load()
	go func() { stored <- s.StoreLogs(someLogs(10, 11, 100)) }()
	clustertest.Eventually(t, 10*time.Second, "a try", func() bool { return tries.Load() > before })
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	for range 2 {
		select {
		case err := <-stored:
			if err == nil {
				t.Error("stored on a full disk")
			}
		case <-closed:
		case <-time.After(10 * time.Second):
			t.Fatal("a stop waits for space")
		}
	}
	select {
	case err := <-faults:
		t.Errorf("a stop without space is a fault: %v", err)
	default:
	}
	s, _ = testStore(t, dir, Hooks{})
	last, err := s.LastIndex()
	if err != nil || last < 9 { // of the rest nothing was promised
		t.Fatalf("entries up to %d, want 9; %v", last, err)
	}
	wantLogs(t, s, 1, last)
}
