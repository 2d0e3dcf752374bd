package auditlog

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// memDir is a log directory in memory, read-only, for the many small changes of
// the tests below.
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

func (m memDir) fs() *memFS {
	fsys := newMemFS()
	for _, d := range []string{segmentDir, pendingDir, tileDir, tmpDir} {
		fsys.MkdirAll(filepath.Join("/log", d), dirPerm)
	}
	for name, b := range m {
		fsys.put(filepath.Join("/log", name), b)
	}
	return fsys
}

func (m memDir) with(name string, b []byte) memDir {
	c := make(memDir, len(m))
	for k, v := range m {
		c[k] = v
	}
	if c[name] = b; b == nil {
		delete(c, name)
	}
	return c
}

func (m memDir) verify(t testing.TB, earlier ...[]byte) *Report {
	t.Helper()
	return mustVerify(t, "/log", m.fs(), VerifyOptions{Earlier: earlier})
}

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

// TestEveryFlippedBit flips every bit of each file of a small log, and of a
// larger one the bits of a tile and a sample of the rest.
func TestEveryFlippedBit(t *testing.T) {
	small := loadDir(t, newLog(t, 20))
	wantClean(t, small.verify(t))
	for name, b := range small {
		fsys := small.fs()
		c := bytes.Clone(b)
		for i := range c {
			for bit := range 8 {
				c[i] ^= 1 << bit
				fsys.put(filepath.Join("/log", name), c)
				wantProblem(t, mustVerify(t, "/log", fsys, VerifyOptions{}), name, "%s: byte %d bit %d flipped", name, i, bit)
				c[i] ^= 1 << bit
			}
		}
	}
	large := loadDir(t, newLog(t, 300))
	wantClean(t, large.verify(t))
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	flip := func(fsys *memFS, name string, c []byte, i int) {
		t.Helper()
		bit := byte(1) << r.IntN(8)
		c[i] ^= bit
		fsys.put(filepath.Join("/log", name), c)
		wantProblem(t, mustVerify(t, "/log", fsys, VerifyOptions{}), name, "%s: byte %d, bits %x flipped", name, i, bit)
		c[i] ^= bit
	}
	for _, name := range []string{tilePath(0, 0), segmentPath(0)} {
		fsys, c := large.fs(), bytes.Clone(large[name])
		n := len(c)
		if testing.Short() {
			n = 500
		}
		for k := range n {
			i := k
			if name == segmentPath(0) || testing.Short() {
				if i = r.IntN(len(c)); k > 2000 {
					break
				}
			}
			flip(fsys, name, c, i)
		}
	}
}

// TestFlippedBitAfterCheckpoint: what nobody vouches for yet is checked as well,
// and a damaged length is not taken for a torn end.
func TestFlippedBitAfterCheckpoint(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := mustOpen(t, dir, nil)
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, 8)
	mustSync(t, l)
	mustCheckpoint(t, l, 8)
	at := len(readTest(t, dir, segmentPath(0)))
	mustAppend(t, l, 8, 12)
	m := loadDir(t, dir)
	mustClose(t, l)
	r := m.verify(t)
	wantClean(t, r)
	if r.Size != 12 || r.Unsigned != 4 {
		t.Fatalf("report %+v", r)
	}
	c := bytes.Clone(m[segmentPath(0)])
	for i := at; i < len(c); i++ {
		for bit := range 8 {
			c[i] ^= 1 << bit
			wantProblem(t, m.with(segmentPath(0), c).verify(t), segmentPath(0), "byte %d bit %d flipped", i, bit)
			c[i] ^= 1 << bit
		}
	}
	// A live writer's unfinished frame is not damage, wherever it ends.
	last := len(c) - frameOverhead - len(testEntry(11).Body)
	for n := last + 1; n < len(c); n++ {
		r := m.with(segmentPath(0), c[:n]).verify(t)
		if !r.OK() || r.Torn != int64(n-last) || r.Size != 11 {
			t.Fatalf("cut at %d: torn=%d size=%d %v", n, r.Torn, r.Size, r.Problems)
		}
	}
}

// frames splits a segment into its frames.
func frames(t testing.TB, b []byte) [][]byte {
	t.Helper()
	var out [][]byte
	err := scanFrames(bytes.NewReader(b), segmentHeaderSize, int64(len(b)), func(_ int64, f []byte) error {
		out = append(out, bytes.Clone(f))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func joinFrames(n uint64, fs [][]byte) []byte {
	return append(segmentHeader(n), bytes.Join(fs, nil)...)
}

// TestTampering rearranges whole, valid frames.
func TestTampering(t *testing.T) {
	m := loadDir(t, newLog(t, 300))
	seg := segmentPath(0)
	all := frames(t, m[seg])
	edit := func(fn func(fs [][]byte) [][]byte) []byte {
		return joinFrames(0, fn(append([][]byte(nil), all...)))
	}
	for i := range all {
		for what, b := range map[string][]byte{
			"truncated at": edit(func(fs [][]byte) [][]byte { return fs[:i] }),
			"deleted":      edit(func(fs [][]byte) [][]byte { return append(fs[:i], fs[i+1:]...) }),
			"duplicated":   edit(func(fs [][]byte) [][]byte { return append(fs[:i+1], append([][]byte{fs[i]}, fs[i+1:]...)...) }),
			"swapped with its neighbour": edit(func(fs [][]byte) [][]byte {
				k := (i + 1) % len(fs)
				fs[i], fs[k] = fs[k], fs[i]
				return fs
			}),
			"replaced by a valid frame": edit(func(fs [][]byte) [][]byte {
				e := testEntry(uint64(i))
				e.Commitment[0] ^= 1
				leaf := e.LeafHash()
				fs[i] = appendFrame(nil, &e, &leaf)
				return fs
			}),
		} {
			if m.with(seg, b).verify(t).OK() {
				t.Fatalf("entry %d %s: nothing reported", i, what)
			}
			if i%20 == 0 { // the mark is no signature: without it all the same
				if m.with(seg, b).with(durableFile, nil).verify(t).OK() {
					t.Fatalf("entry %d %s, no mark: nothing reported", i, what)
				}
			}
		}
	}
}

func TestFiles(t *testing.T) {
	m := loadDir(t, newLog(t, 700))
	other := loadDir(t, newLog(t, 256))
	for name := range m {
		if name == lockFile {
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
	for _, name := range []string{tilePath(0, 2), tilePath(0, 1234), tilePath(1, 0), tilePath(6, 1234567)} {
		wantProblem(t, m.with(name, m[tilePath(0, 0)]).verify(t), name, "extra tile")
	}
	wantProblem(t, m.with(tilePath(0, 1), m[tilePath(0, 0)]).verify(t), tilePath(0, 1), "tiles swapped")
	if m.with(segmentPath(1), segmentHeader(1)).verify(t).OK() {
		t.Error("a segment after one that is not full: nothing reported")
	}
	if m.with(segmentPath(5), segmentHeader(5)).verify(t).OK() {
		t.Error("a segment after missing ones: nothing reported")
	}
	if other.with(segmentPath(0), m[segmentPath(0)]).verify(t).Unsigned != 700-256 {
		t.Error("entries after the checkpoint are not counted")
	}
	if m.with(durableFile, other[durableFile]).verify(t).OK() == false {
		t.Error("an older mark is not damage")
	}
	wantProblem(t, m.with(checkpointFile, nil).verify(t), checkpointFile, "no checkpoint")
}

func TestRollbackAndFork(t *testing.T) {
	m := loadDir(t, newLog(t, 300))
	older := loadDir(t, newLog(t, 200))
	saved := m[checkpointFile]
	wantClean(t, m.verify(t, saved, older[checkpointFile]))
	// Rolled back as a whole: only a saved checkpoint tells.
	wantClean(t, older.verify(t))
	if older.verify(t, saved).OK() {
		t.Error("a log rolled back: nothing reported")
	}
	wantProblem(t, m.with(checkpointFile, older[checkpointFile]).verify(t, saved), checkpointFile, "checkpoint rolled back")
	// A fork, signed by the same key, from entry 100 on.
	dir := filepath.Join(t.TempDir(), "fork")
	l := mustOpen(t, dir, nil)
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, 100)
	var f Frontier
	for _, h := range testLeaves(100) {
		f.Append(h)
	}
	for i := uint64(100); i < 400; i++ {
		e := testEntry(i)
		e.Commitment[3] ^= 1
		f.Append(e.LeafHash())
		if err := l.Append(hashed([]Entry{e})); err != nil {
			t.Fatal(err)
		}
	}
	mustSync(t, l)
	msg, err := SignCheckpoint(testOrigin, testPriv, f)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.WriteCheckpoint(msg); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	fork := loadDir(t, dir)
	wantClean(t, fork.verify(t))
	wantProblem(t, fork.verify(t, saved), "", "a fork")
	wantClean(t, fork.verify(t, testCheckpoint(t, 100)))
	if r := fork.verify(t, []byte("no note")); r.OK() {
		t.Error("a malformed earlier checkpoint is not reported")
	}
	// Another key.
	key := VerifierKey(testOrigin, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)).Public().(ed25519.PublicKey))
	r, err := Verify(dir, key, VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	wantProblem(t, r, checkpointFile, "another key")
	if _, err := Verify(dir, "no key", VerifyOptions{}); err == nil {
		t.Error("a malformed key is taken")
	}
	if _, err := Verify(dir+"x", testKey, VerifyOptions{}); err == nil {
		t.Error("a directory that is not there is taken")
	}
}

// TestOrderAndRepeats builds logs whose frames and roots are right but whose
// entries are not in order.
func TestOrderAndRepeats(t *testing.T) {
	for what, change := range map[string]func(es []Entry){
		"request id":  func(es []Entry) { es[70].RequestID = es[3].RequestID },
		"Raft index":  func(es []Entry) { es[70].RaftIndex = es[69].RaftIndex - 1 },
		"time":        func(es []Entry) { es[70].Time = es[69].Time - 1 },
		"time before": func(es []Entry) { es[0].Time = es[1].Time + 1 },
	} {
		dir := filepath.Join(t.TempDir(), "audit")
		l := mustOpen(t, dir, nil)
		mustRestore(t, l, 0)
		es := testEntries(0, 100)
		change(es)
		var f Frontier
		for i := range es {
			f.Append(es[i].LeafHash())
		}
		if err := l.Append(hashed(es)); err != nil {
			t.Fatal(err)
		}
		mustSync(t, l)
		msg, _ := SignCheckpoint(testOrigin, testPriv, f)
		if err := l.WriteCheckpoint(msg); err != nil {
			t.Fatal(err)
		}
		mustClose(t, l)
		wantProblem(t, mustVerify(t, dir, nil, VerifyOptions{}), segmentPath(0), "%s", what)
	}
}

// TestIDHashCollision: ids that only share a hash are no repeats.
func TestIDHashCollision(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir, nil)
	mustRestore(t, l, 0)
	es := testEntries(0, 10)
	copy(es[4].RequestID[:], append(append([]byte(nil), es[5].RequestID[8:]...), es[5].RequestID[:8]...))
	es[7].RequestID, es[8].RequestID = [16]byte{}, [16]byte{} // events without a request
	if err := l.Append(hashed(es)); err != nil {
		t.Fatal(err)
	}
	f := l.view().tree
	mustSync(t, l)
	msg, _ := SignCheckpoint(testOrigin, testPriv, f)
	if err := l.WriteCheckpoint(msg); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	wantClean(t, mustVerify(t, dir, nil, VerifyOptions{}))
}

func TestManyProblemsAreBounded(t *testing.T) {
	m := loadDir(t, newLog(t, 3000))
	b := bytes.Clone(m[segmentPath(0)])
	fs := frames(t, b)
	for i := range fs {
		fs[i][frameHead] ^= 1
	}
	r := m.with(segmentPath(0), joinFrames(0, fs)).verify(t)
	if len(r.Problems) != maxProblems || r.Omitted != 2000 {
		t.Fatalf("%d problems, %d omitted", len(r.Problems), r.Omitted)
	}
}

func TestCheckpointFormat(t *testing.T) {
	f, _ := testState(5)
	msg := testCheckpoint(t, 5)
	c, err := ParseCheckpoint(msg, testKey)
	if err != nil || c != (Checkpoint{testOrigin, 5, f.Root()}) {
		t.Fatalf("%+v, %v", c, err)
	}
	root := f.Root()
	if want := testOrigin + "\n5\n" + base64.StdEncoding.EncodeToString(root[:]) + "\n\n— " + testOrigin + " "; !strings.HasPrefix(string(msg), want) {
		t.Fatalf("checkpoint %q, want prefix %q", msg, want)
	}
	for i := range msg {
		for bit := range 8 {
			b := bytes.Clone(msg)
			b[i] ^= 1 << bit
			if _, err := ParseCheckpoint(b, testKey); err == nil {
				t.Fatalf("byte %d bit %d flipped: still taken", i, bit)
			}
		}
		if _, err := ParseCheckpoint(msg[:i], testKey); err == nil {
			t.Fatalf("cut at %d: still taken", i)
		}
	}
	cosigned := append(bytes.Clone(msg), "— witness.example/w 3q2+7wAAAAAAAAAA\n"...)
	if got, err := ParseCheckpoint(cosigned, testKey); err != nil || got != c {
		t.Fatalf("with a witness's signature: %v", err)
	}
	for _, origin := range []string{"", "a b", "a+b", "a\nb"} {
		if _, err := SignCheckpoint(origin, testPriv, f); err == nil {
			t.Errorf("origin %q is taken", origin)
		}
		if VerifierKey(origin, testPriv.Public().(ed25519.PublicKey)) != "" {
			t.Errorf("a key for origin %q", origin)
		}
	}
	if _, err := SignCheckpoint(testOrigin, nil, f); err == nil {
		t.Error("no key is taken")
	}
}

func TestWriteCheckpoint(t *testing.T) {
	l := mustOpen(t, t.TempDir(), nil)
	defer l.Close()
	mustRestore(t, l, 0)
	mustAppend(t, l, 0, 50)
	if l.Checkpoint() != nil {
		t.Fatal("a checkpoint from nowhere")
	}
	refused := func(msg []byte, what string) {
		t.Helper()
		before := l.Checkpoint()
		if err := l.WriteCheckpoint(msg); err == nil {
			t.Fatalf("%s: taken", what)
		}
		if !bytes.Equal(l.Checkpoint(), before) {
			t.Fatalf("%s: changed the checkpoint", what)
		}
	}
	refused(testCheckpoint(t, 50), "not yet durable")
	mustSync(t, l)
	mustCheckpoint(t, l, 40)
	mustCheckpoint(t, l, 40)
	refused(testCheckpoint(t, 39), "older")
	refused(testCheckpoint(t, 51), "beyond the end")
	refused([]byte("x"), "malformed")
	f, _ := testState(45)
	f.nodes[0][0] ^= 1
	fork, _ := SignCheckpoint(testOrigin, testPriv, f)
	refused(fork, "another tree")
	f, _ = testState(45)
	foreign, _ := SignCheckpoint("conclave/other", testPriv, f)
	refused(foreign, "another origin")
	msg := mustCheckpoint(t, l, 50)
	if !bytes.Equal(l.Checkpoint(), msg) {
		t.Fatal("not the checkpoint that was written")
	}
	if l.Err() != nil {
		t.Fatal(l.Err())
	}
}
