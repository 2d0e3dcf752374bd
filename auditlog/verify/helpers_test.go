package verify

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
)

const testOrigin = "conclave/00112233445566778899aabbccddeeff/0"

var (
	testPriv = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	testKey  = checkpoint.VerifierKey(testOrigin, testPriv.Public().(ed25519.PublicKey))
)

// testEntry is the entry that every test expects at an index.
func testEntry(i uint64) auditlog.Entry {
	h := sha256.Sum256(binary.BigEndian.AppendUint64(nil, i))
	e := auditlog.Entry{Index: i, RaftIndex: 100 + i/3, Time: 1_700_000_000_000_000_000 + int64(i/2)*1000, Generation: 1 + uint32(i/1000)}
	copy(e.RequestID[:], h[:])
	copy(e.Salt[:], h[8:])
	e.Commitment = sha256.Sum256(h[:])
	e.Body = slices.Clone(h[:1+i%uint64(len(h))])
	return e
}

func testEntries(from, to uint64) []auditlog.Entry {
	out := make([]auditlog.Entry, 0, to-from)
	for i := from; i < to; i++ {
		out = append(out, testEntry(i))
	}
	return out
}

// frameOf encodes an entry as docs/audit-format.md specifies it.
func frameOf(e auditlog.Entry) []byte {
	var b []byte
	b = binary.BigEndian.AppendUint64(b, e.Index)
	b = binary.BigEndian.AppendUint64(b, e.RaftIndex)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Time))
	b = append(b, e.RequestID[:]...)
	b = binary.BigEndian.AppendUint32(b, e.Generation)
	b = append(b, e.Salt[:]...)
	b = append(b, e.Commitment[:]...)
	b = append(b, e.Body...)
	leaf := e.LeafHash()
	b = append(b, leaf[:]...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// hashed returns entries with their leaf hashes, as Append takes them.
func hashed(es []auditlog.Entry) ([]auditlog.Entry, []auditlog.Hash) {
	leaves := make([]auditlog.Hash, len(es))
	for i := range es {
		leaves[i] = es[i].LeafHash()
	}
	return es, leaves
}

// treeOf returns the tree over entries.
func treeOf(es []auditlog.Entry) auditlog.Frontier {
	var f auditlog.Frontier
	for i := range es {
		f.Append(es[i].LeafHash())
	}
	return f
}

// mustOpen opens an empty log.
func mustOpen(t testing.TB, dir string) *auditlog.Log {
	t.Helper()
	l, err := auditlog.Open(dir, auditlog.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err == nil {
		err = l.Restore(auditlog.Frontier{}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustAppend(t testing.TB, l *auditlog.Log, es []auditlog.Entry) {
	t.Helper()
	if err := l.Append(hashed(es)); err != nil {
		t.Fatal(err)
	}
}

// mustSign makes a log durable and signs the tree over es, which are its first entries.
func mustSign(t testing.TB, l *auditlog.Log, es []auditlog.Entry) {
	t.Helper()
	if err := l.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := l.WriteCheckpoint(checkpointOf(t, es)); err != nil {
		t.Fatal(err)
	}
}

func checkpointOf(t testing.TB, es []auditlog.Entry) []byte {
	t.Helper()
	tree := treeOf(es)
	msg, err := checkpoint.Sign(testOrigin, testPriv, nil, tree.Size(), tree.Root())
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func mustClose(t testing.TB, l *auditlog.Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// logOf makes a log of entries, syncs it, writes a checkpoint, and closes it.
func logOf(t testing.TB, es []auditlog.Entry) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, dir)
	mustAppend(t, l, es)
	mustSign(t, l, es)
	mustClose(t, l)
	return dir
}

func newLog(t testing.TB, n uint64) string {
	t.Helper()
	return logOf(t, testEntries(0, n))
}

// memDir is a log directory in memory, by the names of its files, for the many small
// changes of the tests.
type memDir map[string][]byte

func loadDir(t testing.TB, dir string) memDir {
	t.Helper()
	m := make(memDir)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name, _ := filepath.Rel(dir, path)
			m[name], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// with returns m with another content of one file, or without the file if b is
// nil.
func (m memDir) with(name string, b []byte) memDir {
	c := maps.Clone(m)
	if c[name] = b; b == nil {
		delete(c, name)
	}
	return c
}

func (m memDir) verify(t testing.TB, earlier ...[]byte) *Report {
	t.Helper()
	return mustVerify(t, "/log", Options{Earlier: earlier, FS: memFS{files: m}})
}

// memFS is the directory /log of a memDir. All operations except reading panic, as
// the embedded interface is nil.
type memFS struct {
	auditlog.FS
	files memDir
}

func (m memFS) OpenFile(name string, flag int, _ fs.FileMode) (auditlog.File, error) {
	if flag != os.O_RDONLY {
		return nil, fs.ErrPermission
	}
	b, ok := m.files[strings.TrimPrefix(name, "/log/")]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return memFile{Reader: bytes.NewReader(b)}, nil
}

func (m memFS) ReadDir(name string) ([]string, error) {
	seen := map[string]bool{}
	if name == "/log" {
		// An empty directory has no files from which it could be known.
		for _, d := range []string{"segments/", "pending/", "tile/", "tmp/"} {
			seen[d] = true
		}
	}
	for file := range m.files {
		if rest, ok := strings.CutPrefix(filepath.Join("/log", file), name+"/"); ok {
			base, _, isDir := strings.Cut(rest, "/")
			if isDir {
				base += "/"
			}
			seen[base] = true
		}
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

// memFile is a file of a memFS, for reading only.
type memFile struct {
	auditlog.File
	*bytes.Reader
}

func (f memFile) ReadAt(b []byte, off int64) (int, error) { return f.Reader.ReadAt(b, off) }
func (f memFile) Size() (int64, error)                    { return f.Reader.Size(), nil }
func (f memFile) Close() error                            { return nil }

func mustVerify(t testing.TB, dir string, opts Options) *Report {
	t.Helper()
	r, err := Dir(dir, testKey, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wantClean(t testing.TB, r *Report) {
	t.Helper()
	if !r.OK() || r.Torn != 0 {
		t.Fatalf("want a clean log, got torn=%d gaps=%v problems=%v", r.Torn, r.Gaps, r.Problems)
	}
}

func readTest(t testing.TB, parts ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
