package raftlog

import (
	"slices"
	"sync"
	"time"
)

const (
	// meterWindow is how far back the time that writes take is looked at, and
	// meterSparse how far where there were fewer than two since.
	meterWindow = time.Second
	meterSparse = 10 * time.Second
	meterKept   = 64
)

// Meter knows which writes to the disk are under way and how long the newest
// took.
type Meter struct {
	pulse pulse

	mu     sync.Mutex
	writes map[*diskWrite]struct{}
	short  int                  // how many wait for space
	took   [meterKept]writeTime // a ring
	next   int
	stored [meterKept]storedAt // likewise, of the log's entries
	at     int
}

// diskWrite is a write under way.
type diskWrite struct {
	kind writeKind
	wall time.Time     // it began, by the monotonic clock
	ran  time.Duration // the same by the pulse
	// short is how long it may have waited for space since.
	short time.Duration
}

// writeKind tells writes by who waits for them.
type writeKind int

const (
	// writeApart: nobody but the store itself, unless it takes very long.
	writeApart writeKind = iota
	// writeAwaited: what this node says to others.
	writeAwaited
	// writeCommit: every commit. These tell how fast the disk is; others differ in
	// size.
	writeCommit
	// writeHeld has not begun: it waits for room.
	writeHeld
)

type writeTime struct {
	end  time.Time
	took time.Duration
}

// storedAt says when entries of the log were on this disk.
type storedAt struct {
	first, last uint64
	end         time.Time
}

// NewMeter returns a meter that has seen nothing.
func NewMeter() *Meter {
	return &Meter{writes: make(map[*diskWrite]struct{})}
}

// begin notes a write; the caller passes it to end.
func (m *Meter) begin(kind writeKind) *diskWrite {
	w := &diskWrite{kind: kind, wall: time.Now(), ran: m.pulse.now()}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes[w] = struct{}{}
	return w
}

// end notes that it returned, and says what it took.
func (m *Meter) end(w *diskWrite) time.Duration {
	now := time.Now()
	took := now.Sub(w.wall)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.writes, w)
	if ran := m.pulse.now() - w.ran - w.short; w.kind == writeCommit && took-ran < time.Second { // else the process was paused in it, or it waited for space
		m.took[m.next] = writeTime{now, took}
		m.next = (m.next + 1) % meterKept
	}
	return took
}

// Awaited notes a write of somebody else that others wait for, until the function that is
// returned is called.
func (m *Meter) Awaited() (end func()) {
	w := m.begin(writeAwaited)
	return func() { m.end(w) }
}

// Ran is how long this process was seen to run. Only differences mean something; see
// pulse.
func (m *Meter) Ran() time.Duration { return m.pulse.now() }

// keep notes that entries of the log are on the disk now.
func (m *Meter) keep(first, last uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stored[m.at] = storedAt{first, last, time.Now()}
	m.at = (m.at + 1) % meterKept
}

// StoredSince is when that entry was on this disk; false when that is not known any
// more.
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

// spaceless notes that a write found no space and begins to wait for some, until the
// function that is returned is called. The disk answers, so none of the writes under
// way is stuck meanwhile.
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

// stuck is how long the oldest write under way has taken, of the time that this
// process ran, and without waiting for space; 0 for none.
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

// Behind is how long the oldest write has taken that keeps this node from confirming
// anything, whatever it waits for: such a node should not lead.
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

// Typical is what a write of the log takes at present, the median of the newest; 0
// when there were too few to tell.
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
