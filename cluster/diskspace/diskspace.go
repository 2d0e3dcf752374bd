// Package diskspace follows how much room a disk has, and says when it is so little that
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

// Level says how little room a node's disk has, and what follows.
type Level uint32

const (
	// Ample: there is room.
	Ample Level = iota
	// Low: somebody should look after it.
	Low
	// Scarce: new keys and other growth are refused.
	Scarce
	// Yield: another node should lead.
	Yield
	// Full: nothing more is stored. What is left is for bringing to an end what
	// was begun.
	Full
)

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

// Mark is an amount of room, of bytes or inodes: the smaller one of a share of the
// whole and of an absolute number, so that it fits small disks and large ones.
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

// of is the mark on a disk of that many bytes.
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

// Marks are the marks below which each thing happens. Zero ones take the
// defaults: 15 % or 8 GiB, 8 % or 2 GiB, 4 % or 512 MiB, 2 % or 128 MiB. Inodes are
// held against the shares alone, and at most a hundred thousand, ten thousand, a
// thousand and two hundred.
type Marks struct {
	// Low warns, Scarce refuses growth, Yield gives the leadership up and Full
	// stops the node, until there is room again.
	Low, Scarce, Yield, Full Mark
}

// reserve is what a node needs, at least, to bring to an end what it has begun: what
// is in the journal goes to bbolt, and what is committed to the audit log. Defaults
// are not below it, with something between one and the next.
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

// Validate reports marks that are no shares or not in order; zero ones count as
// what they default to.
func (s Marks) Validate() error {
	var errs []error
	s = s.withDefaults()
	names := [...]string{"low", "scarce", "yield", "full"}
	list := s.list()
	for i, m := range list {
		if m.Percent < 0 || m.Percent >= 100 {
			errs = append(errs, fmt.Errorf("mark of %s space: %v%% is no share", names[i], m.Percent))
		}
		if i == 0 {
			continue
		}
		if above := list[i-1]; above.Percent > 0 && m.Percent > above.Percent || above.Bytes > 0 && m.Bytes > above.Bytes {
			errs = append(errs, fmt.Errorf("the mark of %s space is above that of %s space", names[i], names[i-1]))
		}
	}
	return errors.Join(errs...)
}

// Room is what a disk has left. Inodes are 0 of 0 where the file system has no such
// limit.
type Room struct {
	Free, Total             uint64
	FreeInodes, TotalInodes uint64
}

// Tracker follows the room on the disk of a directory. Somebody calls Look, again and
// again; all else may be called at any time.
type Tracker struct {
	marks Marks
	stat  func() (Room, error)

	mu      sync.Mutex
	room    Room
	level   Level
	better  time.Time // since when a lower level would do; zero when not
	failed  time.Time // that was last complained about
	refused time.Time // when the leader last said that there may be no growth
}

const (
	// A level is left when there is a quarter more room than its mark, for so long.
	calm = 2 * time.Second
	// toldFor is how long the leader's word on growth counts.
	toldFor = 5 * time.Second
)

// NewTracker returns a tracker that has not looked yet. Zero marks take their defaults. stat
// asks for the room; nil for the system's answer about dir.
func NewTracker(dir string, marks Marks, stat func() (Room, error)) *Tracker {
	if stat == nil {
		stat = func() (Room, error) { return statDisk(dir) }
	}
	return &Tracker{marks: marks.withDefaults(), stat: stat}
}

// Level is the present level; Ample of a nil Tracker.
func (s *Tracker) Level() Level {
	if s == nil {
		return Ample
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.level
}

// Room is what there was at the last look.
func (s *Tracker) Room() Room {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room
}

// level is what r means where marks count that many percent.
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

// Look takes the room as it is now. It worsens at once, and gets better when there is
// clearly more room for some time, so that nothing flaps about a mark.
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

// Complain reports whether a failure to look is worth a line: one a minute is.
func (s *Tracker) Complain(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.failed) < time.Minute {
		return false
	}
	s.failed = now
	return true
}

// Told takes the leader's word on whether the cluster may grow.
func (s *Tracker) Told(noGrowth bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = time.Time{}
	if noGrowth {
		s.refused = time.Now()
	}
}

// Stat asks for the room now, without noting it.
func (s *Tracker) Stat() (Room, error) { return s.stat() }

// FullBelow is how many bytes must be free for a disk not to be full.
func (s *Tracker) FullBelow(r Room) uint64 { return s.marks.Full.of(r.Total) }

// MayGrow reports whether this node may propose what makes the state grow.
func (s *Tracker) MayGrow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.level < Scarce && (s.refused.IsZero() || time.Since(s.refused) > toldFor)
}
