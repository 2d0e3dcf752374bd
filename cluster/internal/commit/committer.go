package commit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
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
	// EnqueueTimeout bounds how long Raft may take to accept an entry.
	EnqueueTimeout = 5 * time.Second
)

// Raft is what a Committer needs of Raft.
type Raft interface {
	Apply(cmd []byte, timeout time.Duration) raft.ApplyFuture
}

// CommitterConfig is what a Committer needs of its node.
type CommitterConfig struct {
	Raft Raft
	// Evidence is the clock of the next entry, and the hash that it asks others to
	// compare, if any.
	Evidence func() (*fsmpb.Clock, *fsmpb.StateCheck)
	// Registered reports whether that incarnation is the node's, after a registration
	// that changed nothing.
	Registered func(node string, incarnation uint64) bool
	// Sign signs entries, which it can only while this node is unsealed. Initialised
	// reports whether they need it.
	Sign        func(encoded []byte) ([]byte, error)
	Initialised func() bool
	// StoredSince is when this node had an entry on its disk, before which nobody
	// else can have got it from here.
	StoredSince func(index uint64) (time.Time, bool)
	Log         *slog.Logger
	// MaxBytes bounds what waits for an entry.
	MaxBytes int64
	// EntryRecords observes the records in each entry, Commit the seconds until one is
	// applied.
	EntryRecords, Commit prometheus.Observer
}

// Committer puts the batches of all nodes into Raft entries, on the leader. It answers
// from the future of the entry and from nothing else: that is what was applied after a
// majority had stored it.
type Committer struct {
	cfg CommitterConfig

	mu      sync.Mutex
	changed sync.Cond
	open    bool
	held    bool
	yield   bool // what waited during a hold goes before the next one
	queue   []*Submission
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
	parts  []*Submission
	start  time.Time
}

// NewCommitter starts a Committer, which refuses everything until it is opened. Close
// ends it.
func NewCommitter(cfg CommitterConfig) *Committer {
	c := &Committer{cfg: cfg, futures: make(chan inFlightEntry, entriesInFlight)}
	c.changed.L = &c.mu
	c.running.Add(2)
	go c.merge()
	go c.resolve()
	return c
}

// SetOpen starts and stops taking batches. What waits when it stops was never
// given to Raft, so it is refused rather than unknown.
func (c *Committer) SetOpen(open bool) {
	c.mu.Lock()
	c.open = open
	var refused []*Submission
	if !open {
		refused, c.queue, c.bytes = c.queue, nil, 0
		c.refusing = time.Time{}
	}
	c.changed.Broadcast()
	c.mu.Unlock()
	for _, s := range refused {
		s.Refuse(clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER)
	}
}

// Close stops the Committer and waits for the entries that Raft has, as long as
// ctx lasts.
func (c *Committer) Close(ctx context.Context) {
	c.SetOpen(false)
	c.mu.Lock()
	c.quit = true
	c.changed.Broadcast()
	c.mu.Unlock()
	done := make(chan struct{})
	go func() {
		c.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Submit takes s or refuses it.
func (c *Committer) Submit(s *Submission) {
	c.mu.Lock()
	status := clusterpb.SubmitStatus_SUBMIT_STATUS_UNSPECIFIED
	switch {
	case !c.open || c.quit:
		status = clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER
	case c.bytes+int64(s.Size) > c.cfg.MaxBytes && len(c.queue) > 0:
		status = clusterpb.SubmitStatus_SUBMIT_STATUS_OVERLOADED
	default:
		s.received = time.Now()
		c.queue = append(c.queue, s)
		c.bytes += int64(s.Size)
		if c.ready() {
			c.changed.Broadcast()
		}
	}
	c.mu.Unlock()
	if status != clusterpb.SubmitStatus_SUBMIT_STATUS_UNSPECIFIED {
		s.Refuse(status)
	}
}

// take waits for what makes the next entry. nil ends the Committer.
func (c *Committer) take() []*Submission {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.quit {
			return nil
		}
		if c.ready() {
			if parts := c.next(); len(parts) > 0 {
				c.inFlight++
				c.inFlightBytes += sizeOfAll(parts)
				c.count()
				if c.yield && !c.held {
					c.yield = false
					c.changed.Broadcast()
				}
				return parts
			}
		}
		c.changed.Wait()
	}
}

// ready reports whether the next entry should go now. Alone, a request goes at
// once. Under load it pays to wait until about half of the present callers have
// sent their next request: many small entries cost more than few large ones, and
// two entries with half of the callers each keep disks and processors busy at
// the same time.
func (c *Committer) ready() bool {
	switch {
	case c.held || len(c.queue) == 0:
		return c.inFlight < entriesInFlight
	case c.inFlight >= entriesInFlight:
		return false
	case c.inFlight > 0:
		return c.bytes >= max(secondBytes, c.callers*fillPercent/100)
	case c.bytes >= c.callers*fillPercent/100:
		return true
	}
	wait := mergeDelay
	if c.callers >= busyBytes {
		wait = busyDelay
	}
	if wait -= time.Since(c.landedAt); wait <= 0 {
		return true
	}
	if c.alarm == nil {
		c.alarm = time.AfterFunc(wait, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.alarm = nil
			c.changed.Broadcast()
		})
	}
	return false
}

// count follows how much the present callers have under way at a time: the most
// that was seen at once, forgotten slowly, entry by entry.
func (c *Committer) count() {
	c.callers = max(c.callers*callersDecay/100, c.inFlightBytes+c.bytes)
}

// next removes from the queue what shares the next entry: batches up to the
// size, or one registration alone. While the Committer is held back, only an
// exclusive batch goes.
func (c *Committer) next() []*Submission {
	if c.held {
		for i, s := range c.queue {
			if s.exclusive {
				c.queue = append(c.queue[:i:i], c.queue[i+1:]...)
				c.bytes -= int64(s.Size)
				return []*Submission{s}
			}
		}
		return nil
	}
	n, size := 0, 0
	for n < len(c.queue) {
		s := c.queue[n]
		if s.Batch == nil || s.exclusive {
			if n == 0 {
				n = 1
			}
			break
		}
		if n > 0 && size+s.Size > mergeBytes {
			break
		}
		size += s.Size
		n++
	}
	parts := c.queue[:n:n]
	c.queue = c.queue[n:]
	if len(c.queue) == 0 {
		c.queue = nil
	}
	c.bytes -= sizeOfAll(parts)
	return parts
}

func (c *Committer) merge() {
	defer c.running.Done()
	defer close(c.futures)
	for {
		parts := c.take()
		if parts == nil {
			return
		}
		data, err := c.encode(parts)
		if errors.Is(err, ErrSealed) {
			// Sealed by now. Another node will lead, and the Proposers ask again.
			for _, s := range parts {
				s.Refuse(clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER)
			}
			c.landed(parts, false)
			continue
		}
		if err != nil {
			// Each part was checked when it came, so this is a fault here; the
			// Proposers learn that nothing was taken.
			c.cfg.Log.Error("encoding a Raft entry", "err", err)
			for _, s := range parts {
				s.Refuse(clusterpb.SubmitStatus_SUBMIT_STATUS_OVERLOADED)
			}
			c.landed(parts, false)
			continue
		}
		c.futures <- inFlightEntry{c.cfg.Raft.Apply(data, EnqueueTimeout), parts, time.Now()}
	}
}

// encode makes the entry of some submissions, signed. A sealed leader of an initialised
// cluster can only tell the time.
func (c *Committer) encode(parts []*Submission) ([]byte, error) {
	data, err := c.unsigned(parts)
	if err != nil {
		return nil, err
	}
	signed, err := c.cfg.Sign(data)
	if err == nil {
		return signed, nil
	}
	if c.cfg.Initialised() && (parts[0].Register != nil || parts[0].Batch != nil) {
		return nil, fmt.Errorf("%w: %w", ErrSealed, err)
	}
	return data, nil
}

func (c *Committer) unsigned(parts []*Submission) ([]byte, error) {
	e := &fsmpb.Entry{}
	e.Clock, e.StateCheck = c.cfg.Evidence()
	switch {
	case parts[0].Register != nil:
		e.Command = &fsmpb.Entry_RegisterNode{RegisterNode: parts[0].Register}
	case parts[0].Batch != nil:
		batches := make([][]byte, len(parts))
		records := 0
		for i, s := range parts {
			batches[i] = s.Batch.Encoded
			records += s.Batch.Records
		}
		c.cfg.EntryRecords.Observe(float64(records))
		return wire.EncodeBatches(e, batches)
	}
	return wire.EncodeEntry(e)
}

// resolve answers entries in order.
func (c *Committer) resolve() {
	defer c.running.Done()
	for f := range c.futures {
		err := f.future.Error()
		var res *fsm.Result
		if err == nil {
			c.cfg.Commit.Observe(time.Since(f.start).Seconds())
			switch r := f.future.Response().(type) {
			case *fsm.Result:
				res = r
			case error:
				err = r // this machine stopped; others may have applied it
			default:
				err = fmt.Errorf("apply answered %T", r)
			}
		}
		c.Observe(err)
		// The place is free before the answers are given, so that what a waiting
		// node sends at once can go out at once.
		c.landed(f.parts, err != nil && !notTaken(err))
		c.answer(f.parts, res, err)
	}
}

func (c *Committer) answer(parts []*Submission, res *fsm.Result, err error) {
	for i, s := range parts {
		switch {
		case err != nil && notTaken(err):
			s.Refuse(clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER)
		case err != nil:
			s.Refuse(clusterpb.SubmitStatus_SUBMIT_STATUS_UNKNOWN)
		case s.Register != nil && res.Unsigned:
			s.Refuse(clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER)
		case s.Register != nil:
			status := clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED
			if !res.Registered && !c.cfg.Registered(s.Register.Node, s.Register.Incarnation) {
				status = clusterpb.SubmitStatus_SUBMIT_STATUS_FENCED
			}
			s.reply(&clusterpb.SubmitResponse{Status: status, Index: res.Index})
		case s.Batch == nil:
			s.reply(&clusterpb.SubmitResponse{Status: clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED, Index: res.Index})
		default:
			a := batchAnswer(res.Batches[i])
			if at, ok := c.cfg.StoredSince(a.Index); ok {
				a.Waited = int64(max(0, at.Sub(s.received)))
			}
			s.reply(a)
		}
	}
}

func batchAnswer(r fsm.BatchResult) *clusterpb.SubmitResponse {
	a := &clusterpb.SubmitResponse{Index: r.Index, Status: clusterpb.SubmitStatus_SUBMIT_STATUS_FENCED}
	switch r.Status {
	case fsm.BatchUnsigned: // certainly not applied
		a.Status = clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER
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
func (c *Committer) landed(parts []*Submission, lost bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFlight--
	c.count()
	c.landedAt = time.Now()
	c.inFlightBytes -= sizeOfAll(parts)
	if lost {
		c.lost++
	}
	c.changed.Broadcast()
}

// Observe takes over what Raft said of an entry: it notes since when Raft refuses entries because of a transfer.
func (c *Committer) Observe(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !errors.Is(err, raft.ErrLeadershipTransferInProgress):
		c.refusing = time.Time{}
	case c.refusing.IsZero():
		c.refusing = time.Now()
	}
}

// RefusingSince is when Raft began to refuse every entry because of a leadership
// transfer; zero when it does not.
func (c *Committer) RefusingSince() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refusing
}

// Hold keeps new entries back and waits until those in flight are applied. Then
// nothing changes the state, except what the holder submits, until release.
func (c *Committer) Hold(ctx context.Context) (release func(), err error) {
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changed.Broadcast()
	})
	defer stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.held || c.yield && len(c.queue) > 0 {
		if err := c.mayWait(ctx); err != nil {
			return nil, err
		}
		c.changed.Wait()
	}
	if err := c.mayWait(ctx); err != nil {
		return nil, err
	}
	c.held = true
	lost := c.lost
	for c.inFlight > 0 {
		c.changed.Wait()
		if err = c.mayWait(ctx); err != nil {
			break
		}
	}
	if err == nil && c.lost != lost {
		err = fsm.ErrNoLeader // an outcome is unknown: this is no newest state
	}
	if err != nil {
		c.held = false
		c.changed.Broadcast()
		return nil, err
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.held, c.yield = false, true
		c.changed.Broadcast()
	}, nil
}

func (c *Committer) mayWait(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !c.open || c.quit {
		return ErrNotLeader
	}
	return nil
}

func sizeOfAll(parts []*Submission) (n int64) {
	for _, s := range parts {
		n += int64(s.Size)
	}
	return n
}
