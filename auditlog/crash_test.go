package auditlog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/conclavekms/conclave/auditlog/checkpoint"
)

// history is what a process did, and which calls succeeded, before it ended.
type history struct {
	synced  uint64 // entries from 0 on, at the last Sync that succeeded
	applied uint64 // entries that Append took
	signed  uint64 // size of the last checkpoint that was stored
	tried   uint64 // size of the last checkpoint that was to be stored
	state   uint64 // entries that the newest snapshot on disk covers
}

// play performs all kinds of operations: appends across tiles and segments,
// syncs, checkpoints, a gap from a snapshot, backfill, false backfill, and a
// merge.
func play(fsys *memFS, h *history, base uint64) error {
	l, err := Open("/log", Options{Logger: quiet, FS: fsys})
	if err != nil {
		return err
	}
	restore := func(n uint64) error {
		f, roots := testState(n)
		return l.Restore(f, roots)
	}
	add := func(from, to uint64) error {
		err := l.Append(hashed(testEntries(from, to)))
		if err == nil {
			h.applied = max(h.applied, to)
		}
		return err
	}
	sync := func() error {
		err := l.Sync()
		if err == nil {
			l.mu.Lock()
			h.synced = l.content.tree.size
			l.mu.Unlock()
			h.state = h.applied // a Raft snapshot completes
		}
		return err
	}
	sign := func(n uint64) error {
		f, _ := testState(n)
		msg, err := checkpoint.Sign(testOrigin, testPriv, nil, f.Size(), f.Root())
		if err != nil {
			return err
		}
		h.tried = n
		if err = l.WriteCheckpoint(msg); err == nil {
			h.signed = n
		}
		return err
	}
	steps := []func() error{
		func() error { return restore(base) },
		func() error { return add(base, base+100) },
		sync,
		func() error { return sign(base + 90) },
		func() error { return add(base+100, base+350) },
		func() error { return sync() },
		func() error { return add(base+350, base+360) },
		// A snapshot is installed: from then on the state covers more entries than
		// the log has.
		func() error { h.state = base + 900; return restore(base + 900) },
		func() error { h.applied = base + 900; return add(base+900, base+1000) },
		sync,
		func() error { return add(base+1000, base+1010) },
		func() error { return l.Fill(testEntries(base+360, base+500)) },
		func() error {
			es := testEntries(base+500, base+900)
			es[17].Time++
			if err := l.Fill(es); !errors.Is(err, ErrRejected) {
				return err
			}
			return nil
		},
		sync,
		func() error {
			from, to, _ := l.Missing()
			return l.Fill(testEntries(from, to))
		},
		func() error { return add(base+1010, base+1020) },
		sync,
		func() error { return sign(base + 1020) },
		l.Close,
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

// survive opens what a crash left and checks that nothing durable is lost, that
// nothing is wrong, and that the log can continue.
func survive(t *testing.T, fsys *memFS, h history, base uint64) {
	t.Helper()
	l, err := Open("/log", Options{Logger: quiet, FS: fsys})
	if err != nil {
		t.Fatalf("open after a crash: %v", err)
	}
	have := l.content.tree.view().tree
	if have.size < h.synced {
		t.Fatalf("%d entries, but %d were synced", have.size, h.synced)
	}
	if want, _ := testState(have.size); !have.Equal(want) {
		t.Fatalf("the tree of %d entries is not the expected one", have.size)
	}
	checkContent(t, l, max(base, 30)-30, have.size)
	if c := l.Checkpoint(); c != nil || h.signed > 0 {
		got, err := checkpoint.Parse(c, testKey)
		if err != nil || got.Size != h.signed && got.Size != h.tried && got.Size != base {
			t.Fatalf("checkpoint of %d entries, %d were signed, %v", got.Size, h.signed, err)
		}
	}
	// Raft restores its snapshot and replays.
	mustRestore(t, l, h.state)
	end := max(h.applied, h.state, l.Size()) + 40
	mustAppend(t, l, h.state, end)
	fillAll(t, l, 400)
	if got := l.Size(); got != end {
		t.Fatalf("size %d after the replay, want %d", got, end)
	}
	checkContent(t, l, max(base, 30)-30, end)
	mustSync(t, l)
	mustCheckpoint(t, l, end)
	mustClose(t, l)
	wantClean(t, mustVerify(t, "/log", fsys))
}

// crashes makes each changing operation of play fail in each way, and then
// checks what the end of the process, and some losses of power, leave behind.
func crashes(t *testing.T, base uint64, prepared *memFS, every, images int) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	start := func() *memFS {
		if prepared == nil {
			return newMemFS()
		}
		return prepared.crash(rng, true)
	}
	fsys := start()
	whole := history{synced: base, applied: base, state: base}
	if err := play(fsys, &whole, base); err != nil {
		t.Fatalf("without faults: %v", err)
	}
	ops := fsys.ops
	t.Logf("%d operations", ops)
	n := 0
	for k := 1; k <= ops; k++ {
		if every > 1 && rng.IntN(every) != 0 {
			continue
		}
		for mode := range numFaultModes {
			fsys := start()
			fsys.failAt, fsys.mode = k, mode
			h := history{synced: base, applied: base, state: base, signed: 0}
			err := play(fsys, &h, base)
			what := fmt.Sprintf("operation %d of %d, %s, mode %d", k, ops, fsys.trace[min(k, len(fsys.trace))-1], mode)
			if err == nil {
				t.Fatalf("%s: the error went unnoticed", what)
			}
			t.Run(what, func(t *testing.T) {
				survive(t, fsys.crash(rng, true), h, base)
				for range images {
					n++
					survive(t, fsys.crash(rng, false), h, base)
				}
			})
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d crash images", n)
}

func TestCrashEverywhere(t *testing.T) { crashes(t, 0, nil, 1, 3) }

// TestCrashAtSegmentBoundary does the same while a segment becomes full.
func TestCrashAtSegmentBoundary(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine, for which the race detector has no use: make test runs it")
	}
	const base = SegmentSize - 220
	prepared := newMemFS()
	l := mustOpen(t, "/log", prepared)
	mustRestore(t, l, 0)
	for i := uint64(0); i < base; i += 16000 {
		if err := l.Append(hashed(testEntries(i, min(i+16000, base)))); err != nil {
			t.Fatal(err)
		}
	}
	mustSync(t, l)
	mustCheckpoint(t, l, base)
	mustClose(t, l)
	every := 100
	if testing.Short() {
		every = 250
	}
	crashes(t, base, prepared, every, 1)
}

// TestSealedSegmentSurvives: once a full segment is synced, Open does not read
// it again, so its tiles must be on disk too.
func TestSealedSegmentSurvives(t *testing.T) {
	const n = SegmentSize + 10
	fsys := newMemFS()
	l := mustOpen(t, "/log", fsys)
	mustRestore(t, l, 0)
	for i := uint64(0); i < n; i += 16384 {
		if err := l.Append(hashed(testEntries(i, min(i+16384, n)))); err != nil {
			t.Fatal(err)
		}
	}
	mustSync(t, l)
	mustCheckpoint(t, l, n)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 3 {
		after := fsys.crash(rng, false)
		mustClose(t, mustOpen(t, "/log", after))
		wantClean(t, mustVerify(t, "/log", after))
	}
}

// TestFailStop: after any failed write, the log accepts nothing any more.
func TestFailStop(t *testing.T) {
	for mode := faultBefore; mode < powerCut; mode++ {
		fsys := newMemFS()
		l := mustOpen(t, "/log", fsys)
		mustRestore(t, l, 0)
		mustAppend(t, l, 0, 10)
		changed := l.Changed()
		fsys.failAt, fsys.mode = fsys.ops+1, mode
		if err := l.Append(hashed(testEntries(10, 20))); !errors.Is(err, errInjected) {
			t.Fatalf("got %v, want the injected error", err)
		}
		for name, err := range map[string]error{
			"Append": l.Append(hashed(testEntries(10, 20))), "Sync": l.Sync(), "Fill": l.Fill(testEntries(0, 1)), "Err": l.Err(),
		} {
			if !errors.Is(err, ErrFailed) || !errors.Is(err, errInjected) {
				t.Errorf("%s after a failed write: %v, want ErrFailed", name, err)
			}
		}
		if _, err := l.Read(0, 1, 1); !errors.Is(err, ErrFailed) {
			t.Errorf("Read after a failed write: %v, want ErrFailed", err)
		}
		select {
		case <-changed:
		default:
			t.Error("followers were not told")
		}
		select {
		case <-l.Changed():
		default:
			t.Error("later followers would wait for ever")
		}
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}
