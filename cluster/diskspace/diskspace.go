// Package diskspace tracks the free space of a disk and reports when it is so low that
// something has to be done.
package diskspace

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Level is how low the free space of a node's disk is.
type Level uint32

const (
	// Ample means that there is enough space.
	Ample Level = iota
	// Low means that an operator should look after the disk.
	Low
	// Scarce means that new keys and other growth are refused.
	Scarce
	// Yield means that another node should lead.
	Yield
	// Full means that nothing more is stored. The space that is left is for completing what
	// was begun.
	Full
)

// String returns the name of the level.
func (s Level) String() string {
	switch s {
	case Ample:
		return "ample"
	case Low:
		return "low"
	case Scarce:
		return "scarce"
	case Yield:
		return "yield"
	case Full:
		return "full"
	}
	return fmt.Sprintf("space %d", uint32(s))
}

// Mark is an amount of space or a number of inodes: the smaller one of a share of the whole
// and an absolute number, so that one mark suits small and large disks.
type Mark struct {
	Percent float64
	Bytes   uint64
}

// ParseMark reads a mark: "10%", "2GiB", or both with a comma.
func ParseMark(s string) (m Mark, err error) {
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if p, ok := strings.CutSuffix(part, "%"); ok {
			m.Percent, err = strconv.ParseFloat(p, 64)
			if err != nil || !(m.Percent > 0 && m.Percent < 100) || strings.ContainsAny(p, "xXpP_") {
				return Mark{}, fmt.Errorf("%q is not a share between 0%% and 100%%", part)
			}
			continue
		}
		number, unit := part, uint64(1)
		for name, size := range map[string]uint64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40} {
			if n, ok := strings.CutSuffix(part, name); ok {
				number, unit = n, size
			}
		}
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil || n == 0 {
			return Mark{}, fmt.Errorf("%q is neither a share such as 10%% nor a size such as 512MiB", part)
		}
		m.Bytes = n * unit
	}
	return m, nil
}

// of returns the mark in bytes for a disk of the given size.
func (m Mark) of(total uint64) uint64 {
	share := uint64(float64(total) * m.Percent / 100)
	switch {
	case m.Percent == 0:
		return m.Bytes
	case m.Bytes == 0:
		return share
	}
	return min(share, m.Bytes)
}

// Marks are the amounts of free space at which the levels begin. Zero marks take the
// defaults: 15 % or 8 GiB, 8 % or 2 GiB, 4 % or 512 MiB, 2 % or 128 MiB. Inodes are
// compared with the shares alone, and with at most a hundred thousand, ten thousand, one
// thousand and two hundred.
type Marks struct {
	// Below Low the node warns, below Scarce growth is refused, below Yield the node gives
	// up the leadership, and below Full it stores nothing until there is space again.
	Low, Scarce, Yield, Full Mark
}

// reserve is the space that a node needs at least to complete what it has begun: the
// entries in the journal go to bbolt, and committed records to the audit log. The defaults
// do not go below it, and keep a distance between one mark and the next.
const reserve = 32 << 20

var (
	defaultMarks = [...]Mark{{15, 8 << 30}, {8, 2 << 30}, {4, 512 << 20}, {2, 128 << 20}}
	leastBytes   = [...]uint64{3 * reserve, 2 * reserve, 3 * reserve / 2, reserve}
	mostInodes   = [...]uint64{100_000, 10_000, 1_000, 200}
)

func (s *Marks) list() [4]*Mark { return [4]*Mark{&s.Low, &s.Scarce, &s.Yield, &s.Full} }

func (s Marks) withDefaults() Marks {
	for i, m := range s.list() {
		if *m == (Mark{}) {
			*m = defaultMarks[i]
		}
	}
	return s
}

// Validate returns an error for marks that are not valid shares or not in order. Zero marks
// count with their defaults.
func (s Marks) Validate() error {
	var errs []error
	s = s.withDefaults()
	names := [...]string{"low", "scarce", "yield", "full"}
	list := s.list()
	for i, m := range list {
		if m.Percent < 0 || m.Percent >= 100 {
			errs = append(errs, fmt.Errorf("threshold of %s space: %v%% is not between 0%% and 100%%", names[i], m.Percent))
		}
		if i == 0 {
			continue
		}
		if above := list[i-1]; above.Percent > 0 && m.Percent > above.Percent || above.Bytes > 0 && m.Bytes > above.Bytes {
			errs = append(errs, fmt.Errorf("the threshold of %s space is above that of %s space", names[i], names[i-1]))
		}
	}
	return errors.Join(errs...)
}

// Room is the free space of a disk. Where the file system has no limit on inodes, their
// numbers are zero.
type Room struct {
	Free, Total             uint64
	FreeInodes, TotalInodes uint64
}

// Tracker tracks the free space on the disk of a directory. Its owner calls Look regularly;
// all other methods may be called at any time.
type Tracker struct {
	marks Marks
	stat  func() (Room, error)

	mu      sync.Mutex
	room    Room
	level   Level
	better  time.Time // since when there was space enough for a better level; zero if there is not
	failed  time.Time // when a failure was last reported
	refused time.Time // when the leader last refused growth
}

const (
	// calm is how long there must be a quarter more space than the mark before a level is
	// left.
	calm = 2 * time.Second
	// toldFor is how long an answer of the leader on growth counts.
	toldFor = 5 * time.Second
)

// NewTracker returns a tracker that has not looked yet. Zero marks take their defaults.
// stat reports the free space; if it is nil, the operating system is asked about dir.
func NewTracker(dir string, marks Marks, stat func() (Room, error)) *Tracker {
	if stat == nil {
		stat = func() (Room, error) { return statDisk(dir) }
	}
	return &Tracker{marks: marks.withDefaults(), stat: stat}
}

// Level returns the current level. It is Ample for a nil Tracker.
func (s *Tracker) Level() Level {
	if s == nil {
		return Ample
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.level
}

// Room returns the free space at the last look.
func (s *Tracker) Room() Room {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room
}

// level returns the level of r, with all marks scaled to the given percentage.
func (s *Marks) level(r Room, percent uint64) Level {
	list := s.list()
	for i, m := range slices.Backward(list[:]) {
		mark := m.of(r.Total)
		if *m == defaultMarks[i] {
			mark = max(mark, leastBytes[i])
		}
		inodes := min(Mark{Percent: m.Percent}.of(r.TotalInodes), mostInodes[i])
		if r.Free < mark*percent/100 || r.TotalInodes > 0 && r.FreeInodes < inodes*percent/100 {
			return Level(i + 1)
		}
	}
	return Ample
}

// Look measures the free space. A worse level takes effect at once, a better one only after
// there has been clearly more space for some time, so that the level does not flap around a
// mark.
func (s *Tracker) Look(now time.Time) (level Level, changed bool, err error) {
	r, err := s.stat()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		return s.level, false, err
	}
	s.room = r
	was := s.level
	if worse := s.marks.level(r, 100); worse >= s.level {
		s.level, s.better = worse, time.Time{}
		return s.level, s.level != was, nil
	}
	better := s.marks.level(r, 125)
	switch {
	case better >= s.level:
		s.better = time.Time{}
	case s.better.IsZero():
		s.better = now
	case now.Sub(s.better) >= calm:
		s.level, s.better = better, time.Time{}
	}
	return s.level, s.level != was, nil
}

// Complain reports whether a failed look should be logged now, which is once a minute.
func (s *Tracker) Complain(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.failed) < time.Minute {
		return false
	}
	s.failed = now
	return true
}

// Told records whether the leader refuses growth.
func (s *Tracker) Told(noGrowth bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = time.Time{}
	if noGrowth {
		s.refused = time.Now()
	}
}

// Stat returns the free space now, without recording it.
func (s *Tracker) Stat() (Room, error) { return s.stat() }

// FullBelow returns the number of free bytes below which a disk counts as full.
func (s *Tracker) FullBelow(r Room) uint64 { return s.marks.Full.of(r.Total) }

// MayGrow reports whether this node may propose records that make the state grow.
func (s *Tracker) MayGrow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.level < Scarce && (s.refused.IsZero() || time.Since(s.refused) > toldFor)
}
