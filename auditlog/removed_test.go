package auditlog

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// TestRemoveSegments removes a segment of a log. Its entries are elsewhere, and all that can be
// proved of them still can.
func TestRemoveSegments(t *testing.T) {
	const n = 2*SegmentSize + 500
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, dir, nil)
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, n)
	mustRestore(t, l, n)
	if err := l.RemoveSegments(1, "elsewhere"); !errors.Is(err, ErrMissing) {
		t.Fatalf("a segment that is not durable: %v", err)
	}
	mustSync(t, l)
	mustCheckpoint(t, l, n)
	for range 2 { // the second time does nothing
		if err := l.RemoveSegments(1, "elsewhere"); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.RemoveSegments(3, "elsewhere"); err == nil {
		t.Fatal("a segment that is not full was removed")
	}
	// The second is gone too: RemoveSegments went as far as it could.
	if got := l.Removed(); got != (Removed{Segments: 2, Place: "elsewhere"}) {
		t.Fatalf("removed: %+v", got)
	}
	names, err := os.ReadDir(filepath.Join(dir, layout.SegmentDir))
	if err != nil || len(names) != 1 {
		t.Fatalf("%d files of segments are left: %v", len(names), err)
	}
	mustClose(t, l)

	check := func(l *Log) {
		t.Helper()
		if _, err := l.Read(5, 1, 1); !errors.Is(err, ErrArchived) || !strings.Contains(err.Error(), "elsewhere") {
			t.Errorf("reading what was removed: %v", err)
		}
		if _, err := l.Marks(1); !errors.Is(err, ErrArchived) {
			t.Errorf("offsets of what was removed: %v", err)
		}
		checkContent(t, l, 2*SegmentSize, n)
		leaves := testLeaves(n)
		f, _ := testState(n)
		proof, err := l.ProveInclusion(7, n)
		if err != nil || VerifyInclusion(proof, 7, n, leaves[7], f.Root()) != nil {
			t.Errorf("inclusion of what was removed: %v", err)
		}
		if _, err := l.ProveConsistency(SegmentSize-3, n); err != nil {
			t.Errorf("consistency of what was removed: %v", err)
		}
		for i := range uint64(2) {
			if err := l.Scrub(i); err != nil {
				t.Errorf("scrubbing what was removed: %v", err)
			}
		}
	}
	open := func() *Log {
		t.Helper()
		l := mustOpen(t, dir, nil)
		mustRestore(t, l, 10) // an old snapshot, from which entries are applied again
		mustAppend(t, l, 10, 2000)
		mustRestore(t, l, n)
		check(l)
		return l
	}
	mustClose(t, open())
	// A crash left a file.
	writeTest(t, []byte("x"), dir, layout.SegmentPath(1))
	mustClose(t, open())
	if _, err := os.Stat(filepath.Join(dir, layout.SegmentPath(1))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file that a crash left: %v", err)
	}
	// Without the mark, all that is here is read again.
	if err := os.Remove(filepath.Join(dir, layout.DurableFile)); err != nil {
		t.Fatal(err)
	}
	l = open()
	if l.Size() != n {
		t.Errorf("without the durable mark there are %d entries", l.Size())
	}
	// A damaged tile is made again from entries that a peer, or the archive, has.
	tile := readTest(t, dir, layout.TilePath(0, 3))
	writeTest(t, tile[1:], dir, layout.TilePath(0, 3))
	if r := mustVerify(t, dir, nil); len(r.Problems) != 1 || !strings.HasPrefix(r.Problems[0], layout.TilePath(0, 3)+":") {
		t.Errorf("verifying tiles that were cut short: %v", r.Problems)
	}
	tile[77] ^= 1
	writeTest(t, tile, dir, layout.TilePath(0, 3))
	if err := l.Scrub(0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("scrubbing damaged tiles: %v", err)
	}
	if err := l.Repair(0, func(from uint64) ([]Entry, error) { return testEntries(from, from+4096), nil }); err != nil {
		t.Errorf("repairing them: %v", err)
	}
	check(l)
	if _, err := os.Stat(filepath.Join(dir, layout.SegmentPath(0))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the entries that the tiles were made from are still here: %v", err)
	}
	mustClose(t, l)

	l = mustOpen(t, dir, nil)
	mustRestore(t, l, 10)
	es := testEntries(10, 20)
	es[3].Time++
	if err := l.Append(hashed(es)); !errors.Is(err, ErrDiverged) {
		t.Errorf("other content of what was removed: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	note := readTest(t, dir, layout.RemovedFile)
	note[20] ^= 1
	writeTest(t, note, dir, layout.RemovedFile)
	if _, err := Open(dir, Options{Logger: quiet}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a damaged note of what was removed: %v", err)
	}
}

// TestManyRemoved: a note that more was removed than there are tiles is damage, however much it is.
func TestManyRemoved(t *testing.T) {
	dir := newLog(t, 10)
	note, err := Removed{Segments: 1 << 47, Place: "elsewhere"}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	writeTest(t, note, dir, layout.RemovedFile)
	if _, err := Open(dir, Options{Logger: quiet}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Open: %v", err)
	}
}

// TestVerifyWhileRemoving: verifying the directory of a running node finds nothing missing that
// the node removes in the meantime.
func TestVerifyWhileRemoving(t *testing.T) {
	const n = 2*SegmentSize + 500
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, dir, nil)
	defer mustClose(t, l)
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, n)
	mustRestore(t, l, n)
	mustSync(t, l)
	mustCheckpoint(t, l, n)
	remove := func(n uint64) func() {
		return func() {
			if err := l.RemoveSegments(n, "elsewhere"); err != nil {
				t.Error(err)
			}
		}
	}
	for i, fsys := range []FS{
		beforeRead{OSFS(), filepath.Join(dir, layout.SegmentDir), remove(1)},
		beforeRead{OSFS(), filepath.Join(dir, layout.SegmentPath(1)), remove(2)},
	} {
		wantClean(t, mustVerify(t, dir, fsys))
		if got := l.Removed().Segments; got != uint64(i+1) {
			t.Fatalf("%d segments were removed", got)
		}
	}
}

// beforeRead calls do before a file or directory is read.
type beforeRead struct {
	FS
	name string
	do   func()
}

func (b beforeRead) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	if name == b.name {
		b.do()
	}
	return b.FS.OpenFile(name, flag, perm)
}

func (b beforeRead) ReadDir(name string) ([]string, error) {
	if name == b.name {
		b.do()
	}
	return b.FS.ReadDir(name)
}
