package raftlog

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// cutDisk is a disk whose power can be cut: what was written since the last Sync is
// then there or not, sector by sector.
type cutDisk struct {
	now, durable []byte
	random       *rand.Rand
	// writes left until the power goes; 0 for never.
	left *int
}

var errPower = errors.New("the power is gone")

func (d *cutDisk) WriteAt(b []byte, at int64) (int, error) {
	if *d.left < 0 {
		return 0, errPower
	}
	if n := int(at) + len(b) - len(d.now); n > 0 {
		d.now = append(d.now, make([]byte, n)...)
	}
	copy(d.now[at:], b)
	return len(b), nil
}

func (d *cutDisk) Sync() error {
	if *d.left > 0 {
		if *d.left--; *d.left == 0 {
			*d.left = -1
		}
	}
	if *d.left < 0 {
		return errPower
	}
	d.durable = append(d.durable[:0], d.now...)
	return nil
}

func (d *cutDisk) Close() error { return nil }

// after is what is on the disk when the power is back.
func (d *cutDisk) after() []byte {
	const sector = 512
	keep := d.random.IntN(4) // of four sectors; all or none are worth their own try
	b := bytes.Clone(d.now)
	for at := 0; at < len(b); at += sector {
		if d.random.IntN(3) < keep {
			continue
		}
		end := min(at+sector, len(b))
		clear(b[at:end])
		if at < len(d.durable) {
			copy(b[at:end], d.durable[at:])
		}
	}
	return b
}

// cutJournal is a journal on two such disks, and what bbolt has of it.
type cutJournal struct {
	t      *testing.T
	random *rand.Rand
	disks  [2]*cutDisk
	left   int
	j      *journal
	bolt   map[uint64]*raft.Log
}

func (c *cutJournal) open(onDisk [2][]byte) {
	c.t.Helper()
	c.left = 0
	var files [2]*journalFile
	for i := range files {
		c.disks[i] = &cutDisk{now: bytes.Clone(onDisk[i]), durable: bytes.Clone(onDisk[i]), random: c.random, left: &c.left}
		files[i] = &journalFile{disk: c.disks[i]}
		if err := files[i].read(onDisk[i]); err != nil {
			c.t.Fatal(err)
		}
	}
	c.j = newJournal(files, 256<<10)
	if err := c.j.replay(c.store); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cutJournal) store(logs []sealedLog) error {
	if c.left < 0 {
		return errPower
	}
	for _, l := range logs {
		c.bolt[l.Index] = l.Log
	}
	return nil
}

// emptyJournals are the bytes of new files.
func emptyJournals(t *testing.T) (b [2][]byte) {
	t.Helper()
	dir := t.TempDir()
	if err := makeJournal(dir); err != nil {
		t.Fatal(err)
	}
	for i, name := range journalNames {
		var err error
		if b[i], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func randomLogs(random *rand.Rand, next, term uint64) (logs []*raft.Log) {
	for range 1 + random.IntN(3) {
		data := make([]byte, random.IntN(9000))
		for i := range data {
			data[i] = byte(next) // so that nothing passes for zeros, or for its neighbour
		}
		logs = append(logs, &raft.Log{Index: next, Term: term, Type: raft.LogCommand, Data: data, AppendedAt: time.Unix(int64(next), 5)})
		next++
	}
	return logs
}

// TestJournalPowerCuts cuts the power at any write, time and again: what was
// acknowledged is there each time, as it was, and what was not is there in order or
// not at all.
func TestJournalPowerCuts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	c := &cutJournal{t: t, random: random, bolt: make(map[uint64]*raft.Log)}
	c.open(emptyJournals(t))
	acked := make(map[uint64]*raft.Log)
	next := uint64(1)
	const cuts = 80
	torn := 0
	for round := range cuts {
		c.left = 1 + random.IntN(30)
		var trying []*raft.Log
		for {
			trying = randomLogs(random, next, uint64(round))
			if c.j.files[c.j.now].end+int64(blocks(frameSize(sealLogs(trying)))) > framesAt+c.j.size || random.IntN(8) == 0 {
				if c.j.flush(c.store) != nil {
					trying = nil
					break
				}
				for _, l := range acked {
					if c.bolt[l.Index] == nil || len(c.j.pending) > 0 {
						t.Fatalf("entry %d is not in bbolt", l.Index)
					}
				}
			}
			if fits, err := c.j.append(sealLogs(trying)); err != nil {
				break
			} else if !fits {
				t.Fatal("an entry does not fit")
			}
			for _, l := range trying {
				acked[l.Index] = l
			}
			next += uint64(len(trying))
		}
		c.open([2][]byte{c.disks[0].after(), c.disks[1].after()})
		for i, l := range acked {
			got := c.bolt[i]
			if got == nil || got.Term != l.Term || !bytes.Equal(got.Data, l.Data) || !got.AppendedAt.Equal(l.AppendedAt) {
				t.Fatalf("round %d: entry %d of term %d was acknowledged and is lost or another (%t)", round, i, l.Term, got != nil)
			}
		}
		// Of the write that was cut short there is all or nothing.
		n := 0
		for _, l := range trying {
			if got := c.bolt[l.Index]; got != nil && got.Term == l.Term {
				n++
			}
		}
		if n != 0 && n != len(trying) {
			t.Fatalf("round %d: %d entries of a write of %d", round, n, len(trying))
		}
		if n == 0 {
			torn++
		}
		next += uint64(n)
		for _, l := range trying[:n] {
			acked[l.Index] = l
		}
		if len(c.bolt) != int(next-1) || slices.Max(append(slices.Collect(maps.Keys(c.bolt)), 0)) != next-1 {
			t.Fatalf("round %d: bbolt has %d entries, want %d", round, len(c.bolt), next-1)
		}
	}
	if torn == 0 || torn == cuts {
		t.Errorf("%d of %d writes were cut short: this shows nothing", torn, cuts)
	}
}

// TestJournalDamage flips bits in files that nobody closed. What a crash cannot
// have done is found; the last write alone may be taken for one cut short.
func TestJournalDamage(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 2))
	c := &cutJournal{t: t, random: random, bolt: make(map[uint64]*raft.Log)}
	c.open(emptyJournals(t))
	next := uint64(1)
	add := func(n int) {
		for range n {
			logs := randomLogs(random, next, 7)
			if fits, err := c.j.append(sealLogs(logs)); err != nil || !fits {
				t.Fatal(fits, err)
			}
			next += uint64(len(logs))
		}
	}
	// Both files were used before, for longer than now.
	for range 3 {
		add(4)
		if err := c.j.flush(c.store); err != nil {
			t.Fatal(err)
		}
	}
	add(3)
	f := c.j.files[c.j.now]
	live := slices.Clone(f.logs)
	good := bytes.Clone(c.disks[c.j.now].durable)
	lastWrite := int64(framesAt)
	for at := lastWrite; at < f.end; {
		lastWrite = at
		got, ok := f.parse(good[at:])
		if !ok {
			t.Fatalf("no frame at %d", at)
		}
		at += int64(blocks(got.size))
	}
	last, _ := f.parse(good[lastWrite:])
	lastLogs := len(live) - len(last.logs)
	read := func(b []byte) (int, error) {
		r := &journalFile{}
		err := r.read(b)
		return len(r.logs), err
	}
	if n, err := read(good); n != len(live) || err != nil {
		t.Fatalf("read %d of %d entries, %v", n, len(live), err)
	}
	for i := 0; i < len(good); i++ {
		if always := i < journalHead || i >= markAt && i < markAt+minFrame; !always && random.IntN(23) != 0 {
			continue
		}
		bad := bytes.Clone(good)
		bad[i] ^= 1 << random.IntN(8)
		n, err := read(bad)
		switch at := int64(i); {
		case at < journalHead:
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("header, byte %d: %v", i, err)
			}
		case at < markAt || at >= f.end:
			if n != len(live) || err != nil {
				t.Errorf("unused byte %d: %d entries, %v", i, n, err)
			}
		case at < framesAt: // the mark: what it allows to forget is read again, or it is found
			if n != len(live) && !errors.Is(err, ErrCorrupt) {
				t.Errorf("mark, byte %d: %d entries, %v", i-markAt, n, err)
			}
		case at < lastWrite:
			if !errors.Is(err, ErrCorrupt) && !(err == nil && n == len(live)) { // what fills a block means nothing
				t.Errorf("byte %d: %d of %d entries, %v", i, n, len(live), err)
			}
		default:
			if err != nil || n != len(live) && n != lastLogs {
				t.Errorf("last write, byte %d: %d entries, %v", i-int(lastWrite), n, err)
			}
		}
	}
	// A frame is good in its own file only.
	foreign := bytes.Clone(good)
	copy(foreign, c.disks[1-c.j.now].durable[:framesAt])
	if n, _ := read(foreign); n != 0 {
		t.Errorf("another file's frames were read: %d entries", n)
	}
}

// copyStore copies a store that is in use, as a crash would leave it.
func copyStore(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

func someLogs(from, to uint64, size int) (logs []*raft.Log) {
	for i := from; i <= to; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: 1, Data: bytes.Repeat([]byte{byte(i)}, size)})
	}
	return logs
}

func wantLogs(t *testing.T, s *Store, from, to uint64) {
	t.Helper()
	first, err1 := s.FirstIndex()
	last, err2 := s.LastIndex()
	if err := errors.Join(err1, err2); err != nil || first != from || last != to {
		t.Fatalf("entries %d to %d, want %d to %d; %v", first, last, from, to, err)
	}
	for i := from; i <= to; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil || l.Index != i {
			t.Fatalf("GetLog(%d) = %d, %v", i, l.Index, err)
		}
	}
}

// TestStoreAfterCrash copies the files of a store at every step of a flush and of a
// deletion, and opens the copy.
func TestStoreAfterCrash(t *testing.T) {
	dir := t.TempDir()
	copies := make(map[string]string)
	var step atomic.Pointer[string]
	hook := func(when string) func(string) error {
		return func(op string) error {
			// A flush beside something else, on its own goroutine, is not looked at.
			if name := step.Load(); name != nil && (op == "flush") == (*name == "flush") {
				copies[*name+", "+when+" "+op] = copyStore(t, dir)
			}
			return nil
		}
	}
	s, _ := testStore(t, dir, Hooks{Before: hook("before"), After: hook("after")})
	at := func(name string, do func() error) {
		t.Helper()
		step.Store(&name)
		defer step.Store(nil)
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	at("append", func() error { return s.StoreLogs(someLogs(1, 9, 300)) })
	at("flush", s.flush)
	at("append more", func() error { return s.StoreLogs(someLogs(10, 20, 300)) })
	at("delete oldest", func() error { return s.DeleteRange(1, 5) })
	if err := s.StoreLogs(someLogs(21, 30, 300)); err != nil {
		t.Fatal(err)
	}
	at("delete newest", func() error { return s.DeleteRange(25, 30) })
	wantLogs(t, s, 6, 24)
	want := map[string][2]uint64{
		"append, before store": {0, 0}, "append, after store": {1, 9},
		"flush, before flush": {1, 9}, "flush, after flush": {1, 9},
		"append more, before store": {1, 9}, "append more, after store": {1, 20},
		"delete oldest, before delete": {1, 20}, "delete oldest, after delete": {6, 20},
		"delete newest, before delete": {6, 30}, "delete newest, after delete": {6, 24},
	}
	for name, path := range copies {
		w, ok := want[name]
		if !ok {
			t.Fatalf("a copy was made %s", name)
		}
		delete(want, name)
		t.Run(name, func(t *testing.T) {
			for range 2 { // opening it changes nothing
				s, _ := testStore(t, path, Hooks{})
				if w[1] > 0 {
					wantLogs(t, s, w[0], w[1])
				} else if last, err := s.LastIndex(); last != 0 || err != nil {
					t.Errorf("LastIndex = %d, %v", last, err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	for name := range want {
		t.Errorf("no copy was made %s", name)
	}
}

// TestStoreUnderLoad stores more than the journal holds, and more at once than it
// takes.
func TestStoreUnderLoad(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, time.Minute, Hooks{}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	next := uint64(1)
	for range 12 {
		if err := s.StoreLogs(someLogs(next, next+9, 100_000)); err != nil {
			t.Fatal(err)
		}
		next += 10
	}
	if err := s.StoreLogs(someLogs(next, next, journalBytes)); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.journal.get(next); ok {
		t.Error("the journal took more than it holds")
	}
	if err := s.StoreLogs(someLogs(next+1, next+1, 10)); err != nil {
		t.Fatal(err)
	}
	next++
	wantLogs(t, s, 1, next)
	crashed, _ := testStore(t, copyStore(t, dir), Hooks{})
	wantLogs(t, crashed, 1, next)
	for _, name := range journalNames {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Size() > framesAt+journalBytes {
			t.Errorf("%s: %d bytes, %v", name, fi.Size(), err)
		}
	}
}

// TestJournalBelongsToItsStore takes a journal away, and swaps it for another's.
func TestJournalBelongsToItsStore(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	for _, d := range []string{dir, other} {
		s, _ := testStore(t, d, Hooks{})
		if err := s.StoreLogs(sampleLogs); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	for name, harm := range map[string]func(path string) error{
		"missing":   os.Remove,
		"another's": func(path string) error { return os.Rename(filepath.Join(other, filepath.Base(path)), path) },
		"empty":     func(path string) error { return os.Truncate(path, 0) },
		"cut short": func(path string) error { return os.Truncate(path, framesAt-1) },
		"too large": func(path string) error { return os.Truncate(path, framesAt+journalBytes+1) },
	} {
		for _, file := range journalNames {
			t.Run(name+" "+file, func(t *testing.T) {
				harmed := copyStore(t, dir)
				if err := harm(filepath.Join(harmed, file)); err != nil {
					t.Fatal(err)
				}
				if s, err := Open(harmed, time.Second, Hooks{}, nil, nil); !errors.Is(err, ErrCorrupt) {
					t.Errorf("Open = %v, want %v", err, ErrCorrupt)
					if err == nil {
						s.Close()
					}
				}
			})
		}
	}
}

// TestJournalAgainstTheLog puts an entry of another term into bbolt under one that
// the journal has.
func TestJournalAgainstTheLog(t *testing.T) {
	dir := t.TempDir()
	s, _ := testStore(t, dir, Hooks{})
	if err := s.StoreLogs(someLogs(1, 3, 10)); err != nil {
		t.Fatal(err)
	}
	harmed := copyStore(t, dir)
	s.Close()
	b, err := os.ReadFile(filepath.Join(dir, boltFile))
	if err == nil {
		err = os.WriteFile(filepath.Join(harmed, boltFile), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	// The same entries are no harm, another term is.
	s, _ = testStore(t, copyStore(t, harmed), Hooks{})
	wantLogs(t, s, 1, 3)
	s.Close()
	s, _ = testStore(t, dir, Hooks{})
	if err := errors.Join(s.DeleteRange(2, 3), s.StoreLog(&raft.Log{Index: 2, Term: 2})); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if b, err = os.ReadFile(filepath.Join(dir, boltFile)); err == nil {
		err = os.WriteFile(filepath.Join(harmed, boltFile), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(harmed, time.Second, Hooks{}, nil, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Open = %v, want %v", err, ErrCorrupt)
	}
}

// TestJournalCutInItsPadding opens files that end behind a frame, and before the end
// of its last block.
func TestJournalCutInItsPadding(t *testing.T) {
	f := &journalFile{id: journalID{1}}
	head := emptyJournals(t)[0]
	copy(f.id[:], head[12:])
	frame := f.appendFrame(nil, 1, 0, sealLogs(someLogs(1, 2, 100)))
	size := frameSize(sealLogs(someLogs(1, 2, 100)))
	for _, n := range []int{size, size + 1, journalBlock / 2, len(frame) - 1, len(frame)} {
		var got journalFile
		if err := got.read(append(bytes.Clone(head), frame[:n]...)); err != nil || len(got.logs) != 2 || got.end != framesAt+int64(len(frame)) {
			t.Errorf("%d of %d bytes: %d entries, end %d, %v", n, len(frame), len(got.logs), got.end, err)
		}
	}
	for _, n := range []int{0, 1, size - 1} {
		var got journalFile
		if err := got.read(append(bytes.Clone(head), frame[:n]...)); err != nil || len(got.logs) != 0 || got.end != framesAt {
			t.Errorf("%d of %d bytes: %d entries, end %d, %v", n, len(frame), len(got.logs), got.end, err)
		}
	}
}
