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
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/fsm/wire"
)

const (
	// mergeBytes is the size up to which batches share an entry: some 130 records of usual
	// requests. Much larger entries delay heartbeats and commit fewer records per second.
	mergeBytes = 128 << 10
	// entriesInFlight is 2 so that one entry is stored by the followers while the next is
	// written on the leader. An entry costs as much as some hundred records, so a second
	// one smaller than secondBytes waits for the first.
	entriesInFlight = 2
	secondBytes     = 4 << 10
	// An entry waits for fillPercent of what the callers have in flight, for mergeDelay at
	// the most, or for busyDelay if they have more than busyBytes in flight. In that case
	// they compete for the processors, and more of them get to fill the entry.
	fillPercent  = 45
	mergeDelay   = time.Millisecond
	busyDelay    = 6 * time.Millisecond
	busyBytes    = 8 << 10
	callersDecay = 98
	// EnqueueTimeout bounds the time that Raft may take to accept an entry.
	EnqueueTimeout = 5 * time.Second
)

// Raft is the part of Raft that a Committer uses.
type Raft interface {
	Apply(cmd []byte, timeout time.Duration) raft.ApplyFuture
}

// CommitterConfig configures a Committer.
type CommitterConfig struct {
	Raft Raft
	// Evidence returns the clock of the next entry, and the state hash that the entry asks
	// the other nodes to compare, or nil.
	Evidence func() (*fsmpb.Clock, *fsmpb.StateCheck)
	// Level returns the cluster's feature level, as far as this node has applied the log.
	Level func() uint32
	// Known are the schemas that this node's release knows.
	Known level.Range
	// Registered reports whether the incarnation is the newest of the node. It is called
	// after a registration that changed nothing.
	Registered func(node string, incarnation uint64) bool
	// Sign signs entries, which works only while this node is unsealed. Initialised reports
	// whether entries must be signed.
	Sign        func(encoded []byte) ([]byte, error)
	Initialised func() bool
	// StoredSince returns when this node stored an entry on its disk. No other node can
	// have received the entry before.
	StoredSince func(index uint64) (time.Time, bool)
	Log         *slog.Logger
	// MaxBytes bounds the batches that wait for an entry.
	MaxBytes int64
	// EntryRecords observes the number of records in each entry, and Commit the seconds
	// until an entry is applied.
	EntryRecords, Commit prometheus.Observer
}

// Committer puts the batches of all nodes into Raft entries, on the leader. Its answers
// come only from the future of the entry, that is, from what was applied after a majority
// had stored the entry.
type Committer struct {
	cfg CommitterConfig

	mu      sync.Mutex
	changed sync.Cond
	open    bool
	held    bool
	yield   bool // batches that waited during a hold go before the next hold
	queue   []*Submission
	bytes   int64
	// inFlightBytes is the size of the entries in flight; for callers see count.
	inFlightBytes, callers int64
	landedAt               time.Time
	alarm                  *time.Timer // ends the wait for more batches
	inFlight               int
	lost                   uint64 // counts entries whose outcome is unknown
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

// NewCommitter starts a Committer, which refuses everything until it is opened. Close stops
// it.
func NewCommitter(cfg CommitterConfig) *Committer {
	c := &Committer{cfg: cfg, futures: make(chan inFlightEntry, entriesInFlight)}
	c.changed.L = &c.mu
	c.running.Add(2)
	go c.merge()
	go c.resolve()
	return c
}

// SetOpen sets whether the Committer accepts batches. Waiting batches were never given to
// Raft, so when it closes they are refused, and their outcome is not unknown.
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

// Close stops the Committer and waits, until ctx ends, for the entries that Raft has.
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

// Submit queues s or refuses it.
func (c *Committer) Submit(s *Submission) {
	c.mu.Lock()
	status := clusterpb.SubmitStatus_SUBMIT_STATUS_UNSPECIFIED
	switch {
	case !c.open || c.quit:
		status = clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER
	case s.Batch != nil && (s.Batch.Needed > c.cfg.Level() || s.Batch.Raised > c.cfg.Known.Newest):
		// Nodes would stop at such an entry. If the other node has applied what raised the
		// level and this one has not yet, the batch comes again.
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

// take waits for the batches of the next entry. It returns nil when the Committer has been
// closed.
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

// ready reports whether the next entry should be proposed now. A single request goes at
// once. Under load it pays to wait until about half of the current callers have sent their
// next request: many small entries cost more than a few large ones, and two entries with
// half of the callers each keep the disks and the processors busy at the same time.
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

// count estimates how much the current callers have in flight at a time: the maximum seen,
// which decays slowly from entry to entry.
func (c *Committer) count() {
	c.callers = max(c.callers*callersDecay/100, c.inFlightBytes+c.bytes)
}

// next removes the batches of the next entry from the queue: batches up to the maximum
// size, or a single registration. While the Committer is held, only an exclusive batch
// goes.
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
			// The node has been sealed in the meantime. Another node will lead, and the
			// Proposers try again.
			for _, s := range parts {
				s.Refuse(clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER)
			}
			c.landed(parts, false)
			continue
		}
		if err != nil {
			// Each part was checked when it arrived, so this is a bug. The Proposers are
			// told that nothing was taken.
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

// encode returns the signed entry of some submissions. On a sealed leader of an initialised
// cluster, an entry can only carry the time.
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
	e := &fsmpb.Entry{Schema: c.cfg.Level()}
	e.Clock, e.StateCheck = c.cfg.Evidence()
	switch {
	case parts[0].Register != nil:
		e.Command = &fsmpb.Entry_RegisterNode{RegisterNode: parts[0].Register}
	case parts[0].Batch != nil:
		batches := make([][]byte, len(parts))
		records := 0
		for i, s := range parts {
			batches[i] = s.Batch.Encoded
			e.Schema = max(e.Schema, s.Batch.Raised)
			records += s.Batch.Records
		}
		c.cfg.EntryRecords.Observe(float64(records))
		return wire.EncodeBatches(e, batches)
	}
	return wire.EncodeEntry(e)
}

// resolve answers the submissions in each entry, in order.
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
				err = r // this node has stopped; others may have applied the entry
			default:
				err = fmt.Errorf("apply answered %T", r)
			}
		}
		c.Observe(err)
		// The place is freed before the answers are given, so that what a waiting node
		// sends next can be proposed at once.
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
		a.FirstRecord = r.First
		a.Verdicts = make([]byte, len(r.Verdicts))
		for i, v := range r.Verdicts {
			a.Verdicts[i] = byte(v)
		}
	}
	return a
}

// notTaken reports whether the error means that the entry is certainly in no log. After any
// other error it may still be committed.
func notTaken(err error) bool {
	return errors.Is(err, raft.ErrNotLeader) ||
		errors.Is(err, raft.ErrLeadershipTransferInProgress) ||
		errors.Is(err, raft.ErrAbortedByRestore)
}

// landed frees the place of an entry.
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

// Observe records the error that Raft returned for an entry, to track since when Raft
// refuses entries because of a leadership transfer.
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

// RefusingSince returns when Raft began to refuse all entries because of a leadership
// transfer, or the zero time if it does not.
func (c *Committer) RefusingSince() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refusing
}

// Hold stops new entries and waits until those in flight have been applied. Until release
// is called, only what the holder submits can change the state.
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
		err = fsm.ErrNoLeader // an outcome is unknown, so the state may not be the newest
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
