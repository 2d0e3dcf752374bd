package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

const (
	// mergeBytes is the size up to which batches share an entry. Bigger entries
	// delay heartbeats and commit fewer records a second.
	mergeBytes = 64 << 10
	// entriesInFlight lets one entry be stored by followers while the next is
	// written here. Entries cost as much as some hundred records, so a second one
	// below secondBytes waits for the first.
	entriesInFlight = 2
	secondBytes     = 4 << 10
	// An entry waits for fillPercent of what the callers have under way, mergeDelay
	// at the longest, or busyDelay when that is more than busyBytes: then callers
	// wait for processors, which fill the entry meanwhile.
	fillPercent  = 45
	mergeDelay   = time.Millisecond
	busyDelay    = 6 * time.Millisecond
	busyBytes    = 8 << 10
	callersDecay = 98
	// enqueueTimeout bounds how long Raft may take to accept an entry.
	enqueueTimeout = 5 * time.Second
)

// submission is a batch, a registration, or nothing but a clock, on its way into
// an entry.
type submission struct {
	batch     *batch
	register  *fsmpb.RegisterNode
	size      int
	exclusive bool // goes while the merger is held back
	// answer is called exactly once and must not block.
	answer func(*clusterpb.SubmitResponse)
}

func (s *submission) reply(r *clusterpb.SubmitResponse) {
	if s.batch != nil {
		r.Seq = s.batch.seq
	}
	s.answer(r)
}

func (s *submission) refuse(status clusterpb.SubmitStatus) {
	s.reply(&clusterpb.SubmitResponse{Status: status})
}

// applier is what the merger needs of Raft.
type applier interface {
	Apply(cmd []byte, timeout time.Duration) raft.ApplyFuture
}

// merger puts the batches of all nodes into Raft entries, on the leader. It
// answers from the future of the entry and from nothing else: that is what was
// applied after a majority had stored it.
type merger struct {
	raft     applier
	evidence func() (*fsmpb.Clock, *fsmpb.StateCheck)
	// registered tells whether that incarnation is the node's, after a
	// registration that changed nothing.
	registered func(node string, incarnation uint64) bool
	log        *slog.Logger
	maxBytes   int64
	metrics    *metrics

	mu      sync.Mutex
	changed sync.Cond
	open    bool
	held    bool
	yield   bool // what waited during a hold goes before the next one
	queue   []*submission
	bytes   int64
	// inFlightBytes is what the entries in flight hold; callers, see count.
	inFlightBytes, callers int64
	landedAt               time.Time
	alarm                  *time.Timer // ends the wait for more
	inFlight               int
	lost                   uint64 // entries whose outcome is unknown
	refusing               time.Time

	futures chan inFlightEntry
	quit    bool
	running sync.WaitGroup
}

type inFlightEntry struct {
	future raft.ApplyFuture
	parts  []*submission
	start  time.Time
}

func newMerger(m *merger) *merger {
	m.changed.L = &m.mu
	m.futures = make(chan inFlightEntry, entriesInFlight)
	m.running.Add(2)
	go m.merge()
	go m.resolve()
	return m
}

// setOpen starts and stops taking batches. What waits when it stops was never
// given to Raft, so it is refused rather than unknown.
func (m *merger) setOpen(open bool) {
	m.mu.Lock()
	m.open = open
	var refused []*submission
	if !open {
		refused, m.queue, m.bytes = m.queue, nil, 0
		m.refusing = time.Time{}
	}
	m.changed.Broadcast()
	m.mu.Unlock()
	for _, s := range refused {
		s.refuse(clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER)
	}
}

// close stops the merger and waits for the entries that Raft has, as long as
// ctx lasts.
func (m *merger) close(ctx context.Context) {
	m.setOpen(false)
	m.mu.Lock()
	m.quit = true
	m.changed.Broadcast()
	m.mu.Unlock()
	done := make(chan struct{})
	go func() {
		m.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// submit takes s or refuses it.
func (m *merger) submit(s *submission) {
	m.mu.Lock()
	status := clusterpb.SubmitStatus_SUBMIT_STATUS_UNSPECIFIED
	switch {
	case !m.open || m.quit:
		status = clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER
	case m.bytes+int64(s.size) > m.maxBytes && len(m.queue) > 0:
		status = clusterpb.SubmitStatus_SUBMIT_STATUS_OVERLOADED
	default:
		m.queue = append(m.queue, s)
		m.bytes += int64(s.size)
		if m.ready() {
			m.changed.Broadcast()
		}
	}
	m.mu.Unlock()
	if status != clusterpb.SubmitStatus_SUBMIT_STATUS_UNSPECIFIED {
		s.refuse(status)
	}
}

// take waits for what makes the next entry. nil ends the merger.
func (m *merger) take() []*submission {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		if m.quit {
			return nil
		}
		if m.ready() {
			if parts := m.next(); len(parts) > 0 {
				m.inFlight++
				m.inFlightBytes += sizeOfAll(parts)
				m.count()
				if m.yield && !m.held {
					m.yield = false
					m.changed.Broadcast()
				}
				return parts
			}
		}
		m.changed.Wait()
	}
}

// ready reports whether the next entry should go now. Alone, a request goes at
// once. Under load it pays to wait until about half of the present callers have
// sent their next request: many small entries cost more than few large ones, and
// two entries with half of the callers each keep disks and processors busy at
// the same time.
func (m *merger) ready() bool {
	switch {
	case m.held || len(m.queue) == 0:
		return m.inFlight < entriesInFlight
	case m.inFlight >= entriesInFlight:
		return false
	case m.inFlight > 0:
		return m.bytes >= max(secondBytes, m.callers*fillPercent/100)
	case m.bytes >= m.callers*fillPercent/100:
		return true
	}
	wait := mergeDelay
	if m.callers >= busyBytes {
		wait = busyDelay
	}
	if wait -= time.Since(m.landedAt); wait <= 0 {
		return true
	}
	if m.alarm == nil {
		m.alarm = time.AfterFunc(wait, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.alarm = nil
			m.changed.Broadcast()
		})
	}
	return false
}

// count follows how much the present callers have under way at a time: the most
// that was seen at once, forgotten slowly, entry by entry.
func (m *merger) count() {
	m.callers = max(m.callers*callersDecay/100, m.inFlightBytes+m.bytes)
}

// next removes from the queue what shares the next entry: batches up to the
// size, or one registration alone. While the merger is held back, only an
// exclusive batch goes.
func (m *merger) next() []*submission {
	if m.held {
		for i, s := range m.queue {
			if s.exclusive {
				m.queue = append(m.queue[:i:i], m.queue[i+1:]...)
				m.bytes -= int64(s.size)
				return []*submission{s}
			}
		}
		return nil
	}
	n, size := 0, 0
	for n < len(m.queue) {
		s := m.queue[n]
		if s.batch == nil || s.exclusive {
			if n == 0 {
				n = 1
			}
			break
		}
		if n > 0 && size+s.size > mergeBytes {
			break
		}
		size += s.size
		n++
	}
	parts := m.queue[:n:n]
	m.queue = m.queue[n:]
	if len(m.queue) == 0 {
		m.queue = nil
	}
	m.bytes -= sizeOfAll(parts)
	return parts
}

func (m *merger) merge() {
	defer m.running.Done()
	defer close(m.futures)
	for {
		parts := m.take()
		if parts == nil {
			return
		}
		data, err := m.encode(parts)
		if err != nil {
			// Each part was checked when it came, so this is a fault here; the
			// origins learn that nothing was taken.
			m.log.Error("encoding a Raft entry", "err", err)
			for _, s := range parts {
				s.refuse(clusterpb.SubmitStatus_SUBMIT_STATUS_OVERLOADED)
			}
			m.landed(parts, false)
			continue
		}
		m.futures <- inFlightEntry{m.raft.Apply(data, enqueueTimeout), parts, time.Now()}
	}
}

func (m *merger) encode(parts []*submission) ([]byte, error) {
	e := &fsmpb.Entry{}
	e.Clock, e.StateCheck = m.evidence()
	switch {
	case parts[0].register != nil:
		e.Command = &fsmpb.Entry_RegisterNode{RegisterNode: parts[0].register}
	case parts[0].batch != nil:
		batches := make([][]byte, len(parts))
		records := 0
		for i, s := range parts {
			batches[i] = s.batch.encoded
			records += s.batch.records
		}
		m.metrics.entryRecords.Observe(float64(records))
		return fsm.EncodeBatches(e, batches)
	}
	return fsm.EncodeEntry(e)
}

// resolve answers entries in order.
func (m *merger) resolve() {
	defer m.running.Done()
	for f := range m.futures {
		err := f.future.Error()
		var res *fsm.Result
		if err == nil {
			m.metrics.commit.Observe(time.Since(f.start).Seconds())
			switch r := f.future.Response().(type) {
			case *fsm.Result:
				res = r
			case error:
				err = r // this machine stopped; others may have applied it
			default:
				err = fmt.Errorf("apply answered %T", r)
			}
		}
		m.observe(err)
		// The place is free before the answers are given, so that what a waiting
		// node sends at once can go out at once.
		m.landed(f.parts, err != nil && !notTaken(err))
		m.answer(f.parts, res, err)
	}
}

func (m *merger) answer(parts []*submission, res *fsm.Result, err error) {
	for i, s := range parts {
		switch {
		case err != nil && notTaken(err):
			s.refuse(clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER)
		case err != nil:
			s.refuse(clusterpb.SubmitStatus_SUBMIT_STATUS_UNKNOWN)
		case s.register != nil:
			status := clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED
			if !res.Registered && !m.registered(s.register.Node, s.register.Incarnation) {
				status = clusterpb.SubmitStatus_SUBMIT_STATUS_FENCED
			}
			s.reply(&clusterpb.SubmitResponse{Status: status, Index: res.Index})
		case s.batch == nil:
			s.reply(&clusterpb.SubmitResponse{Status: clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED, Index: res.Index})
		default:
			s.reply(batchAnswer(res.Batches[i]))
		}
	}
}

func batchAnswer(r fsm.BatchResult) *clusterpb.SubmitResponse {
	a := &clusterpb.SubmitResponse{Index: r.Index, Status: clusterpb.SubmitStatus_SUBMIT_STATUS_FENCED}
	switch r.Status {
	case fsm.BatchApplied, fsm.BatchRepeated:
		a.Status = clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED
		a.RepeatedBatch = r.Status == fsm.BatchRepeated
		a.Verdicts = make([]byte, len(r.Verdicts))
		for i, v := range r.Verdicts {
			a.Verdicts[i] = byte(v)
		}
	}
	return a
}

// notTaken tells errors after which the entry is certainly in no log. After
// every other error it may yet be committed.
func notTaken(err error) bool {
	return errors.Is(err, raft.ErrNotLeader) ||
		errors.Is(err, raft.ErrLeadershipTransferInProgress) ||
		errors.Is(err, raft.ErrAbortedByRestore)
}

// landed frees an entry's place.
func (m *merger) landed(parts []*submission, lost bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.inFlight--
	m.count()
	m.landedAt = time.Now()
	m.inFlightBytes -= sizeOfAll(parts)
	if lost {
		m.lost++
	}
	m.changed.Broadcast()
}

// observe notes since when Raft refuses entries because of a transfer.
func (m *merger) observe(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case !errors.Is(err, raft.ErrLeadershipTransferInProgress):
		m.refusing = time.Time{}
	case m.refusing.IsZero():
		m.refusing = time.Now()
	}
}

// refusingSince is when Raft began to refuse every entry because of a leadership
// transfer; zero when it does not.
func (m *merger) refusingSince() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refusing
}

// hold keeps new entries back and waits until those in flight are applied. Then
// nothing changes the state, except what the holder submits, until release.
func (m *merger) hold(ctx context.Context) (release func(), err error) {
	stop := context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.changed.Broadcast()
	})
	defer stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.held || m.yield && len(m.queue) > 0 {
		if err := m.mayWait(ctx); err != nil {
			return nil, err
		}
		m.changed.Wait()
	}
	if err := m.mayWait(ctx); err != nil {
		return nil, err
	}
	m.held = true
	lost := m.lost
	for m.inFlight > 0 {
		m.changed.Wait()
		if err = m.mayWait(ctx); err != nil {
			break
		}
	}
	if err == nil && m.lost != lost {
		err = ErrNoLeader // an outcome is unknown: this is no newest state
	}
	if err != nil {
		m.held = false
		m.changed.Broadcast()
		return nil, err
	}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.held, m.yield = false, true
		m.changed.Broadcast()
	}, nil
}

func (m *merger) mayWait(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !m.open || m.quit {
		return ErrNotLeader
	}
	return nil
}

func sizeOfAll(parts []*submission) (n int64) {
	for _, s := range parts {
		n += int64(s.size)
	}
	return n
}
