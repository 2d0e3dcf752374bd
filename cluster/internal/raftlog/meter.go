package raftlog

import (
	"slices"
	"sync"
	"time"
)

const (
	// meterWindow is the period over which the duration of writes is evaluated. If there
	// were fewer than two writes in it, the period is meterSparse.
	meterWindow = time.Second
	meterSparse = 10 * time.Second
	meterKept   = 64
)

// Meter tracks the writes to the disk that are in progress and the durations of the newest
// ones.
type Meter struct {
	pulse pulse

	mu     sync.Mutex
	writes map[*diskWrite]struct{}
	short  int                  // how many writes wait for space
	took   [meterKept]writeTime // a ring buffer
	next   int
	stored [meterKept]storedAt // a ring buffer of the entries of the log
	at     int
}

// diskWrite is a write in progress.
type diskWrite struct {
	kind writeKind
	wall time.Time     // when it began, by the monotonic clock
	ran  time.Duration // when it began, by the pulse
	// short is how long, at most, it has waited for space since.
	short time.Duration
}

// writeKind classifies writes by who waits for them.
type writeKind int

const (
	// writeApart is a write that only the store itself waits for, unless it takes very
	// long.
	writeApart writeKind = iota
	// writeAwaited is a write that this node's answers to others wait for.
	writeAwaited
	// writeCommit is a write that every commit waits for. The speed of the disk is judged
	// by these, because other writes differ in size.
	writeCommit
	// writeHeld is a write that has not begun because it waits for space.
	writeHeld
)

type writeTime struct {
	end  time.Time
	took time.Duration
}

// storedAt is when entries of the log were stored on this disk.
type storedAt struct {
	first, last uint64
	end         time.Time
}

// NewMeter returns a meter that has seen no writes.
func NewMeter() *Meter {
	return &Meter{writes: make(map[*diskWrite]struct{})}
}

// begin records the start of a write. The caller passes the result to end.
func (m *Meter) begin(kind writeKind) *diskWrite {
	w := &diskWrite{kind: kind, wall: time.Now(), ran: m.pulse.now()}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes[w] = struct{}{}
	return w
}

// end records that a write has returned, and returns its duration.
func (m *Meter) end(w *diskWrite) time.Duration {
	now := time.Now()
	took := now.Sub(w.wall)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.writes, w)
	if ran := m.pulse.now() - w.ran - w.short; w.kind == writeCommit && took-ran < time.Second { // otherwise the process was paused during the write, or it waited for space
		m.took[m.next] = writeTime{now, took}
		m.next = (m.next + 1) % meterKept
	}
	return took
}

// Awaited records a write, outside of the store, that others wait for. It is in progress
// until end is called.
func (m *Meter) Awaited() (end func()) {
	w := m.begin(writeAwaited)
	return func() { m.end(w) }
}

// Ran returns the time that this process has run. Only differences are meaningful; see
// pulse.
func (m *Meter) Ran() time.Duration { return m.pulse.now() }

// keep records that entries of the log are on the disk now.
func (m *Meter) keep(first, last uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stored[m.at] = storedAt{first, last, time.Now()}
	m.at = (m.at + 1) % meterKept
}

// StoredSince returns when the entry was stored on this disk, and false if that is not
// known any more.
func (m *Meter) StoredSince(index uint64) (time.Time, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range meterKept { // newest first: an index may have been stored twice
		s := m.stored[(m.at-1-i+2*meterKept)%meterKept]
		if s.first <= index && index <= s.last && !s.end.IsZero() {
			return s.end, true
		}
	}
	return time.Time{}, false
}

// spaceless records that a write found no space and waits for some until end is called. The
// disk does answer, so this time does not count for any of the writes in progress.
func (m *Meter) spaceless() (end func()) {
	began := m.pulse.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.short++
	return func() {
		now := m.pulse.now()
		m.mu.Lock()
		defer m.mu.Unlock()
		m.short--
		for w := range m.writes {
			w.short = min(w.short+now-max(began, w.ran), now-w.ran)
		}
	}
}

// stuck returns the time that the oldest write in progress has taken, or 0. It counts only
// the time in which this process ran, and not the time spent waiting for space.
func (m *Meter) stuck() time.Duration {
	now := m.pulse.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	var oldest time.Duration
	for w := range m.writes {
		if w.kind != writeHeld && m.short == 0 {
			oldest = max(oldest, now-w.ran-w.short)
		}
	}
	return oldest
}

// Behind returns how long the oldest write has taken that keeps this node from confirming
// anything, whatever it waits for. A node that is behind should not lead.
func (m *Meter) Behind() time.Duration {
	now := m.pulse.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	var oldest time.Duration
	for w := range m.writes {
		if w.kind != writeApart {
			oldest = max(oldest, now-w.ran)
		}
	}
	return oldest
}

// Typical returns the current duration of a write to the log, as the median of the newest
// ones, or 0 if there were too few.
func (m *Meter) Typical() time.Duration {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []time.Duration
	for i := range meterKept {
		w := m.took[(m.next-1-i+2*meterKept)%meterKept]
		age := now.Sub(w.end)
		if w.end.IsZero() || age > meterSparse || age > meterWindow && len(list) >= 2 {
			break
		}
		list = append(list, w.took)
	}
	if len(list) < 2 {
		return 0
	}
	slices.Sort(list)
	return list[len(list)/2]
}
