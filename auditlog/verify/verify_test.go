package verify

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// wantProblem checks that the report names the file.
func wantProblem(t testing.TB, r *Report, file, format string, args ...any) {
	t.Helper()
	for _, p := range r.Problems {
		if p.File == file {
			return
		}
	}
	t.Fatalf("%s: nothing reported about %s: torn=%d %v", fmt.Sprintf(format, args...), file, r.Torn, r.Problems)
}

// TestFlippedBitAfterCheckpoint: entries that no checkpoint covers yet are
// checked as well, and a damaged length is not taken for a torn end.
func TestFlippedBitAfterCheckpoint(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, dir)
	mustAppend(t, l, testEntries(0, 8))
	mustSign(t, l, testEntries(0, 8))
	at := len(readTest(t, dir, layout.SegmentPath(0)))
	mustAppend(t, l, testEntries(8, 12))
	m := loadDir(t, dir)
	mustClose(t, l)
	r := m.verify(t)
	wantClean(t, r)
	if r.Size != 12 || r.Unsigned != 4 {
		t.Fatalf("report %+v", r)
	}
	c := bytes.Clone(m[layout.SegmentPath(0)])
	for i := at; i < len(c); i++ {
		for bit := range 8 {
			c[i] ^= 1 << bit
			wantProblem(t, m.with(layout.SegmentPath(0), c).verify(t), layout.SegmentPath(0), "byte %d bit %d flipped", i, bit)
			c[i] ^= 1 << bit
		}
	}
	// The unfinished frame of a running node is not damage, wherever it ends.
	last := len(c) - layout.FrameOverhead - len(testEntry(11).Body)
	for n := last + 1; n < len(c); n++ {
		r := m.with(layout.SegmentPath(0), c[:n]).verify(t)
		if !r.OK() || r.Torn != int64(n-last) || r.Size != 11 {
			t.Fatalf("cut at %d: torn=%d size=%d %v", n, r.Torn, r.Size, r.Problems)
		}
	}
}

// frames splits a segment into its frames.
func frames(t testing.TB, b []byte) [][]byte {
	t.Helper()
	var out [][]byte
	err := layout.ScanFrames(bytes.NewReader(b), layout.SegmentHeaderSize, int64(len(b)), func(_ int64, f []byte) error {
		out = append(out, bytes.Clone(f))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func joinFrames(n uint64, fs [][]byte) []byte {
	return append(layout.SegmentHeader(n), bytes.Join(fs, nil)...)
}

// TestTampering rearranges whole, valid frames. What is wrong with an entry is reported with its
// index. If the log merely ends too early, or is another one, the report names what says so.
func TestTampering(t *testing.T) {
	m := loadDir(t, newLog(t, 300))
	seg := layout.SegmentPath(0)
	all := frames(t, m[seg])
	edit := func(fn func(fs [][]byte) [][]byte) []byte {
		return joinFrames(0, fn(append([][]byte(nil), all...)))
	}
	for i := range all {
		index, last := uint64(i), uint64(len(all)-1)
		// The tile of the first 256 shows which entry is another one; behind it, only the root of
		// all shows that one is.
		replaced := problemAt{layout.TilePath(0, 0), index}
		if index >= auditlog.TileWidth {
			replaced = problemAt{layout.CheckpointFile, 0}
		}
		deleted := problemAt{seg, index}
		if index == last {
			deleted = problemAt{layout.CheckpointFile, last}
		}
		for what, c := range map[string]struct {
			segment []byte
			want    problemAt
		}{
			"truncated at": {edit(func(fs [][]byte) [][]byte { return fs[:i] }), problemAt{layout.CheckpointFile, index}},
			"deleted":      {edit(func(fs [][]byte) [][]byte { return append(fs[:i], fs[i+1:]...) }), deleted},
			"duplicated":   {edit(func(fs [][]byte) [][]byte { return append(fs[:i+1], append([][]byte{fs[i]}, fs[i+1:]...)...) }), problemAt{seg, index + 1}},
			"inserted before": {edit(func(fs [][]byte) [][]byte {
				e := testEntry(index)
				e.RequestID[0] ^= 1
				return append(fs[:i], append([][]byte{frameOf(e)}, fs[i:]...)...)
			}), problemAt{seg, index + 1}},
			"swapped with its neighbour": {edit(func(fs [][]byte) [][]byte {
				k := (i + 1) % len(fs)
				fs[i], fs[k] = fs[k], fs[i]
				return fs
			}), problemAt{seg, index}},
			"replaced by a valid frame": {edit(func(fs [][]byte) [][]byte {
				e := testEntry(index)
				e.Commitment[0] ^= 1
				fs[i] = frameOf(e)
				return fs
			}), replaced},
		} {
			wantProblemAt(t, m.with(seg, c.segment).verify(t), c.want, "entry %d %s", i, what)
			if i%20 == 0 { // the mark is not a signature, so it is the same without it
				wantProblemAt(t, m.with(seg, c.segment).with(layout.DurableFile, nil).verify(t), c.want, "entry %d %s, no mark", i, what)
			}
		}
	}
}

func TestFiles(t *testing.T) {
	m := loadDir(t, newLog(t, 700))
	other := loadDir(t, newLog(t, 256))
	for name := range m {
		if name == layout.LockFile {
			continue
		}
		wantProblem(t, m.with(name, nil).verify(t), name, "%s deleted", name)
		if !strings.HasSuffix(name, ".seg") { // which is the torn end of an empty log
			wantProblem(t, m.with(name, []byte{}).verify(t), name, "%s emptied", name)
		}
	}
	for _, name := range []string{"core", "segments/1.seg", "segments/00000000.seg~", "segments/x/y", "pending/3.seg", "tile/9/000",
		"tile/00/000", "tile/0/x000/000", "tile/0/0", "tile/0/000.p/5", "tile/0/x001/x1/000", "tile/x/000"} {
		r := m.with(name, []byte("x")).verify(t)
		if r.OK() {
			t.Errorf("unknown file %s: nothing reported", name)
		}
	}
	for _, name := range []string{layout.TilePath(0, 2), layout.TilePath(0, 1234), layout.TilePath(1, 0), layout.TilePath(6, 1234567)} {
		wantProblem(t, m.with(name, m[layout.TilePath(0, 0)]).verify(t), name, "extra tile")
	}
	wantProblem(t, m.with(layout.TilePath(0, 1), m[layout.TilePath(0, 0)]).verify(t), layout.TilePath(0, 1), "tiles swapped")
	if m.with(layout.SegmentPath(1), layout.SegmentHeader(1)).verify(t).OK() {
		t.Error("a segment after one that is not full: nothing reported")
	}
	if m.with(layout.SegmentPath(5), layout.SegmentHeader(5)).verify(t).OK() {
		t.Error("a segment after missing ones: nothing reported")
	}
	if other.with(layout.SegmentPath(0), m[layout.SegmentPath(0)]).verify(t).Unsigned != 700-256 {
		t.Error("entries after the checkpoint are not counted")
	}
	if m.with(layout.DurableFile, other[layout.DurableFile]).verify(t).OK() == false {
		t.Error("an older mark is not damage")
	}
	wantProblem(t, m.with(layout.CheckpointFile, nil).verify(t), layout.CheckpointFile, "no checkpoint")
}

func TestRollbackAndFork(t *testing.T) {
	m := loadDir(t, newLog(t, 300))
	older := loadDir(t, newLog(t, 200))
	saved := m[layout.CheckpointFile]
	wantClean(t, m.verify(t, saved, older[layout.CheckpointFile]))
	// Rolled back as a whole: only a saved checkpoint shows that.
	wantClean(t, older.verify(t))
	if older.verify(t, saved).OK() {
		t.Error("a log rolled back: nothing reported")
	}
	wantProblem(t, m.with(layout.CheckpointFile, older[layout.CheckpointFile]).verify(t, saved), layout.CheckpointFile, "checkpoint rolled back")
	// A fork, signed by the same key, from entry 100 on.
	es := testEntries(0, 400)
	for i := range es[100:] {
		es[100+i].Commitment[3] ^= 1
	}
	dir := logOf(t, es)
	fork := loadDir(t, dir)
	wantClean(t, fork.verify(t))
	wantProblem(t, fork.verify(t, saved), "", "a fork")
	// Several kept checkpoints say between which the logs part.
	var said []string
	for _, p := range fork.verify(t, checkpointOf(t, testEntries(0, 90)), checkpointOf(t, testEntries(0, 110)), saved).Problems {
		said = append(said, p.String())
	}
	if want := []string{
		"earlier checkpoint 1: its 110 entries are not the first ones of this log",
		"earlier checkpoint 2: its 300 entries are not the first ones of this log",
	}; !slices.Equal(said, want) {
		t.Errorf("a fork: reported %q", said)
	}
	// Rolled back to another log of the same beginning, with its checkpoint.
	short := loadDir(t, logOf(t, es[:150]))
	wantProblemAt(t, short.verify(t, saved), problemAt{layout.CheckpointFile, 150}, "an older fork")
	wantClean(t, fork.verify(t, checkpointOf(t, testEntries(0, 100))))
	if r := fork.verify(t, []byte("no note")); r.OK() {
		t.Error("a malformed earlier checkpoint is not reported")
	}
	// Another key.
	key := checkpoint.VerifierKey(testOrigin, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)).Public().(ed25519.PublicKey))
	r, err := Dir(dir, key, Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantProblem(t, r, layout.CheckpointFile, "another key")
	if _, err := Dir(dir, "no key", Options{}); err == nil {
		t.Error("a malformed key is taken")
	}
	if _, err := Dir(dir+"x", testKey, Options{}); err == nil {
		t.Error("a directory that is not there is taken")
	}
}

// TestOrderAndRepeats builds logs with valid frames and roots whose entries are
// not in order.
func TestOrderAndRepeats(t *testing.T) {
	for what, change := range map[string]func(es []auditlog.Entry){
		"request id":  func(es []auditlog.Entry) { es[70].RequestID = es[3].RequestID },
		"Raft index":  func(es []auditlog.Entry) { es[70].RaftIndex = es[69].RaftIndex - 1 },
		"time":        func(es []auditlog.Entry) { es[70].Time = es[69].Time - 1 },
		"time before": func(es []auditlog.Entry) { es[0].Time = es[1].Time + 1 },
	} {
		es := testEntries(0, 100)
		change(es)
		dir := logOf(t, es)
		wantProblem(t, mustVerify(t, dir, Options{}), layout.SegmentPath(0), "%s", what)
	}
}

// TestIDHashCollision: different ids with the same hash are not reported as
// repeated.
func TestIDHashCollision(t *testing.T) {
	es := testEntries(0, 10)
	copy(es[4].RequestID[:], append(append([]byte(nil), es[5].RequestID[8:]...), es[5].RequestID[:8]...))
	es[7].RequestID, es[8].RequestID = [16]byte{}, [16]byte{} // events without a request
	wantClean(t, mustVerify(t, logOf(t, es), Options{}))
}

func TestManyProblemsAreBounded(t *testing.T) {
	m := loadDir(t, newLog(t, 3000))
	b := bytes.Clone(m[layout.SegmentPath(0)])
	fs := frames(t, b)
	for i := range fs {
		fs[i][layout.FrameHead] ^= 1
	}
	r := m.with(layout.SegmentPath(0), joinFrames(0, fs)).verify(t)
	if len(r.Problems) != maxProblems || r.Omitted != 2000 {
		t.Fatalf("%d problems, %d omitted", len(r.Problems), r.Omitted)
	}
}

// TestVerifierDoesNotWait: a pipe in place of a file or directory of the log does
// not block the verifier.
func TestVerifierDoesNotWait(t *testing.T) {
	dir, key := newLog(t, 300), testKey
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != dir {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		aside := name + ".aside"
		if err := os.Rename(name, aside); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(name, 0o600); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			r, err := Dir(dir, key, Options{})
			if err == nil && r.OK() && !strings.HasSuffix(name, layout.LockFile) {
				t.Errorf("a pipe in the place of %s was not noticed", name)
			}
		}()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Fatalf("the verifier waits for a pipe in the place of %s", name)
		}
		if err := errors.Join(os.Remove(name), os.Rename(aside, name)); err != nil {
			t.Fatal(err)
		}
	}
}
