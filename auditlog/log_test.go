package auditlog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

func TestAppendReadReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, dir, nil)
	if err := l.Append(hashed(testEntries(0, 1))); !errors.Is(err, ErrGap) {
		t.Fatalf("append before restore: %v", err)
	}
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, 700)
	checkContent(t, l, 0, 700)
	if got, err := l.Read(700, 10, 1000); err != nil || len(got) != 0 {
		t.Fatalf("reading at the end: %d entries, %v", len(got), err)
	}
	mustAppend(t, l, 650, 900) // replayed, and more
	if err := l.Append(hashed(testEntries(901, 902))); !errors.Is(err, ErrGap) {
		t.Fatalf("append beyond the end: %v", err)
	}
	if err := l.Append(hashed([]Entry{{Index: 900}})); !errors.Is(err, ErrMalformed) {
		t.Fatalf("append of an entry without body: %v", err)
	}
	mustClose(t, l)
	if err := l.Append(hashed(testEntries(900, 901))); !errors.Is(err, ErrClosed) {
		t.Fatalf("append after close: %v", err)
	}

	l = mustOpen(t, dir, nil)
	checkContent(t, l, 0, 900)
	mustRestore(t, l, 300)
	mustAppend(t, l, 300, 1000)
	if got := l.Size(); got != 1000 {
		t.Fatalf("size %d, want 1000", got)
	}
	checkContent(t, l, 0, 1000)
	mustSync(t, l)
	mustCheckpoint(t, l, 1000)
	r := mustVerify(t, dir, nil) // beside the live writer
	wantClean(t, r)
	f, _ := testState(1000)
	if r.Size != 1000 || r.Root != f.Root() || r.CheckpointSize != 1000 {
		t.Fatalf("report %+v", r)
	}
	mustClose(t, l)
	filepath.Walk(dir, func(path string, st os.FileInfo, err error) error {
		if want := map[bool]os.FileMode{true: 0o700, false: 0o600}[st.IsDir()]; st.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", path, st.Mode().Perm(), want)
		}
		return err
	})
}

func TestReadLimits(t *testing.T) {
	l := mustOpen(t, t.TempDir(), nil)
	defer l.Close()
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, 200)
	for _, c := range []struct{ from, max, bytes, want int }{
		{0, 7, 1 << 20, 7}, {190, 50, 1 << 20, 10}, {31, 10, 1, 1}, {31, 10, 33, 2}, {0, 0, 100, 0}, {5000, 1, 1, 0},
	} {
		got, err := l.Read(uint64(c.from), c.max, c.bytes)
		if err != nil || len(got) != c.want {
			t.Errorf("Read(%d, %d, %d): %d entries, %v; want %d", c.from, c.max, c.bytes, len(got), err, c.want)
		}
	}
}

func TestSegmentBoundary(t *testing.T) {
	const n = SegmentSize + 700
	dir := newLog(t, n)
	wantClean(t, mustVerify(t, dir, nil))
	l := mustOpen(t, dir, nil)
	mustRestore(t, l, SegmentSize-300)
	mustAppend(t, l, SegmentSize-300, n+500) // replayed across the boundary
	checkContent(t, l, SegmentSize-100, n+500)
	checkContent(t, l, 0, 200)
	// Views of older sizes, from tiles only and from tiles and memory.
	for _, size := range []uint64{1, 255, 256, 257, 65535, 65536, 65537, n, n + 500} {
		f, _ := testState(size)
		got, err := l.content.tree.view().at(size)
		if err != nil || !got.Equal(f) {
			t.Errorf("tree at %d: %v", size, err)
		}
	}
	mustClose(t, l)
	l = mustOpen(t, dir, nil)
	defer l.Close()
	f, roots := testState(n)
	roots[0][0] ^= 1
	if err := l.Restore(f, roots); !errors.Is(err, ErrMalformed) {
		t.Fatalf("roots that contradict the frontier: %v", err)
	}
	var other Frontier
	for i := range uint64(SegmentSize) {
		other.Append(Hash{byte(i), 1})
	}
	if err := l.Restore(other, []Hash{other.SegmentRoot()}); !errors.Is(err, ErrDiverged) {
		t.Fatalf("restoring another segment: %v", err)
	}
	if err := l.Append(hashed(nil)); !errors.Is(err, ErrFailed) {
		t.Fatalf("the log goes on after divergence: %v", err)
	}
}

func TestDiverged(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(l *Log) error
	}{
		{"entry in memory", func(l *Log) error {
			e := testEntries(240, 251)
			e[10].Time++
			return l.Append(hashed(e))
		}},
		{"body", func(l *Log) error {
			e := testEntries(240, 260)
			e[19].Body = []byte("another")
			return l.Append(hashed(e))
		}},
		{"frontier", func(l *Log) error {
			f, roots := testState(200)
			f.nodes[3][5] ^= 1
			return l.Restore(f, roots)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := mustOpen(t, newLog(t, 300), nil)
			defer l.Close()
			mustRestore(t, l, 240)
			if err := c.do(l); !errors.Is(err, ErrDiverged) {
				t.Fatalf("got %v, want ErrDiverged", err)
			}
			for name, err := range map[string]error{
				"Append": l.Append(hashed(testEntries(240, 241))), "Sync": l.Sync(), "Fill": l.Fill(testEntries(0, 1)),
				"Restore": l.Restore(Frontier{}, nil), "WriteCheckpoint": l.WriteCheckpoint(testCheckpoint(t, 300)), "Err": l.Err(),
			} {
				if !errors.Is(err, ErrFailed) {
					t.Errorf("%s after divergence: %v, want ErrFailed", name, err)
				}
			}
		})
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, nil)
	if _, err := Open(dir, Options{Logger: quiet}); !errors.Is(err, ErrLocked) {
		t.Fatalf("second open: %v, want ErrLocked", err)
	}
	mustClose(t, l)
	mustClose(t, mustOpen(t, dir, nil))
}

// TestTornTail cuts the file within the last frames, at each byte. Before the
// durable mark, that is damage; after it, the log is cut back to whole frames.
func TestTornTail(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	dir := newLog(t, 40)
	// Entries 40 and 41 reach the file, but are not synced, as after a crash.
	l := mustOpen(t, dir, nil)
	mustRestore(t, l, 40)
	before := int64(len(readTest(t, dir, layout.SegmentPath(0))))
	mustAppend(t, l, 40, 42)
	torn := copyDir(t, dir)
	mustClose(t, l)
	whole := readTest(t, torn, layout.SegmentPath(0))
	first := before + layout.FrameOverhead + int64(len(testEntry(40).Body))
	for n := int64(0); n <= int64(len(whole)); n++ {
		writeTest(t, whole[:n], torn, layout.SegmentPath(0))
		mark := readTest(t, torn, layout.DurableFile)
		l, err := Open(torn, Options{Logger: quiet})
		if n < before {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("cut at %d, before the durable mark: %v, want ErrCorrupt", n, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("cut at %d: %v", n, err)
		}
		want := uint64(40)
		if n >= first {
			want++
		}
		if n == int64(len(whole)) {
			want++
		}
		if got := l.Size(); got != want {
			t.Fatalf("cut at %d: %d entries, want %d", n, got, want)
		}
		mustRestore(t, l, 40)
		mustAppend(t, l, 40, 45)
		checkContent(t, l, 0, 45)
		mustClose(t, l)
		writeTest(t, mark, torn, layout.DurableFile)
	}
	// Garbage instead of the end.
	for _, tail := range [][]byte{make([]byte, 600), []byte("\x00\x00\x00\xffgarbage"), whole[before:first]} {
		writeTest(t, append(append([]byte(nil), whole...), tail...), torn, layout.SegmentPath(0))
		l := mustOpen(t, torn, nil)
		if got := l.Size(); got != 42 {
			t.Fatalf("%d entries, want 42", got)
		}
		mustClose(t, l)
		writeTest(t, readTest(t, dir, layout.DurableFile), torn, layout.DurableFile)
	}
}

func TestOpenRefusesDamage(t *testing.T) {
	for _, name := range []string{layout.SegmentPath(0), layout.DurableFile, layout.CheckpointFile} {
		t.Run(name, func(t *testing.T) {
			dir := newLog(t, 20)
			b := readTest(t, dir, name)
			at := len(b) / 2
			if name == layout.CheckpointFile {
				at = bytes.Index(b, []byte("\n20\n")) + 10 // in the root
			}
			b[at] ^= 1
			writeTest(t, b, dir, name)
			if _, err := Open(dir, Options{Logger: quiet}); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("got %v, want ErrCorrupt", err)
			}
			if name == layout.SegmentPath(0) {
				os.Remove(filepath.Join(dir, name))
				if _, err := Open(dir, Options{Logger: quiet}); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("without the file: %v, want ErrCorrupt", err)
				}
			}
		})
	}
}

// TestTilesMadeAgain removes and damages tiles of the newest segment.
func TestTilesMadeAgain(t *testing.T) {
	dir := newLog(t, 1000)
	writeTest(t, make([]byte, TileWidth*HashSize), dir, layout.TilePath(0, 1))
	os.Remove(filepath.Join(dir, layout.TilePath(0, 2)))
	writeTest(t, []byte("x"), dir, layout.TilePath(0, 3)) // of entries there are not
	l := mustOpen(t, dir, nil)
	mustClose(t, l)
	wantClean(t, mustVerify(t, dir, nil))
}

func TestReadDetectsDamage(t *testing.T) {
	dir := newLog(t, 20)
	l := mustOpen(t, dir, nil)
	defer l.Close()
	mustRestore(t, l, 20)
	b := readTest(t, dir, layout.SegmentPath(0))
	b[len(b)-50] ^= 1
	writeTest(t, b, dir, layout.SegmentPath(0))
	if _, err := l.Read(10, 100, 1<<20); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("got %v, want ErrCorrupt", err)
	}
}

func TestConcurrentReadAppendSync(t *testing.T) {
	l := mustOpen(t, t.TempDir(), nil)
	defer l.Close()
	mustRestore(t, l, 0)
	const n = 20000
	testLeaves(n)
	deadline := time.Now().Add(60 * time.Second)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { // followers
			for i := uint64(0); i < n && time.Now().Before(deadline); {
				ch := l.Changed()
				got, err := l.Read(i, 300, 1<<20)
				if err != nil {
					t.Error(err)
					return
				}
				if len(got) == 0 {
					select {
					case <-ch:
					case <-time.After(time.Until(deadline)):
						t.Error("no notification")
					}
					continue
				}
				for k := range got {
					if got[k].LeafHash() != testLeaves(n)[i] {
						t.Errorf("entry %d is not the expected one", i)
						return
					}
					i++
				}
			}
		})
	}
	stop := make(chan struct{})
	var syncer sync.WaitGroup
	syncer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := l.Sync(); err != nil {
				t.Error(err)
				return
			}
			if size := l.Size(); size > 300 {
				if _, err := l.ProveInclusion(size/2, size-1); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for i := uint64(0); i < n; i += 50 {
		if err := l.Append(hashed(testEntries(i, i+50))); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	close(stop)
	syncer.Wait()
}

func BenchmarkAppend(b *testing.B) {
	for _, batch := range []int{1, 100} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			l := mustOpen(b, b.TempDir(), nil)
			defer l.Close()
			mustRestore(b, l, 0)
			entries := make([]Entry, batch)
			body := make([]byte, 600)
			b.SetBytes(int64(batch * 600))
			i := uint64(0)
			for b.Loop() {
				for k := range entries {
					entries[k] = Entry{Index: i, RaftIndex: i, Body: body}
					i++
				}
				if err := l.Append(hashed(entries)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(i)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

// TestTileOfSegments: the tile over 256 segments is made from those of the
// segments. The first 255 have only names, roots and tiles.
func TestTileOfSegments(t *testing.T) {
	const first = (TileWidth - 1) * SegmentSize
	fsys := newMemFS()
	var roots []Hash
	var want []byte
	for n := range uint64(TileWidth - 1) {
		hashes, b := make([]Hash, TileWidth), []byte(nil)
		for i := range hashes {
			hashes[i] = Hash{byte(n), byte(i)}
			b = append(b, hashes[i][:]...)
		}
		fsys.put("/log/"+layout.TilePath(1, n), b)
		fsys.put("/log/"+layout.SegmentPath(n), nil)
		roots = append(roots, fold(hashes))
		want = append(want, roots[n][:]...)
	}
	f := FoldSegments(roots)
	mark := DurableMark{Tree: f}
	fsys.put("/log/"+layout.DurableFile, mark.encode())
	l := mustOpen(t, "/log", fsys)
	if err := l.Restore(f, roots); err != nil {
		t.Fatal(err)
	}
	for i := uint64(first); i < first+SegmentSize; i += 16384 {
		if err := l.Append(hashed(testEntries(i, i+16384))); err != nil {
			t.Fatal(err)
		}
	}
	mustSync(t, l)
	last := l.content.roots[TileWidth-1]
	want = append(want, last[:]...)
	check := func() {
		t.Helper()
		got, err := ReadFile(fsys, "/log/"+layout.TilePath(2, 0), TileWidth*HashSize)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("the tile over all segments is not their roots: %v, %d bytes", err, len(got))
		}
	}
	check()
	tree := l.content.tree.view().tree
	for _, size := range []uint64{SegmentSize, first, first + 1000, first + SegmentSize - 1} {
		at, err := l.content.tree.view().at(size)
		if err != nil || at.Size() != size {
			t.Errorf("tree at %d: %v", size, err)
		}
	}
	mustClose(t, l)
	// As after a crash in which the last mark and the tile were lost.
	fsys.put("/log/"+layout.DurableFile, mark.encode())
	if err := fsys.Remove("/log/" + layout.TilePath(2, 0)); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, "/log", fsys)
	defer l.Close()
	check()
	if !l.content.tree.view().tree.Equal(tree) {
		t.Error("another tree after opening")
	}
	if err := l.Restore(tree, append(roots, last)); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(hashed(testEntries(tree.Size(), tree.Size()+300))); err != nil {
		t.Fatal(err)
	}
}
