package auditlog

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/conclavekms/conclave/auditlog/checkpoint"
)

const testOrigin = "conclave/00112233445566778899aabbccddeeff/0"

var (
	testPriv = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	testKey  = checkpoint.VerifierKey(testOrigin, testPriv.Public().(ed25519.PublicKey))
	quiet    = slog.New(slog.NewTextHandler(io.Discard, nil))
)

// testEntry is the entry that every test expects at an index.
func testEntry(i uint64) Entry {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], i)
	h := sha256.Sum256(n[:])
	e := Entry{Index: i, RaftIndex: 100 + i/3, Time: 1_700_000_000_000_000_000 + int64(i/2)*1000, Generation: 1 + uint32(i/1000)}
	copy(e.RequestID[:], h[:])
	copy(e.Salt[:], h[8:])
	e.Commitment = sha256.Sum256(h[:])
	e.Body = append([]byte(nil), h[:1+i%uint64(len(h))]...)
	return e
}

func testEntries(from, to uint64) []Entry {
	out := make([]Entry, 0, to-from)
	for i := from; i < to; i++ {
		out = append(out, testEntry(i))
	}
	return out
}

var leafCache struct {
	sync.Mutex
	leaves []Hash
}

func testLeaves(n uint64) []Hash {
	leafCache.Lock()
	defer leafCache.Unlock()
	for i := uint64(len(leafCache.leaves)); i < n; i++ {
		e := testEntry(i)
		leafCache.leaves = append(leafCache.leaves, e.LeafHash())
	}
	return leafCache.leaves[:n:n]
}

// testState returns what Restore is given for a state that covers n of the
// expected entries.
func testState(n uint64) (Frontier, []Hash) {
	var f Frontier
	var roots []Hash
	for _, h := range testLeaves(n) {
		f.Append(h)
		if f.Size()%SegmentSize == 0 {
			roots = append(roots, f.SegmentRoot())
		}
	}
	return f, roots
}

func mustOpen(t testing.TB, dir string, fsys FS) *Log {
	t.Helper()
	l, err := Open(dir, Options{Logger: quiet, FS: fsys})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustRestore(t testing.TB, l *Log, n uint64) {
	t.Helper()
	f, roots := testState(n)
	if err := l.Restore(f, roots); err != nil {
		t.Fatal(err)
	}
}

func mustAppend(t testing.TB, l *Log, from, to uint64) {
	t.Helper()
	for from < to {
		n := min(from+1000, to)
		if err := l.Append(hashed(testEntries(from, n))); err != nil {
			t.Fatal(err)
		}
		from = n
	}
}

func mustSync(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// mustCheckpoint signs the tree of the first n expected entries and stores it.
func mustCheckpoint(t testing.TB, l *Log, n uint64) []byte {
	t.Helper()
	msg := testCheckpoint(t, n)
	if err := l.WriteCheckpoint(msg); err != nil {
		t.Fatal(err)
	}
	return msg
}

func testCheckpoint(t testing.TB, n uint64) []byte {
	t.Helper()
	f, _ := testState(n)
	msg, err := checkpoint.Sign(testOrigin, testPriv, nil, f.Size(), f.Root())
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// newLog makes a log with n entries, syncs it, writes a checkpoint, and closes
// it.
func newLog(t testing.TB, n uint64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, dir, nil)
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, n)
	mustSync(t, l)
	mustCheckpoint(t, l, n)
	mustClose(t, l)
	return dir
}

// checkContent compares what can be read in [from, to) with what is expected.
func checkContent(t testing.TB, l *Log, from, to uint64) {
	t.Helper()
	leaves := testLeaves(to)
	for i := from; i < to; {
		got, err := l.Read(i, 500, 1<<20)
		if err != nil || len(got) == 0 {
			t.Fatalf("reading at %d of [%d, %d): %d entries, %v", i, from, to, len(got), err)
		}
		for k := range got {
			if got[k].Index != i || got[k].LeafHash() != leaves[i] {
				t.Fatalf("entry %d is not the expected one", i)
			}
			if i++; i == to {
				return
			}
		}
	}
}

// Report is the result of VerifyDir.
type Report struct {
	Size, Unsigned uint64
	Root           Hash
	CheckpointSize uint64
	Torn           int64
	Gaps           [][2]uint64
	Problems       []string // each begins with the file's path and a colon
}

// VerifyDir is verify.Dir. Package verify imports this one, so that the tests in it
// cannot import verify; those in auditlog_test can, and set this.
var VerifyDir func(dir, verifierKey string, fsys FS) (*Report, error)

func mustVerify(t testing.TB, dir string, fsys FS) *Report {
	t.Helper()
	r, err := VerifyDir(dir, testKey, fsys)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wantClean(t testing.TB, r *Report) {
	t.Helper()
	if len(r.Problems) != 0 || r.Torn != 0 {
		t.Fatalf("want a clean log, got torn=%d gaps=%v problems=%v", r.Torn, r.Gaps, r.Problems)
	}
}

// wantProblem checks that the report names the file.
func wantProblem(t testing.TB, r *Report, file, format string, args ...any) {
	t.Helper()
	for _, p := range r.Problems {
		if strings.HasPrefix(p, file+": ") {
			return
		}
	}
	t.Fatalf("%s: nothing reported about %s: torn=%d %v", fmt.Sprintf(format, args...), file, r.Torn, r.Problems)
}

func readTest(t testing.TB, parts ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeTest(t testing.TB, b []byte, parts ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(parts...), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// copyDir copies a log directory, as a user's backup would.
func copyDir(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// hashed returns entries with their leaf hashes, as Append takes them.
func hashed(es []Entry) ([]Entry, []Hash) {
	leaves := make([]Hash, len(es))
	for i := range es {
		leaves[i] = es[i].LeafHash()
	}
	return es, leaves
}
