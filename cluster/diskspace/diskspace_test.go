package diskspace

import (
	"errors"
	"testing"
	"time"
)

const mib = 1 << 20

// TestMarksOnDisks holds the default marks against a large, a usual and a small disk.
func TestMarksOnDisks(t *testing.T) {
	marks := Marks{}.withDefaults()
	for _, v := range []struct {
		name  string
		total uint64
		// free in MiB just not below each mark, from low to full
		at [4]uint64
	}{
		{"10 TiB, by size", 10 << 40, [4]uint64{8192, 2048, 512, 128}},
		{"1 TiB, by size", 1 << 40, [4]uint64{8192, 2048, 512, 128}},
		{"10 GiB, by share", 10000 * mib, [4]uint64{1500, 800, 400, 128}},
		{"256 MiB, by what a node needs at least", 256 * mib, [4]uint64{96, 64, 48, 32}},
	} {
		t.Run(v.name, func(t *testing.T) {
			for i, mark := range v.at {
				if got := marks.level(Room{Free: mark * mib, Total: v.total}, 100); got != Level(i) {
					t.Errorf("%d MiB free is %v, want %v", mark, got, Level(i))
				}
				if got := marks.level(Room{Free: mark*mib - 1, Total: v.total}, 100); got != Level(i+1) {
					t.Errorf("a byte less than %d MiB is %v, want %v", mark, got, Level(i+1))
				}
			}
		})
	}
	for _, v := range []struct {
		free, total uint64
		want        Level
	}{{100_000, 10_000_000, Ample}, {99_999, 10_000_000, Low}, {9_999, 10_000_000, Scarce}, {999, 10_000_000, Yield},
		{199, 10_000_000, Full}, {0, 0, Ample}, {15, 100, Ample}, {1, 100, Full}} {
		r := Room{Free: 1 << 40, Total: 2 << 40, FreeInodes: v.free, TotalInodes: v.total}
		if got := marks.level(r, 100); got != v.want {
			t.Errorf("%d of %d inodes is %v, want %v", v.free, v.total, got, v.want)
		}
	}
	own := Marks{Low: Mark{Bytes: 4 * mib}, Scarce: Mark{Bytes: 3 * mib}, Yield: Mark{Bytes: 2 * mib}, Full: Mark{Bytes: mib}}
	if got := own.level(Room{Free: 4 * mib, Total: 16 * mib}, 100); got != Ample {
		t.Errorf("marks that an operator set are taken as they are: %v", got)
	}
}

func TestParseMark(t *testing.T) {
	for s, want := range map[string]Mark{
		"10%": {Percent: 10}, "0.5%": {Percent: 0.5}, "2GiB": {Bytes: 2 << 30}, "15%, 8GiB": {15, 8 << 30}, "512MiB,3%": {3, 512 << 20}, "4096": {Bytes: 4096},
	} {
		if got, err := ParseMark(s); err != nil || got != want {
			t.Errorf("ParseMark(%q) = %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "%", "0%", "100%", "-1%", "NaN%", "Inf%", "0x1p1%", "1_0%", "-5", "0", "1.5GiB", "8GB", "99999999999999999999", "10%,", ",", "GiB"} {
		if m, err := ParseMark(s); err == nil {
			t.Errorf("ParseMark(%q) = %v", s, m)
		}
	}
}

func TestMarksMustDescend(t *testing.T) {
	for _, m := range []Marks{
		{Low: Mark{Percent: 5}}, // below the default of scarce
		{Full: Mark{Percent: 50}},
		{Scarce: Mark{Bytes: 1 << 20}, Yield: Mark{Bytes: 2 << 20}},
		{Low: Mark{Percent: -1}},
		{Low: Mark{Percent: 100}},
	} {
		if m.Validate() == nil {
			t.Errorf("%+v is accepted", m)
		}
	}
	if err := (Marks{}).Validate(); err != nil {
		t.Error(err)
	}
}

// TestSpaceWorsensAtOnceAndGetsBetterSlowly moves the room about the marks.
func TestSpaceWorsensAtOnceAndGetsBetterSlowly(t *testing.T) {
	var free uint64
	var fails error
	s := NewTracker("", Marks{}, func() (Room, error) { return Room{Free: free * mib, Total: 256 * mib}, fails })
	now := time.Now()
	for _, v := range []struct {
		what  string
		after time.Duration
		free  uint64
		want  Level
	}{
		{"room", 0, 200, Ample},
		{"below low", 0, 95, Low},
		{"down to full at once", 0, 1, Full},
		{"just above the mark", time.Minute, 33, Full},
		{"and for long", time.Minute, 33, Full},
		{"a quarter more than the mark", time.Second, 41, Full},
		{"not for long", calm - 1, 41, Full},
		{"less again", 0, 33, Full},
		{"a quarter more, from the start", time.Second, 41, Full},
		{"nearly long enough", calm - 1, 41, Full},
		{"long enough", 1, 41, Yield},
		{"much room", time.Second, 250, Yield},
		{"for long: straight to ample", calm, 250, Ample},
	} {
		now, free = now.Add(v.after), v.free
		was := s.Level()
		level, changed, err := s.Look(now)
		if level != v.want || s.Level() != v.want || changed != (was != v.want) || err != nil {
			t.Errorf("%s, %d MiB: %v, changed %v, %v; want %v", v.what, v.free, level, changed, err, v.want)
		}
	}
	free = 1
	s.Look(now)
	fails = errors.New("no answer")
	free = 250
	if level, changed, err := s.Look(now.Add(time.Hour)); level != Full || changed || err == nil {
		t.Errorf("a look that failed made it %v, changed %v, %v", level, changed, err)
	}
	if !s.Complain(now) || s.Complain(now.Add(time.Second)) || !s.Complain(now.Add(time.Minute)) {
		t.Error("a failure is worth a line a minute")
	}
}

// TestGrowthIsRefused by what the disk has and by what the leader says.
func TestGrowthIsRefused(t *testing.T) {
	free := uint64(200 * mib)
	s := NewTracker("", Marks{}, func() (Room, error) { return Room{Free: free, Total: 256 * mib}, nil })
	s.Look(time.Now())
	if !s.MayGrow() {
		t.Error("refused with ample room")
	}
	s.Told(true)
	if s.MayGrow() {
		t.Error("allowed although the leader says no")
	}
	s.mu.Lock()
	s.refused = time.Now().Add(-toldFor - time.Second)
	s.mu.Unlock()
	if !s.MayGrow() {
		t.Error("what the leader said long ago counts still")
	}
	s.Told(true)
	s.Told(false)
	if !s.MayGrow() {
		t.Error("refused although the leader took it back")
	}
	free = 90 * mib
	s.Look(time.Now())
	if !s.MayGrow() {
		t.Error("low room is a warning only")
	}
	free = 60 * mib
	s.Look(time.Now())
	if s.MayGrow() {
		t.Error("allowed with scarce room")
	}
}
