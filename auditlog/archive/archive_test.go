package archive

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/verify"
)

const origin = "conclave/00112233445566778899aabbccddeeff/0"

// memoryStore is a Store that counts what is made.
type memoryStore struct {
	mu      sync.Mutex
	objects map[string][]byte
	created int
	opened  int
	broken  error // of every read
	// reading is called with each object that is read, and may wait.
	reading func(ctx context.Context)
}

func (s *memoryStore) Create(_ context.Context, name string, write func(io.Writer) error) (int64, error) {
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.objects[name]; ok {
		return 0, fs.ErrExist
	}
	s.created++
	s.objects[name] = b.Bytes()
	return int64(b.Len()), nil
}

func (s *memoryStore) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	if s.reading != nil {
		s.reading(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	b, ok := s.objects[name]
	switch {
	case s.broken != nil:
		return nil, s.broken
	case !ok:
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (s *memoryStore) List(_ context.Context, prefix string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Sorted(maps.Keys(s.objects)), func(n string) bool { return !strings.HasPrefix(n, prefix) }), nil
}

func (s *memoryStore) Sweep(context.Context, string, time.Time) error { return nil }

func (s *memoryStore) String() string { return "memory" }

// testLog is a log with full segments and some more entries, and what the cluster knows of it.
type testLog struct {
	*auditlog.Log
	dir   string
	roots []auditlog.Hash
	key   ed25519.PrivateKey
}

func newTestLog(t *testing.T, segments uint64) *testLog {
	t.Helper()
	l := &testLog{dir: t.TempDir(), key: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}
	var err error
	if l.Log, err = auditlog.Open(l.dir, auditlog.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var f auditlog.Frontier
	if err := l.Restore(f, nil); err != nil {
		t.Fatal(err)
	}
	const batch = 4096
	for from := uint64(0); from < segments*auditlog.SegmentSize+batch; from += batch {
		entries, leaves := make([]auditlog.Entry, batch), make([]auditlog.Hash, batch)
		for i := range entries {
			e := auditlog.Entry{Index: from + uint64(i), RaftIndex: from, Time: int64(from), Generation: 1, Body: make([]byte, 40)}
			binary.BigEndian.PutUint64(e.RequestID[8:], e.Index+1)
			entries[i], leaves[i] = e, e.LeafHash()
			f.Append(leaves[i])
			if f.Size()%auditlog.SegmentSize == 0 {
				l.roots = append(l.roots, f.SegmentRoot())
			}
		}
		if err := l.Append(entries, leaves); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(l.Restore(f, l.roots), l.Sync()); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *testLog) keys() string {
	return checkpoint.VerifierKey(origin, l.key.Public().(ed25519.PublicKey))
}

func (l *testLog) sign(t *testing.T, f auditlog.Frontier) []byte {
	t.Helper()
	note, err := checkpoint.Sign(origin, l.key, nil, f.Size(), f.Root())
	if err != nil {
		t.Fatal(err)
	}
	return note
}

func (l *testLog) put(t *testing.T, a *Archive, n int) (added bool, err error) {
	t.Helper()
	return a.Put(t.Context(), l, l.roots[:n+1], l.sign(t, auditlog.FoldSegments(l.roots[:n+1])))
}

func (l *testLog) archive(t *testing.T) (*Archive, *memoryStore) {
	t.Helper()
	s := &memoryStore{objects: make(map[string][]byte)}
	a, err := New(s, l.keys())
	if err != nil {
		t.Fatal(err)
	}
	for n := range l.roots {
		if added, err := l.put(t, a, n); err != nil || !added {
			t.Fatalf("segment %d: %v, added: %v", n, err, added)
		}
	}
	return a, s
}

// verified returns what an auditor finds in an archive.
func verified(t *testing.T, a *Archive, keys string) *verify.Report {
	t.Helper()
	files, err := a.Files(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	notes, err := files.Checkpoints()
	if err != nil {
		t.Fatal(err)
	}
	rep, err := verify.Dir("", keys, verify.Options{FS: files, Earlier: notes, Archive: true})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// TestArchive copies segments twice, once interrupted, and verifies what is there.
func TestArchive(t *testing.T) {
	const segments = 2
	l := newTestLog(t, segments)
	a, s := l.archive(t)
	if s.created != 3*segments {
		t.Errorf("%d objects were made", s.created)
	}
	for n := range segments {
		have := s.objects[fmt.Sprintf("conclave-00112233445566778899aabbccddeeff-0-%08d.seg", n)]
		want, err := os.ReadFile(filepath.Join(l.dir, "segments", fmt.Sprintf("%08d.seg", n)))
		if err != nil || !bytes.Equal(have, want) {
			t.Errorf("segment %d has %d bytes in the archive, %d in the log (%v), or others", n, len(have), len(want), err)
		}
	}
	for n := range segments {
		if added, err := l.put(t, a, n); err != nil || added {
			t.Errorf("again: %v, added: %v", err, added)
		}
	}
	// A node that stops in between has made only the first object.
	delete(s.objects, a.name(1, tilesEnd))
	delete(s.objects, a.name(1, checkpointEnd))
	if added, err := l.put(t, a, 1); err != nil || !added {
		t.Errorf("after a part: %v, added: %v", err, added)
	}
	rep := verified(t, a, l.keys())
	if !rep.OK() || rep.Size != segments*auditlog.SegmentSize || rep.CheckpointSize != rep.Size || rep.Root != auditlog.FoldSegments(l.roots).Root() {
		t.Errorf("report: %+v", rep)
	}
	leaves, err := a.leaves(t.Context(), 1)
	if err != nil || auditlog.SegmentRoot(leaves) != l.roots[1] {
		t.Errorf("%d leaves, which do not lead to the root: %v", len(leaves), err)
	}
	// A store that cannot be read has not been altered.
	s.broken = errors.New("broken")
	if _, err := l.put(t, a, 0); !errors.Is(err, s.broken) || errors.Is(err, ErrAltered) {
		t.Errorf("a store that is broken: %v", err)
	}
}

// TestGrowingArchive: a segment that is archived while an auditor reads is not one that was there
// and is gone.
func TestGrowingArchive(t *testing.T) {
	l := newTestLog(t, 2)
	s := &memoryStore{objects: make(map[string][]byte)}
	a, err := New(s, l.keys())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.put(t, a, 0); err != nil {
		t.Fatal(err)
	}
	files, err := a.Files(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.put(t, a, 1); err != nil {
		t.Fatal(err)
	}
	notes, err := files.Checkpoints()
	if err != nil {
		t.Fatal(err)
	}
	rep, err := verify.Dir("", l.keys(), verify.Options{FS: files, Earlier: notes, Archive: true})
	if err != nil || !rep.OK() || rep.Size != auditlog.SegmentSize {
		t.Errorf("report: %+v, %v", rep, err)
	}
}

// TestAltered alters each object in several ways. Neither is it taken for the log's, nor is it
// replaced, and an auditor who has only the archive is told the file.
func TestAltered(t *testing.T) {
	l := newTestLog(t, 1)
	a, s := l.archive(t)
	other := l.sign(t, auditlog.FoldSegments([]auditlog.Hash{{1}})) // by the same key, of other records
	forged, err := checkpoint.Sign(origin, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)), nil, auditlog.SegmentSize, auditlog.FoldSegments(l.roots).Root())
	if err != nil {
		t.Fatal(err)
	}
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte {
			if at < 0 {
				at += len(b)
			}
			b[at] ^= 4
			return b
		}
	}
	for name, c := range map[string]struct {
		end   string
		alter func([]byte) []byte
		file  string // that verify names
	}{
		"header":                 {segmentEnd, flip(9), "segments/00000000.seg"},
		"length of a frame":      {segmentEnd, flip(20), "segments/00000000.seg"},
		"record":                 {segmentEnd, flip(5_000_000), "segments/00000000.seg"},
		"last byte":              {segmentEnd, flip(-1), "segments/00000000.seg"},
		"cut short":              {segmentEnd, func(b []byte) []byte { return b[:len(b)-100] }, "segments/00000000.seg"},
		"empty":                  {segmentEnd, func(b []byte) []byte { return nil }, "segments/00000000.seg"},
		"longer":                 {segmentEnd, func(b []byte) []byte { return append(b, 0) }, "segments/00000000.seg"},
		"hash of a record":       {tilesEnd, flip(40), "tile/0/000"},
		"hash of a tile":         {tilesEnd, flip(-1), "tile/1/000"},
		"tiles cut short":        {tilesEnd, func(b []byte) []byte { return b[:len(b)-1] }, "tile/1/000"},
		"signature":              {checkpointEnd, flip(-5), "checkpoint"},
		"checkpoint of others":   {checkpointEnd, func([]byte) []byte { return other }, "checkpoint"},
		"checkpoint of a forger": {checkpointEnd, func([]byte) []byte { return forged }, "checkpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			object := a.name(0, c.end)
			good := s.objects[object]
			defer func() { s.objects[object] = good }()
			bad := c.alter(bytes.Clone(good))
			s.objects[object] = bad
			if _, err := l.put(t, a, 0); !errors.Is(err, ErrAltered) || !strings.Contains(err.Error(), object) {
				t.Errorf("Put: %v", err)
			}
			if !bytes.Equal(s.objects[object], bad) {
				t.Error("the object was replaced")
			}
			rep := verified(t, a, l.keys())
			if !slices.ContainsFunc(rep.Problems, func(p verify.Problem) bool { return p.File == c.file }) {
				t.Errorf("problems: %v", rep.Problems)
			}
		})
	}
	good := s.objects[a.name(0, segmentEnd)]
	delete(s.objects, a.name(0, segmentEnd))
	if rep := verified(t, a, l.keys()); rep.OK() {
		t.Error("a segment is missing, and nothing is wrong")
	}
	s.objects[a.name(0, segmentEnd)] = good
	s.objects[a.prefix()+"x"] = nil
	if rep := verified(t, a, l.keys()); rep.OK() {
		t.Error("an object is too many, and nothing is wrong")
	}
}

// TestAddedByAnother: what another node has made in the meantime was not added by this one.
func TestAddedByAnother(t *testing.T) {
	s := &memoryStore{objects: make(map[string][]byte)}
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	a, err := New(s, checkpoint.VerifierKey(origin, key))
	if err != nil {
		t.Fatal(err)
	}
	check := func() error {
		_, err := a.read(t.Context(), "x", 10)
		return err
	}
	write := func(w io.Writer) error {
		_, err := w.Write([]byte("content"))
		return err
	}
	added, err := a.ensure(t.Context(), "x", check, func(w io.Writer) error {
		_, err := s.Create(t.Context(), "x", write)
		return errors.Join(err, write(w))
	})
	if err != nil || added || s.created != 1 {
		t.Errorf("%v, added: %v, %d objects", err, added, s.created)
	}
}

// TestDamagedLog: what is damaged on the node's disk is not archived.
func TestDamagedLog(t *testing.T) {
	l := newTestLog(t, 1)
	s := &memoryStore{objects: make(map[string][]byte)}
	a, err := New(s, l.keys())
	if err != nil {
		t.Fatal(err)
	}
	l.roots[0][0] ^= 1
	if _, err := l.put(t, a, 0); !errors.Is(err, auditlog.ErrCorrupt) || s.created != 0 {
		t.Errorf("Put: %v, %d objects", err, s.created)
	}
}

// TestVerifyWithoutSegments verifies the directory of a node that has moved a segment to the
// archive: with the archive, without it, and after something was altered.
func TestVerifyWithoutSegments(t *testing.T) {
	l := newTestLog(t, 1)
	a, s := l.archive(t)
	f := auditlog.FoldSegments(l.roots)
	entries, err := l.Read(auditlog.SegmentSize, 100, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		f.Append(e.LeafHash())
	}
	if err := errors.Join(l.WriteCheckpoint(l.sign(t, f)), l.RemoveSegments(1, a.String())); err != nil {
		t.Fatal(err)
	}
	check := func(with bool) *verify.Report {
		t.Helper()
		var opts verify.Options
		if with {
			files, err := a.Files(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			opts.Removed = files
		}
		rep, err := verify.Dir(l.dir, l.keys(), opts)
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	if rep := check(false); !rep.OK() || rep.Unread != auditlog.SegmentSize || rep.Place != "memory" || rep.Size != l.Size() {
		t.Errorf("without the archive: %+v", rep)
	}
	if rep := check(true); !rep.OK() || rep.Unread != 0 || rep.Size != l.Size() {
		t.Errorf("with the archive: %+v", rep)
	}
	names := func(rep *verify.Report, file string) bool {
		return slices.ContainsFunc(rep.Problems, func(p verify.Problem) bool { return p.File == file })
	}
	s.objects[a.name(0, segmentEnd)][1_000_000] ^= 1
	if rep := check(true); !names(rep, "segments/00000000.seg") {
		t.Errorf("a record was altered in the archive: %+v", rep.Problems)
	}
	delete(s.objects, a.name(0, segmentEnd))
	if rep := check(true); !names(rep, "segments/00000000.seg") {
		t.Errorf("a segment is gone from the archive: %+v", rep.Problems)
	}
	tile := filepath.Join(l.dir, "tile/0/007")
	good, err := os.ReadFile(tile)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{append([]byte{^good[0]}, good[1:]...), good[1:], nil} {
		if err := os.WriteFile(tile, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if rep := check(false); rep.OK() {
			t.Errorf("a tile of %d bytes of what was moved was altered, and nothing is wrong", len(bad))
		}
	}
	if err := os.WriteFile(tile, good, 0o600); err != nil {
		t.Fatal(err)
	}
	// Whoever claims that a segment was moved must have its hashes.
	if err := os.Remove(filepath.Join(l.dir, "removed")); err != nil {
		t.Fatal(err)
	}
	if rep := check(false); !names(rep, "segments/00000000.seg") {
		t.Errorf("the note of what was removed is gone: %+v", rep.Problems)
	}
}

// TestReader reads what was removed from the archive, and gives it to a node that joins with an
// empty disk, which has then the whole log.
func TestReader(t *testing.T) {
	l := newTestLog(t, 1)
	a, s := l.archive(t)
	r := NewReader(l.Log)
	if err := r.RemoveSegments(1, a.String()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(7, 1, 1); !errors.Is(err, auditlog.ErrArchived) {
		t.Errorf("without an archive: %v", err)
	}
	r.SetSource(func() (*Archive, []auditlog.Hash) { return a, l.roots })
	if es, err := r.Read(auditlog.SegmentSize-2, 100, 1<<20); err != nil || len(es) != 2 || es[1].Index != auditlog.SegmentSize-1 {
		t.Errorf("the end of a segment: %d entries, %v", len(es), err)
	}

	joins, err := auditlog.Open(t.TempDir(), auditlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer joins.Close()
	f := auditlog.FoldSegments(l.roots)
	rest, err := r.Read(auditlog.SegmentSize, 4096, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range rest {
		f.Append(e.LeafHash())
	}
	if err := joins.Restore(f, l.roots); err != nil {
		t.Fatal(err)
	}
	for {
		from, to, missing := joins.Missing()
		if !missing {
			break
		}
		es, err := r.Read(from, int(min(to-from, 4096)), 1<<20)
		if err == nil {
			err = joins.Fill(es)
		}
		if err != nil {
			t.Fatalf("at %d: %v", from, err)
		}
	}
	if es, err := joins.Read(7, 1, 1); err != nil || es[0].Index != 7 || joins.Size() != l.Size() {
		t.Errorf("the node that has joined has %d entries: %v", joins.Size(), err)
	}

	// What was altered since is refused.
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	local, err := auditlog.Open(l.dir, auditlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r = NewReader(local)
	defer r.Close()
	r.SetSource(func() (*Archive, []auditlog.Hash) { return a, l.roots })
	b := s.objects[a.name(0, segmentEnd)]
	for what, bad := range map[string][]byte{"cut short": b[:len(b)-1], "longer": append(bytes.Clone(b), 1), "flipped": append(bytes.Clone(b[:len(b)-1]), ^b[len(b)-1])} {
		s.objects[a.name(0, segmentEnd)] = bad
		if _, err := r.Read(7, 1, 1); !errors.Is(err, ErrAltered) || !errors.Is(err, auditlog.ErrArchived) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestReaderKeeps: reading that goes back and forth between a few segments fetches each once, and
// what is kept is bounded. Closing does not wait for an archive that does not answer.
func TestReaderKeeps(t *testing.T) {
	l := newTestLog(t, 2)
	a, s := l.archive(t)
	r := NewReader(l.Log)
	if err := r.RemoveSegments(2, a.String()); err != nil {
		t.Fatal(err)
	}
	asked := 0
	r.SetSource(func() (*Archive, []auditlog.Hash) { asked++; return a, l.roots })
	s.opened = 0
	backAndForth := func() {
		t.Helper()
		for i := range uint64(6) {
			at := i%2*auditlog.SegmentSize + i
			if es, err := r.Read(at, 1, 1); err != nil || es[0].Index != at {
				t.Fatalf("entry %d: %v", at, err)
			}
		}
	}
	backAndForth()
	if s.opened != 2 || asked != 2 {
		t.Errorf("%d segments were fetched, and the archive was asked for %d times", s.opened, asked)
	}
	for len(r.kept) > 1 {
		if err := r.kept[0].file.Close(); err != nil {
			t.Fatal(err)
		}
		r.kept = r.kept[1:]
	}
	r.keep, s.opened = 1, 0
	backAndForth()
	if s.opened != 6 || len(r.kept) != 1 {
		t.Errorf("%d segments were fetched where one is kept, and %d are", s.opened, len(r.kept))
	}

	waits, read := make(chan struct{}), make(chan error, 1)
	s.reading = func(ctx context.Context) {
		close(waits)
		<-ctx.Done()
	}
	go func() {
		_, err := r.Read(0, 1, 1)
		read <- err
	}()
	<-waits
	began := time.Now()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := <-read; !errors.Is(err, context.Canceled) || time.Since(began) > fetchTimeout/2 {
		t.Errorf("Read: %v, after %v", err, time.Since(began))
	}
}
