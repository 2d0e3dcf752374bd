package auditlog

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// fillAll backfills until nothing is missing, batch entries at a time.
func fillAll(t testing.TB, l *Log, batch uint64) {
	t.Helper()
	for {
		from, to, ok := l.Missing()
		if !ok {
			return
		}
		if err := l.Fill(testEntries(from, min(from+batch, to))); err != nil {
			t.Fatal(err)
		}
	}
}

func wantMissing(t testing.TB, l *Log, from, to uint64) {
	t.Helper()
	gotFrom, gotTo, ok := l.Missing()
	if want := from < to; ok != want || want && (gotFrom != from || gotTo != to) {
		t.Fatalf("Missing() = %d, %d, %v; want %d, %d", gotFrom, gotTo, ok, from, to)
	}
}

func TestGap(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, dir, nil)
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, 100)
	mustRestore(t, l, 1000) // a snapshot was installed
	wantMissing(t, l, 100, 1000)
	mustAppend(t, l, 1000, 1300)
	if got := l.Size(); got != 1300 {
		t.Fatalf("size %d, want 1300", got)
	}
	checkContent(t, l, 0, 100)
	checkContent(t, l, 1000, 1300)
	if _, err := l.Read(100, 1, 1); !errors.Is(err, ErrMissing) {
		t.Fatalf("reading in the gap: %v, want ErrMissing", err)
	}
	if _, err := l.ProveInclusion(3, 1200); !errors.Is(err, ErrMissing) {
		t.Fatalf("a proof across the gap: %v, want ErrMissing", err)
	}
	if err := l.WriteCheckpoint(testCheckpoint(t, 1200)); !errors.Is(err, ErrStaleCheckpoint) {
		t.Fatalf("a checkpoint across the gap: %v, want ErrStaleCheckpoint", err)
	}
	mustSync(t, l)
	mustCheckpoint(t, l, 100)
	if r := mustVerify(t, dir, nil); len(r.Problems) != 0 || len(r.Gaps) != 1 || r.Gaps[0] != ([2]uint64{100, 1000}) {
		t.Fatalf("report %+v", r)
	}
	mustClose(t, l)

	l = mustOpen(t, dir, nil) // the gap and what follows it survive
	mustRestore(t, l, 1000)
	wantMissing(t, l, 100, 1000)
	mustAppend(t, l, 1000, 1400) // replayed, and more
	if err := l.Fill(testEntries(101, 102)); !errors.Is(err, ErrGap) {
		t.Fatalf("backfill from elsewhere: %v, want ErrGap", err)
	}
	if err := l.Fill(testEntries(100, 600)); err != nil {
		t.Fatal(err)
	}
	wantMissing(t, l, 600, 1000)
	if _, err := l.Read(300, 1, 1); !errors.Is(err, ErrMissing) {
		t.Fatalf("reading what is not verified: %v, want ErrMissing", err)
	}
	mustClose(t, l)

	l = mustOpen(t, dir, nil) // what was not verified is asked for again
	defer l.Close()
	mustRestore(t, l, 1300) // a newer snapshot, within what is pending
	wantMissing(t, l, 100, 1000)
	changed := l.Changed()
	if err := l.Fill(testEntries(100, 1200)); err != nil { // more than was asked for
		t.Fatal(err)
	}
	wantMissing(t, l, 0, 0)
	select {
	case <-changed:
	default:
		t.Fatal("no notification of the closed gap")
	}
	checkContent(t, l, 0, 1400)
	mustAppend(t, l, 1300, 1500)
	mustSync(t, l)
	mustCheckpoint(t, l, 1500)
	wantClean(t, mustVerify(t, dir, nil))
	if names, _ := os.ReadDir(filepath.Join(dir, layout.PendingDir)); len(names) != 0 {
		t.Fatalf("%s is left", names[0].Name())
	}
	if err := l.Fill(testEntries(3, 5)); err != nil {
		t.Fatalf("backfill without a gap: %v", err)
	}
}

// TestManyGaps installs snapshots faster than gaps are filled.
func TestManyGaps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, dir, nil)
	for _, n := range []uint64{500, 900, 2000} {
		mustRestore(t, l, n)
		mustAppend(t, l, n, n+100)
	}
	wantMissing(t, l, 0, 500)
	for range 2 {
		mustClose(t, l)
		l = mustOpen(t, dir, nil)
		mustRestore(t, l, 2050)
		mustAppend(t, l, 2050, 2150)
	}
	mustRestore(t, l, 950) // an older snapshot: its replay joins two runs
	mustAppend(t, l, 950, 2160)
	wantMissing(t, l, 0, 500)
	fillAll(t, l, 77)
	checkContent(t, l, 0, 2160)
	mustSync(t, l)
	mustCheckpoint(t, l, 2160)
	wantClean(t, mustVerify(t, dir, nil))
	mustClose(t, l)
}

// TestGapClosedByReplay: the node restores an older snapshot than the one that
// opened the gap.
func TestGapClosedByReplay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, dir, nil)
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, 100)
	mustRestore(t, l, 300)
	mustAppend(t, l, 300, 400)
	if err := l.Fill(testEntries(100, 150)); err != nil { // under way meanwhile
		t.Fatal(err)
	}
	mustRestore(t, l, 80)
	mustAppend(t, l, 80, 200)
	fillAll(t, l, 1000)
	mustAppend(t, l, 200, 450)
	wantMissing(t, l, 0, 0)
	checkContent(t, l, 0, 450)
	mustRestore(t, l, 1000)
	mustRestore(t, l, 440)
	mustAppend(t, l, 440, 1010) // past the gap, without any backfill
	wantMissing(t, l, 0, 0)
	checkContent(t, l, 0, 1010)
	mustSync(t, l)
	mustCheckpoint(t, l, 1010)
	wantClean(t, mustVerify(t, dir, nil))
	mustClose(t, l)
}

// TestRecoverFromDamage recovers from a damaged segment in the way that
// operators can.
func TestRecoverFromDamage(t *testing.T) {
	dir := newLog(t, 300)
	b := readTest(t, dir, layout.SegmentPath(0))
	b[len(b)/2] ^= 1
	writeTest(t, b, dir, layout.SegmentPath(0))
	if _, err := Open(dir, Options{Logger: quiet}); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("got %v, want ErrCorrupt", err)
	}
	if err := os.Remove(filepath.Join(dir, layout.DurableFile)); err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, dir, nil)
	defer l.Close()
	mustRestore(t, l, 280)
	from, to, ok := l.Missing()
	if !ok || to != 280 || from == 0 || from > 200 {
		t.Fatalf("Missing() = %d, %d, %v", from, to, ok)
	}
	mustAppend(t, l, 280, 310)
	fillAll(t, l, 50)
	checkContent(t, l, 0, 310)
	mustSync(t, l)
	wantClean(t, mustVerify(t, dir, nil))
	if err := l.WriteCheckpoint(testCheckpoint(t, 299)); !errors.Is(err, ErrStaleCheckpoint) {
		t.Fatalf("an older checkpoint: %v, want ErrStaleCheckpoint", err)
	}
	mustCheckpoint(t, l, 310)
}

// TestGapEndsSooner: an older snapshot is restored while backfill is in
// progress.
func TestGapEndsSooner(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, dir, nil)
	mustRestore(t, l, 1000)
	if err := l.Fill(testEntries(0, 600)); err != nil {
		t.Fatal(err)
	}
	wantMissing(t, l, 600, 1000)
	mustRestore(t, l, 500)
	wantMissing(t, l, 0, 500)
	mustAppend(t, l, 500, 1100)
	fillAll(t, l, 130)
	checkContent(t, l, 0, 1100)
	mustSync(t, l)
	mustCheckpoint(t, l, 1100)
	wantClean(t, mustVerify(t, dir, nil))
	mustClose(t, l)
}

// TestLyingPeer serves every kind of wrong backfill, and then the right
// entries.
func TestLyingPeer(t *testing.T) {
	const n = SegmentSize + 500
	lies := map[string]func(e *Entry){
		"body":        func(e *Entry) { e.Body = append([]byte(nil), "no"...) },
		"time":        func(e *Entry) { e.Time++ },
		"request id":  func(e *Entry) { e.RequestID[3] ^= 1 },
		"order":       func(e *Entry) { e.Index++ },
		"empty body":  func(e *Entry) { e.Body = nil },
		"huge body":   func(e *Entry) { e.Body = make([]byte, MaxBody+1) },
		"generation":  func(e *Entry) { e.Generation++ },
		"commitment":  func(e *Entry) { e.Commitment[31] ^= 1 },
		"other entry": func(e *Entry) { i := e.Index; *e = testEntry(i + 1); e.Index = i },
	}
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, dir, nil)
	defer l.Close()
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, 50)
	mustRestore(t, l, n)
	mustAppend(t, l, n, n+10)
	for name, lie := range lies {
		from, to, _ := l.Missing()
		es := testEntries(from, min(to, SegmentSize))
		lie(&es[len(es)-7])
		if err := l.Fill(es); !errors.Is(err, ErrRejected) {
			t.Fatalf("first segment, wrong %s: %v, want ErrRejected", name, err)
		}
		// From where the log ends, or from the start of the segment if the log
		// itself may be wrong.
		if from, _, _ := l.Missing(); from != 0 && from != 50 {
			t.Fatalf("after a lie the backfill goes on at %d", from)
		}
		if len(lies) > 3 && name != "body" && name != "order" {
			delete(lies, name) // a segment each is enough for a few
		}
	}
	from, _, _ := l.Missing()
	if err := l.Fill(testEntries(from, SegmentSize)); err != nil {
		t.Fatal(err)
	}
	wantMissing(t, l, SegmentSize, n)
	for _, name := range []string{"time", "huge body"} {
		es := testEntries(SegmentSize, n)
		es[3].Time++
		if err := l.Fill(es); !errors.Is(err, ErrRejected) {
			t.Fatalf("tail, wrong %s: %v, want ErrRejected", name, err)
		}
		wantMissing(t, l, SegmentSize, n)
	}
	if err := l.Err(); err != nil {
		t.Fatal(err)
	}
	checkContent(t, l, SegmentSize-500, SegmentSize)
	fillAll(t, l, 100)
	checkContent(t, l, SegmentSize-10, n+10)
	mustSync(t, l)
	mustCheckpoint(t, l, n+10)
	wantClean(t, mustVerify(t, dir, nil))
}

// TestOwnEntriesWrong: not the peer's entries are wrong, but the log's own.
func TestOwnEntriesWrong(t *testing.T) {
	l := mustOpen(t, t.TempDir(), nil)
	defer l.Close()
	mustRestore(t, l, 0)
	es := testEntries(0, 60)
	es[31].Time++
	if err := l.Append(hashed(es)); err != nil {
		t.Fatal(err)
	}
	mustRestore(t, l, 200)
	wantMissing(t, l, 60, 200)
	if err := l.Fill(testEntries(60, 200)); !errors.Is(err, ErrRejected) {
		t.Fatalf("got %v, want ErrRejected", err)
	}
	wantMissing(t, l, 0, 200)
	if err := l.Fill(testEntries(0, 200)); !errors.Is(err, ErrDiverged) {
		t.Fatalf("got %v, want ErrDiverged", err)
	}
	if err := l.Append(hashed(testEntries(200, 201))); !errors.Is(err, ErrFailed) {
		t.Fatalf("got %v, want ErrFailed", err)
	}
}

func TestPendingDamage(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, dir, nil)
	mustRestore(t, l, 100)
	mustAppend(t, l, 100, 120)
	mustClose(t, l)
	name := layout.PendingPath(100)
	good := readTest(t, dir, name)
	for i := range good {
		b := append([]byte(nil), good...)
		b[i] ^= 4
		writeTest(t, b, dir, name)
		if _, err := Open(dir, Options{Logger: quiet}); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d: %v, want ErrCorrupt", i, err)
		}
		wantProblem(t, mustVerify(t, dir, nil), name, "byte %d", i)
		writeTest(t, good[:i], dir, name)
		if _, err := Open(dir, Options{Logger: quiet}); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v, want ErrCorrupt", i, err)
		}
	}
	writeTest(t, good, dir, name)
	l = mustOpen(t, dir, nil)
	defer l.Close()
	f, roots := testState(110)
	f.nodes[1][0] ^= 1
	if err := l.Restore(f, roots); !errors.Is(err, ErrDiverged) {
		t.Fatalf("another state: %v, want ErrDiverged", err)
	}
}

// TestFillBesideAppend fills a gap while there are appends, reads and syncs.
func TestFillBesideAppend(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, dir, nil)
	const gap, end = 10000, 30000
	mustRestore(t, l, gap)
	testLeaves(end)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := uint64(gap); i < end; i += 20 {
			if err := l.Append(hashed(testEntries(i, i+20))); err != nil {
				t.Error(err)
				return
			}
		}
	})
	wg.Go(func() {
		for {
			from, to, ok := l.Missing()
			if !ok {
				return
			}
			if err := l.Fill(testEntries(from, min(from+700, to))); err != nil {
				t.Error(err)
				return
			}
		}
	})
	wg.Go(func() {
		deadline := time.Now().Add(60 * time.Second)
		for i := uint64(gap); i < end; {
			if time.Now().After(deadline) {
				t.Error("not done in time")
				return
			}
			ch := l.Changed()
			got, err := l.Read(i, 500, 1<<20)
			if err != nil {
				t.Error(err)
				return
			}
			for k := range got {
				if got[k].LeafHash() != testLeaves(end)[i] {
					t.Errorf("entry %d is not the expected one", i)
					return
				}
				i++
			}
			if len(got) == 0 {
				select {
				case <-ch:
				case <-time.After(time.Until(deadline)):
				}
			}
			if i%7 == 0 {
				if err := l.Sync(); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	wg.Wait()
	checkContent(t, l, 0, end)
	mustSync(t, l)
	mustCheckpoint(t, l, end)
	mustClose(t, l)
	wantClean(t, mustVerify(t, dir, nil))
}
