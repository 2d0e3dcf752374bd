package cluster

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
	"go.etcd.io/bbolt"
)

func testStore(t *testing.T, dir string, hooks StoreHooks) (*store, chan error) {
	t.Helper()
	faults := make(chan error, 16)
	s, err := openStore(dir, 200*time.Millisecond, hooks, nil, func(err error) { faults <- err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-s.stop:
		default:
			s.close()
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
	s, _ := testStore(t, dir, StoreHooks{})
	if err := s.StoreLogs(sampleLogs); err != nil {
		t.Fatal(err)
	}
	if string(sampleLogs[2].Extensions) != "ext" {
		t.Error("StoreLogs changed the entry it was given")
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{boltFile, journalNames[0], journalNames[1]} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v; want 0600", name, fi.Mode(), err)
		}
	}
	s, _ = testStore(t, dir, StoreHooks{})
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

// rewrite changes one stored value behind the store's back.
func rewrite(t *testing.T, path, bucket string, key []byte, change func([]byte) []byte) (old []byte) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		old = bytes.Clone(b.Get(key))
		return b.Put(key, change(bytes.Clone(old)))
	})
	if err != nil {
		t.Fatal(err)
	}
	return old
}

// TestEveryFlippedByteIsFound changes each byte of stored values in turn.
func TestEveryFlippedByteIsFound(t *testing.T) {
	dir := t.TempDir()
	s, _ := testStore(t, dir, StoreHooks{})
	if err := s.StoreLogs(sampleLogs); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.SetUint64([]byte("CurrentTerm"), 7), s.SetUint64(keyVoteTerm, 7), s.Set(keyVoteCandidate, []byte("10.0.0.1:1"))); err != nil {
		t.Fatal(err)
	}
	s.close()
	index := []byte{0, 0, 0, 0, 0, 0, 0, 3}
	errHarmless := errors.New("harmless")
	harmless := 0
	for _, v := range []struct {
		bucket string
		key    []byte
		read   func(*store) error
	}{
		{"logs", index, func(s *store) error {
			var l raft.Log
			err := s.GetLog(3, &l)
			if err == nil && l.Index == 3 && logSum(&l, l.Extensions) == logSum(sampleLogs[2], sampleLogs[2].Extensions) {
				// In the encoding's name of a field that is zero: what is read is
				// what was stored.
				return errHarmless
			}
			return err
		}},
		{"conf", []byte("CurrentTerm"), func(s *store) error { _, err := s.GetUint64([]byte("CurrentTerm")); return err }},
		{"conf", keyVote, func(s *store) error { _, err := s.Get(keyVoteCandidate); return err }},
	} {
		good := rewrite(t, filepath.Join(dir, boltFile), v.bucket, v.key, func(b []byte) []byte { return b })
		for i := range good {
			bit := byte(1) << (i % 8)
			rewrite(t, filepath.Join(dir, boltFile), v.bucket, v.key, func(b []byte) []byte { b[i] ^= bit; return b })
			s, faults := testStore(t, dir, StoreHooks{})
			if err := v.read(s); errors.Is(err, errHarmless) {
				harmless++
			} else if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s %q: byte %d of %d flipped by %#x: read = %v", v.bucket, v.key, i, len(good), bit, err)
			} else {
				wantFault(t, faults, ErrCorrupt)
			}
			s.close()
			rewrite(t, filepath.Join(dir, boltFile), v.bucket, v.key, func([]byte) []byte { return good })
		}
		for _, cut := range []int{0, 1, len(good) / 2, len(good) - 1} {
			rewrite(t, filepath.Join(dir, boltFile), v.bucket, v.key, func(b []byte) []byte { return b[:cut] })
			s, _ := testStore(t, dir, StoreHooks{})
			if err := v.read(s); err == nil {
				t.Errorf("%s %q cut to %d bytes was read", v.bucket, v.key, cut)
			}
			s.close()
			rewrite(t, filepath.Join(dir, boltFile), v.bucket, v.key, func([]byte) []byte { return good })
		}
	}
	if harmless > len("Type") {
		t.Errorf("%d flips changed nothing", harmless)
	}
	// An entry under another's index.
	var other []byte
	rewrite(t, filepath.Join(dir, boltFile), "logs", []byte{0, 0, 0, 0, 0, 0, 0, 2}, func(b []byte) []byte { other = b; return b })
	rewrite(t, filepath.Join(dir, boltFile), "logs", index, func([]byte) []byte { return other })
	s, _ = testStore(t, dir, StoreHooks{})
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
				hooks := StoreHooks{Before: fail}
				if when == "after" {
					hooks = StoreHooks{After: fail}
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
	s, faults := testStore(t, t.TempDir(), StoreHooks{Before: func(string) error {
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
	s, _ := testStore(t, dir, StoreHooks{})
	if _, err := s.GetUint64(keyVoteTerm); !errors.Is(err, raftboltdb.ErrKeyNotFound) || err.Error() != "not found" {
		t.Errorf("no vote yet: %v", err)
	}
	vote := func(s *store) string {
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
	s.close() // the crash
	s, _ = testStore(t, dir, StoreHooks{})
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

// TestFailingDiskOfTheLeader breaks the leader's disk in a running cluster.
func TestFailingDiskOfTheLeader(t *testing.T) {
	for _, name := range []string{"error", "hang"} {
		t.Run(name, func(t *testing.T) {
			release := make(chan struct{})
			breakIt := func() error {
				if name == "hang" {
					<-release
				}
				return syscall.EIO
			}
			bad := make(chan string, 1)
			c := startCluster(t, 3, func(id string, cfg *Config) {
				cfg.Timeouts.Disk = 500 * time.Millisecond
				var broken atomic.Bool
				cfg.Hooks.Store.Before = func(op string) error {
					select {
					case who := <-bad:
						if who == id {
							broken.Store(true)
						} else {
							bad <- who
						}
					default:
					}
					if broken.Load() {
						return breakIt()
					}
					return nil
				}
			})
			t.Cleanup(func() { close(release) })
			old := c.leader()
			f := c.followers()[0]
			mustPropose(t, f, record())
			bad <- old.id
			mustPropose(t, f, record()) // by the next leader
			select {
			case err := <-old.faults:
				if !errors.Is(err, ErrStorage) && !errors.Is(err, ErrDiskStuck) {
					t.Errorf("fault = %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Error("the old leader did not notice")
			}
			if _, err := old.Propose(within(t, time.Second), record()); !errors.Is(err, ErrFenced) {
				t.Errorf("Propose on the broken node = %v", err)
			}
		})
	}
}
