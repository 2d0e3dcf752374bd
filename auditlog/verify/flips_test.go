package verify

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/internal/layout"
)

// full reports whether tests by repetition do all of it.
func full() bool { return os.Getenv("CONCLAVE_FULL") == "1" }

func newRand(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// problemAt is where a problem must be reported.
type problemAt struct {
	file  string
	index uint64
}

func wantProblemAt(t testing.TB, r *Report, want problemAt, format string, args ...any) {
	t.Helper()
	for _, p := range r.Problems {
		if p.File == want.file && p.Index == want.index {
			return
		}
	}
	t.Errorf("%s: nothing is reported about entry %d in %s: torn=%d %v", fmt.Sprintf(format, args...), want.index, want.file, r.Torn, r.Problems)
}

// flip is one bit of a log.
type flip struct {
	name string
	bit  int
}

func (f flip) apply(b []byte) { b[f.bit/8] ^= 1 << (f.bit % 8) }

// place is the entry that a byte of a segment belongs to.
type place struct {
	index  uint64
	length bool // the byte is of the frame's length, without which no other frame is found
}

// places maps the bytes of segment n.
func places(t testing.TB, n uint64, b []byte) []place {
	t.Helper()
	out := make([]place, layout.SegmentHeaderSize, len(b))
	for i := range out {
		out[i].index = n * auditlog.SegmentSize
	}
	for i, f := range frames(t, b) {
		for k := range f {
			out = append(out, place{n*auditlog.SegmentSize + uint64(i), k < 4})
		}
	}
	return out
}

// at returns where a flip must be reported. segments has the places of each segment's bytes.
func (f flip) at(segments map[string][]place) problemAt {
	if p, ok := segments[f.name]; ok {
		return problemAt{f.name, p[f.bit/8].index}
	}
	var level int
	if n, _ := fmt.Sscanf(f.name, "tile/%d/", &level); n == 1 {
		number := uint64(0)
		for _, part := range strings.Split(f.name, "/")[2:] {
			var d uint64
			fmt.Sscanf(strings.TrimPrefix(part, "x"), "%d", &d)
			number = number*1000 + d
		}
		return problemAt{f.name, (number*auditlog.TileWidth + uint64(f.bit/8/auditlog.HashSize)) << (layout.TileHeight * level)}
	}
	return problemAt{f.name, 0}
}

// each verifies a log once for each round of flips, on all processors, and wants every flip
// reported where it is.
func (m memDir) each(t *testing.T, rounds [][]flip) (flips int) {
	t.Helper()
	segments := map[string][]place{layout.SegmentPath(0): places(t, 0, m[layout.SegmentPath(0)])}
	var wg sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		wg.Go(func() {
			own := make(memDir)
			for name, b := range m {
				own[name] = bytes.Clone(b)
			}
			for i := w; i < len(rounds) && !t.Failed(); i += workers {
				for _, f := range rounds[i] {
					f.apply(own[f.name])
				}
				r, err := Dir("/log", testKey, Options{FS: memFS{files: own}})
				for _, f := range rounds[i] {
					if err != nil {
						t.Errorf("%+v: %v", f, err)
					} else {
						wantProblemAt(t, r, f.at(segments), "bit %d of byte %d flipped", f.bit%8, f.bit/8)
					}
					f.apply(own[f.name])
				}
			}
		})
	}
	wg.Wait()
	for _, round := range rounds {
		flips += len(round)
	}
	return flips
}

// single returns the bits of files, all of them or about n, one a round.
func (m memDir) single(r *rand.Rand, n int, names ...string) (rounds [][]flip) {
	total := 0
	for _, name := range names {
		total += 8 * len(m[name])
	}
	for _, name := range names {
		for bit := range 8 * len(m[name]) {
			if full() || r.IntN(total) < n {
				rounds = append(rounds, []flip{{name, bit}})
			}
		}
	}
	return rounds
}

// inFrames returns rounds for the bits of a segment, all of them or those of about n rounds. As each
// entry is reported for itself, a round has a bit of each. What comes before a frame's index is
// flipped alone: the header, and the length, without which the next frame is not found.
func (m memDir) inFrames(t *testing.T, r *rand.Rand, n int) (rounds [][]flip) {
	t.Helper()
	const name = "segments/00000000.seg"
	for bit := range 8 * layout.SegmentHeaderSize {
		rounds = append(rounds, []flip{{name, bit}})
	}
	all := frames(t, m[name])
	longest, off := 0, 8*layout.SegmentHeaderSize
	offsets := make([]int, len(all))
	for i, f := range all {
		offsets[i] = off
		for bit := range 32 {
			rounds = append(rounds, []flip{{name, off + bit}})
		}
		off += 8 * len(f)
		longest = max(longest, 8*len(f))
	}
	for bit := 32; bit < longest; bit++ {
		if !full() && r.IntN(longest) >= n {
			continue
		}
		var round []flip
		for i, f := range all {
			if bit < 8*len(f) {
				round = append(round, flip{name, offsets[i] + bit})
			}
		}
		rounds = append(rounds, round)
	}
	return rounds
}

// TestEveryFlippedBit flips every bit of a log of 64 KiB, or a sample, and of the tile of a log
// that has one. Each is reported with its file and entry.
func TestEveryFlippedBit(t *testing.T) {
	r := newRand(t)
	es := testEntries(0, 16)
	for i := range es {
		es[i].Body = bytes.Repeat([]byte{byte(i)}, 3900+i)
	}
	small := loadDir(t, logOf(t, es))
	wantClean(t, small.verify(t))
	size := 0
	for _, b := range small {
		size += len(b)
	}
	if size < 62<<10 || size > 66<<10 {
		t.Errorf("the log has %d bytes", size)
	}
	flips := small.each(t, slices.Concat(small.inFrames(t, r, 300), small.single(r, 1000, layout.CheckpointFile, layout.DurableFile)))
	if full() && flips != 8*size {
		t.Errorf("%d bits flipped, of %d", flips, 8*size)
	}
	tiled := loadDir(t, newLog(t, 300))
	wantClean(t, tiled.verify(t))
	tiles := tiled.each(t, tiled.single(r, 800, layout.TilePath(0, 0)))
	t.Logf("%d bits of a log of %d bytes, %d bits of a tile", flips, size, tiles)
}

// largeLog has two segments, and tiles of two levels.
func largeLog(t *testing.T) memDir {
	m := loadDir(t, newLog(t, auditlog.SegmentSize+500))
	wantClean(t, m.verify(t))
	return m
}

// TestLargeLog flips 10,000 random bits of a log of more than one segment, or fewer, and
// rearranges its files.
func TestLargeLog(t *testing.T) {
	if testing.Short() {
		t.Skip("66,000 entries are read again and again, which takes long under the race detector; make test does it")
	}
	m, r := largeLog(t), newRand(t)
	t.Run("flips", func(t *testing.T) { m.testRandomFlips(t, r) })
	t.Run("files", func(t *testing.T) { m.testRearranged(t) })
}

// testRandomFlips flips many bits at a time, which is quicker and asks for more: each of them is
// reported where it is. Those that would hide another from the verifier are flipped in another
// round.
func (m memDir) testRandomFlips(t *testing.T, r *rand.Rand) {
	n := 400
	if full() {
		n = 10_000
	}
	segments := make(map[string][]place)
	for i := range uint64(2) {
		segments[layout.SegmentPath(i)] = places(t, i, m[layout.SegmentPath(i)])
	}
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(m)), func(name string) bool { return len(m[name]) == 0 })
	total := 0
	for _, name := range names {
		total += 8 * len(m[name])
	}
	var left []flip
	for range n {
		bit := r.IntN(total)
		for _, name := range names {
			if bit < 8*len(m[name]) {
				left = append(left, flip{name, bit})
				break
			}
			bit -= 8 * len(m[name])
		}
	}
	slices.SortFunc(left, func(a, b flip) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.bit, b.bit)) })
	left = slices.Compact(left)
	rounds, flipped := 0, len(left)
	for ; len(left) > 0 && !t.Failed(); rounds++ {
		var now, later []flip
		taken := make(map[problemAt]bool)
		cut := make(map[string]bool) // segments of which nothing more can be found
		tiles := make(map[string]bool)
		for _, f := range left {
			at := f.at(segments)
			segment, isSegment := segments[f.name]
			length := isSegment && segment[f.bit/8].length
			switch {
			case len(now) >= maxProblems/2, taken[at], isSegment && cut[f.name],
				// One hash of a tile is named, and none after the tree was broken or its leaves changed.
				!isSegment && strings.HasPrefix(f.name, "tile/") && tiles[f.name],
				len(now) > 0 && isSegment != (segments[now[0].name] != nil):
				later = append(later, f)
				continue
			}
			taken[at] = true
			if length {
				cut[f.name] = true
			}
			if !isSegment {
				tiles[f.name] = true
			}
			now = append(now, f)
		}
		changed := maps.Clone(m)
		for _, f := range now {
			changed[f.name] = bytes.Clone(changed[f.name])
		}
		for _, f := range now {
			f.apply(changed[f.name])
		}
		report := changed.verify(t)
		for _, f := range now {
			wantProblemAt(t, report, f.at(segments), "bit %d of byte %d flipped", f.bit%8, f.bit/8)
		}
		left = later
	}
	t.Logf("%d bits of %d bytes in %d rounds", flipped, total/8, rounds)
}

// testRearranged deletes, exchanges, repeats, shortens and inserts files.
func (m memDir) testRearranged(t *testing.T) {
	one, two, three := layout.SegmentPath(0), layout.SegmentPath(1), layout.SegmentPath(2)
	const second = auditlog.SegmentSize
	for what, c := range map[string]struct {
		log  memDir
		want problemAt
	}{
		"segments exchanged":            {m.with(one, m[two]).with(two, m[one]), problemAt{one, 0}},
		"the first segment twice":       {m.with(two, m[one]), problemAt{two, second}},
		"a segment repeated at the end": {m.with(three, m[one]), problemAt{three, 2 * second}},
		"a segment inserted":            {m.with(two, joinFrames(1, nil)).with(three, joinFrames(2, frames(t, m[two]))), problemAt{two, second}},
		"the first segment deleted":     {m.with(one, nil), problemAt{one, 0}},
		"the last segment deleted":      {m.with(two, nil), problemAt{layout.CheckpointFile, second}},
		"the first segment one entry shorter": {
			m.with(one, joinFrames(0, frames(t, m[one])[:second-1])), problemAt{one, second - 1},
		},
		"the first segment one entry longer": {
			m.with(one, joinFrames(0, append(frames(t, m[one]), frames(t, m[two])[0]))), problemAt{one, second},
		},
		"entries of two segments exchanged": {func() memDir {
			a, b := frames(t, m[one]), frames(t, m[two])
			a[7], b[9] = b[9], a[7]
			return m.with(one, joinFrames(0, a)).with(two, joinFrames(1, b))
		}(), problemAt{two, second + 9}},
		"tiles exchanged":  {m.with(layout.TilePath(0, 3), m[layout.TilePath(0, 4)]), problemAt{layout.TilePath(0, 3), 3 * 256}},
		"a tile deleted":   {m.with(layout.TilePath(0, 200), nil), problemAt{layout.TilePath(0, 200), 200 * 256}},
		"a tile cut short": {m.with(layout.TilePath(1, 0), m[layout.TilePath(1, 0)][:8191]), problemAt{layout.TilePath(1, 0), 0}},
		"a tile invented":  {m.with(layout.TilePath(1, 1), m[layout.TilePath(1, 0)]), problemAt{layout.TilePath(1, 1), 0}},
		"no checkpoint":    {m.with(layout.CheckpointFile, nil), problemAt{layout.CheckpointFile, 0}},
		"an older checkpoint of other entries": {
			m.with(layout.CheckpointFile, checkpointOf(t, testEntries(1, 301))), problemAt{layout.CheckpointFile, 0},
		},
	} {
		wantProblemAt(t, c.log.verify(t), c.want, "%s", what)
	}
}
