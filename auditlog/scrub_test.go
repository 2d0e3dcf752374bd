package auditlog

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

func TestScrubAndRepair(t *testing.T) {
	const n = SegmentSize + 300
	dir := newLog(t, n)
	l := mustOpen(t, dir, nil)
	defer l.Close()
	mustRestore(t, l, 100) // an older snapshot: the root comes from the tiles
	if err := l.Scrub(0); err != nil {
		t.Fatal(err)
	}
	if err := l.Scrub(1); !errors.Is(err, ErrMissing) {
		t.Fatalf("scrubbing a segment that is not full: %v, want ErrMissing", err)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))

	// Tiles follow from the segment.
	for _, name := range []string{layout.TilePath(0, 3), layout.TilePath(0, 255), layout.TilePath(1, 0)} {
		b := readTest(t, dir, name)
		b[r.IntN(len(b))] ^= 1
		writeTest(t, b, dir, name)
	}
	os.Remove(filepath.Join(dir, layout.TilePath(0, 77)))
	if err := l.Scrub(0); err != nil {
		t.Fatal(err)
	}
	wantClean(t, mustVerify(t, dir, nil))

	good := readTest(t, dir, layout.SegmentPath(0))
	fetch := func(from uint64) ([]Entry, error) { return testEntries(from, from+5000), nil }
	damage := []func() []byte{
		func() []byte { return good[:len(good)-1] },
		func() []byte { return append(append([]byte(nil), good...), good[len(good)-100:]...) },
		func() []byte { return nil },
	}
	for range 5 {
		damage = append(damage, func() []byte {
			b := append([]byte(nil), good...)
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			return b
		})
	}
	damage = append(damage, func() []byte { b := append([]byte(nil), good...); b[3] ^= 1; return b })
	for i, d := range damage {
		writeTest(t, d(), dir, layout.SegmentPath(0))
		if err := l.Scrub(0); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("damage %d: %v, want ErrCorrupt", i, err)
		}
		if i == 0 {
			for what, lie := range map[string]func(uint64) ([]Entry, error){
				"nothing": func(uint64) ([]Entry, error) { return nil, nil },
				"elsewhere": func(from uint64) ([]Entry, error) {
					return testEntries(from+1, from+3), nil
				},
				"changed": func(from uint64) ([]Entry, error) {
					es := testEntries(from, from+10000)
					es[77].Time++
					return es, nil
				},
			} {
				if err := l.Repair(0, lie); !errors.Is(err, ErrRejected) {
					t.Fatalf("repair with %s: %v, want ErrRejected", what, err)
				}
			}
			if err := l.Repair(0, func(uint64) ([]Entry, error) { return nil, errInjected }); !errors.Is(err, errInjected) {
				t.Fatalf("repair without a peer: %v", err)
			}
		}
		if err := l.Repair(0, fetch); err != nil {
			t.Fatalf("damage %d: %v", i, err)
		}
	}
	if got := readTest(t, dir, layout.SegmentPath(0)); string(got) != string(good) {
		t.Fatal("the repaired segment is not byte-identical")
	}
	if err := l.Scrub(0); err != nil {
		t.Fatal(err)
	}
	checkContent(t, l, SegmentSize-100, n)
	wantClean(t, mustVerify(t, dir, nil))
	if l.Err() != nil {
		t.Fatal(l.Err())
	}
}

// TestScrubOfNewSegment: its root was never in a snapshot.
func TestScrubOfNewSegment(t *testing.T) {
	l := mustOpen(t, t.TempDir(), nil)
	defer l.Close()
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, SegmentSize+1)
	if err := l.Scrub(0); err != nil {
		t.Fatal(err)
	}
}

// removingFS calls remove when the file of the first segment is opened for the first time.
type removingFS struct {
	FS
	remove func() error
	err    error
}

func (f *removingFS) OpenFile(name string, flag int, perm os.FileMode) (File, error) {
	if remove := f.remove; remove != nil && strings.HasSuffix(name, layout.SegmentPath(0)) {
		f.remove = nil
		f.err = remove()
	}
	return f.FS.OpenFile(name, flag, perm)
}

// TestScrubDuringRemoval: a segment that is removed while it is scrubbed is not damaged.
func TestScrubDuringRemoval(t *testing.T) {
	const n = SegmentSize + 300
	fsys := &removingFS{FS: OSFS()}
	l := mustOpen(t, newLog(t, n), fsys)
	defer l.Close()
	mustRestore(t, l, n)
	fsys.remove = func() error { return l.RemoveSegments(1, "elsewhere") }
	if err := l.Scrub(0); err != nil {
		t.Errorf("scrubbing what is removed: %v", err)
	}
	if fsys.err != nil || l.Removed().Segments != 1 {
		t.Errorf("%d segments were removed: %v", l.Removed().Segments, fsys.err)
	}
}
