package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

const (
	batchDelay = 2 * time.Millisecond
	// gatherDelay is how long a node under load waits for the requests that the
	// last answers set free before it sends the first of them.
	gatherDelay     = 300 * time.Microsecond
	batchBytes      = 64 << 10
	batchesInFlight = 4
	minBackoff      = 5 * time.Millisecond
	maxBackoff      = 50 * time.Millisecond
)

// proposal is one record, or a barrier without one, on its way.
type proposal struct {
	record    []byte // encoded; nil for a barrier
	size      int
	exclusive bool
	queued    time.Time
	state     atomic.Uint32
	done      chan outcome // buffered: whoever waits may have left
	answered  bool         // by the origin
}

// answer gives the proposal its outcome, unless it has one.
func (p *proposal) answer(out outcome) {
	if !p.answered {
		p.answered = true
		p.done <- out
	}
}

// States of a proposal. Whoever moves it out of waiting owns what happens next.
const (
	proposalWaiting uint32 = iota
	proposalTaken          // in a batch: from here on the outcome is awaited
	proposalGone           // its caller left before it was taken
)

type outcome struct {
	verdict fsm.Decision
	err     error
}

// sentBatch is a batch without its answer.
type sentBatch struct {
	seq       uint64
	records   [][]byte // encoded, of the proposals that have one
	proposals []*proposal
	exclusive bool
	due       time.Time // when the first of its proposals has waited too long
	firstSend time.Time
	lastSend  time.Time // on the present link
	sends     int
	// out says that the last send has no answer; unknown, that an earlier one
	// never got one. With neither, the batch is certainly in no log.
	out, unknown bool
}

// link is a way to the leader. Everything sent on it is answered through the
// function it was opened with, or not at all.
type link interface {
	// send must not block.
	send(*submission)
	// leader is the node at the other end.
	leader() string
	close()
}

// answered is an answer that came over the link of that epoch.
type answered struct {
	epoch    uint64
	response *clusterpb.SubmitResponse
}

// What a link that ended says of itself instead of an answer.
var (
	linkBroke       = &clusterpb.SubmitResponse{}
	linkNeverOpened = &clusterpb.SubmitResponse{} // so nothing that was sent left this node
)

// origin turns this node's records into batches and brings them to the leader
// until each has its answer. One goroutine owns all of its state but the
// counters.
type origin struct {
	node        string
	incarnation uint64
	timeouts    Timeouts
	maxRecords  int64
	maxBytes    int64
	metrics     *metrics
	// dial opens a link to the leader, if there is one.
	dial func(answer func(*clusterpb.SubmitResponse)) link
	// moved says that the leader is another than the link's, or not known.
	moved     func(leader string) bool
	register  func() *fsmpb.RegisterNode
	watermark func() uint64
	// fenced is told that a newer incarnation of the node exists.
	fenced func(error)

	in    *intake
	wake  chan struct{} // the leader may have changed
	stop  chan struct{}
	done  chan struct{}
	ready atomic.Pointer[string] // the leader, when linked and registered

	draining atomic.Bool   // takes nothing new
	idle     chan struct{} // closed when nothing is left, while draining

	waitingRecords atomic.Int64
	waitingBytes   atomic.Int64
	inFlight       atomic.Int64

	answersMu sync.Mutex
	answers   []answered
	answered  chan struct{}

	// Owned by run.
	waiting     []*proposal
	want        int // proposals, or bytes of them, that step has use for
	wantBytes   int
	nextExpiry  time.Time
	unsettled   []*sentBatch // by seq
	nextSeq     uint64
	lastSettled int // records in the batch that was answered last
	link        link
	epoch       uint64
	registered  bool // on this link
	backoff     time.Duration
	retryAt     time.Time
}

func newOrigin(o *origin) *origin {
	o.in = newIntake()
	o.answered = make(chan struct{}, 1)
	o.wake = make(chan struct{}, 1)
	o.stop = make(chan struct{})
	o.idle = make(chan struct{})
	o.done = make(chan struct{})
	o.nextSeq = 1
	go o.run()
	return o
}

// poke makes the origin look at who leads.
func (o *origin) poke() { signal(o.wake) }

// propose brings one record to its outcome.
func (o *origin) propose(ctx context.Context, p *proposal) (fsm.Decision, error) {
	if err := ctx.Err(); err != nil {
		return fsm.Decision{}, err
	}
	p.done = make(chan outcome, 1)
	p.queued = time.Now()
	records, bytes := o.waitingRecords.Add(1), o.waitingBytes.Add(int64(p.size))
	if records > o.maxRecords || bytes > o.maxBytes {
		o.release(p)
		return fsm.Decision{}, ErrOverloaded
	}
	if !o.in.put(p) {
		o.release(p)
		return fsm.Decision{}, ErrShutdown
	}
	select {
	case out := <-p.done:
		return out.verdict, out.err
	case <-ctx.Done():
		if p.state.CompareAndSwap(proposalWaiting, proposalGone) {
			return fsm.Decision{}, ctx.Err()
		}
	}
	// Submitted: whatever ctx says, the outcome is what counts now. The origin
	// answers within Timeouts.Outcome.
	out := <-p.done
	return out.verdict, out.err
}

// release gives back what propose took of the limits.
func (o *origin) release(p *proposal) {
	o.waitingRecords.Add(-1)
	o.waitingBytes.Add(-int64(p.size))
}

// drain refuses what is not submitted yet and waits for the outcome of what is,
// as long as ctx lasts.
func (o *origin) drain(ctx context.Context) {
	o.draining.Store(true)
	o.poke()
	select {
	case <-o.idle:
	case <-ctx.Done():
	}
}

func (o *origin) close() {
	close(o.stop)
	<-o.done
}

func (o *origin) run() {
	defer close(o.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		o.take(o.in.take())
		timer.Reset(o.step(time.Now()))
		o.in.expect(o.want, o.wantBytes)
		select {
		case <-o.in.arrived:
		case <-o.answered:
			o.answersMu.Lock()
			list := o.answers
			o.answers = nil
			o.answersMu.Unlock()
			for _, a := range list {
				o.answer(a)
			}
		case <-o.wake:
			if o.link != nil && o.moved(o.link.leader()) {
				o.unlink(false)
			}
			o.retryAt = time.Time{}
		case <-timer.C:
		case <-o.stop:
			o.shutdown()
			return
		}
	}
}

// take queues proposals. An exclusive one comes first: others may not move before
// it.
func (o *origin) take(arrived []*proposal) {
	for _, p := range arrived {
		if p.exclusive {
			o.waiting = slices.Insert(o.waiting, 0, p)
		} else {
			o.waiting = append(o.waiting, p)
		}
	}
}

// deliver takes an answer without blocking whoever brings it, which may be this
// origin itself when the local merger refuses at once.
func (o *origin) deliver(a answered) {
	o.answersMu.Lock()
	o.answers = append(o.answers, a)
	o.answersMu.Unlock()
	signal(o.answered)
}

func (o *origin) shutdown() {
	if o.link != nil {
		o.unlink(false)
	}
	for _, b := range o.unsettled {
		for _, p := range b.proposals {
			p.answer(outcome{err: ErrOutcomeUnknown})
		}
	}
	o.in.close()
	o.take(o.in.take())
	o.refuseWaiting()
}

func (o *origin) refuseWaiting() {
	for _, p := range o.waiting {
		o.release(p)
		if p.state.CompareAndSwap(proposalWaiting, proposalTaken) {
			p.answer(outcome{err: ErrShutdown})
		}
	}
	o.waiting = nil
}

// step does what can be done now and says when to come back at the latest.
func (o *origin) step(now time.Time) time.Duration {
	o.want, o.wantBytes = 1, 0
	next := now.Add(time.Second)
	at := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	if o.draining.Load() {
		o.refuseWaiting()
		if len(o.unsettled) == 0 {
			select {
			case <-o.idle:
			default:
				close(o.idle)
			}
		}
	}
	o.expire(now)
	for _, b := range o.unsettled {
		o.giveUp(b, now)
		at(b.due)
	}
	if len(o.waiting) > 0 && now.Before(o.nextExpiry) {
		at(o.nextExpiry) // past, it would keep this loop spinning
	}
	if len(o.unsettled) > 0 && o.link == nil {
		at(now.Add(50 * time.Millisecond))
	}
	if o.link == nil {
		if now.Before(o.retryAt) {
			at(o.retryAt)
			return next.Sub(now)
		}
		if o.connect(now); o.link == nil {
			at(o.retryAt)
			return next.Sub(now)
		}
	}
	if len(o.unsettled) > 0 {
		// An answer that does not come may be lost: ask on a new link.
		if due := o.oldestSend().Add(o.timeouts.Resubmit); !now.Before(due) {
			o.unlink(true)
			at(o.retryAt)
			return next.Sub(now)
		} else {
			at(due)
		}
	}
	if o.registered {
		if wait, more := o.form(now); more {
			at(now.Add(wait))
		}
	}
	return max(next.Sub(now), 0)
}

// expire gives up on proposals that found no leader in time, and forgets those
// whose callers left.
func (o *origin) expire(now time.Time) {
	if o.link == nil {
		o.withdraw(now)
	}
	if now.Before(o.nextExpiry) || o.link != nil && o.registered && len(o.unsettled) < batchesInFlight {
		return // looked a moment ago, or they are about to go
	}
	o.nextExpiry = now.Add(50 * time.Millisecond)
	keep := o.waiting[:0]
	for _, p := range o.waiting {
		switch {
		case p.state.Load() == proposalGone:
			o.release(p)
		case now.Sub(p.queued) < min(o.timeouts.LeaderWait, o.timeouts.Outcome):
			keep = append(keep, p)
		case p.state.CompareAndSwap(proposalWaiting, proposalTaken):
			o.release(p)
			err := ErrNoLeader
			if o.registered && now.Sub(p.queued) >= o.timeouts.LeaderWait {
				err = ErrOverloaded
			}
			p.answer(outcome{err: err})
		default:
			o.release(p)
		}
	}
	clear(o.waiting[len(keep):])
	o.waiting = keep
}

// giveUp tells the callers of a batch that has had no answer for too long. The
// batch is still brought to its answer.
func (o *origin) giveUp(b *sentBatch, now time.Time) {
	if now.Before(b.due) {
		return
	}
	b.due = now.Add(o.timeouts.Outcome)
	for _, p := range b.proposals {
		if due := p.queued.Add(o.timeouts.Outcome); !due.After(now) {
			p.answer(outcome{err: ErrOutcomeUnknown})
		} else if due.Before(b.due) {
			b.due = due
		}
	}
}

// withdraw gives up, likewise, on batches of which nobody has taken a copy. Their
// numbers are not used again.
func (o *origin) withdraw(now time.Time) {
	o.unsettled = slices.DeleteFunc(o.unsettled, func(b *sentBatch) bool {
		if b.out || b.unknown || now.Sub(b.proposals[0].queued) < o.timeouts.LeaderWait {
			return false
		}
		for _, p := range b.proposals {
			p.answer(outcome{err: ErrNoLeader})
		}
		return true
	})
	o.inFlight.Store(int64(len(o.unsettled)))
}

// connect opens a link and sends what has no answer yet, oldest first. A new
// link registers the incarnation first, unless it has a batch: that was sent
// only after the registration was applied.
func (o *origin) connect(now time.Time) {
	o.epoch++
	epoch := o.epoch
	o.link = o.dial(func(r *clusterpb.SubmitResponse) { o.deliver(answered{epoch, r}) })
	if o.link == nil {
		o.delay(now)
		return
	}
	if o.nextSeq == 1 {
		o.registered = false
		o.link.send(&submission{register: o.register(), size: 256})
		return
	}
	o.linked()
	for _, b := range o.unsettled {
		o.send(b)
	}
}

func (o *origin) linked() {
	o.registered = true
	leader := o.link.leader()
	o.ready.Store(&leader)
}

// unlink leaves the link; backoff delays the next.
func (o *origin) unlink(backoff bool) {
	o.link.close()
	o.link = nil
	for _, b := range o.unsettled {
		b.unknown = b.unknown || b.out
		b.out = false
	}
	o.registered = false
	o.ready.Store(nil)
	o.epoch++
	if backoff {
		o.delay(time.Now())
	}
}

func (o *origin) delay(now time.Time) {
	o.backoff = min(max(2*o.backoff, minBackoff), maxBackoff)
	o.retryAt = now.Add(o.backoff/2 + rand.N(o.backoff/2+1))
}

func (o *origin) oldestSend() time.Time {
	oldest := o.unsettled[0].lastSend
	for _, b := range o.unsettled[1:] {
		if b.lastSend.Before(oldest) {
			oldest = b.lastSend
		}
	}
	return oldest
}

func (o *origin) answer(a answered) {
	if a.epoch != o.epoch || o.link == nil {
		return // of a link that was left: the batch was or will be sent again
	}
	r := a.response
	switch r {
	case linkNeverOpened:
		for _, b := range o.unsettled {
			b.out = false
		}
		o.unlink(true)
		return
	case linkBroke:
		o.unlink(true)
		return
	}
	switch r.Status {
	case clusterpb.SubmitStatus_SUBMIT_STATUS_APPLIED:
		o.backoff = 0
		if r.Seq == 0 {
			o.linked()
			return
		}
		o.settle(r)
	case clusterpb.SubmitStatus_SUBMIT_STATUS_FENCED:
		if r.Seq == 0 || o.find(r.Seq) >= 0 {
			o.unlink(true)
			o.fenced(fmt.Errorf("%w: incarnation %d", ErrIncarnation, o.incarnation))
		}
	case clusterpb.SubmitStatus_SUBMIT_STATUS_NOT_LEADER, clusterpb.SubmitStatus_SUBMIT_STATUS_OVERLOADED:
		if i := o.find(r.Seq); i >= 0 {
			o.unsettled[i].out = false
		}
		o.unlink(true)
	default: // unknown: the same batch again, to whoever leads
		o.unlink(true)
	}
}

func (o *origin) find(seq uint64) int {
	return slices.IndexFunc(o.unsettled, func(b *sentBatch) bool { return b.seq == seq })
}

// settle gives a batch's verdicts to its callers.
func (o *origin) settle(r *clusterpb.SubmitResponse) {
	i := o.find(r.Seq)
	if i < 0 {
		return
	}
	b := o.unsettled[i]
	if len(r.Verdicts) != len(b.records) {
		// No leader that follows the protocol answers so; it must not be believed.
		o.unlink(true)
		return
	}
	o.unsettled = slices.Delete(o.unsettled, i, i+1)
	o.inFlight.Store(int64(len(o.unsettled)))
	o.lastSettled = len(b.records)
	// The commit lies after the send that was answered, or, for a repeated
	// batch, after any earlier one.
	since := b.lastSend
	if r.RepeatedBatch {
		since = b.firstSend
	}
	late := time.Since(since) > o.timeouts.Release
	next := 0
	for _, p := range b.proposals {
		v := fsm.Decision{Verdict: fsm.Accepted, Index: r.Index, Late: late}
		if p.record != nil {
			v.Verdict = fsm.Verdict(r.Verdicts[next])
			next++
		}
		p.answer(outcome{verdict: v})
	}
}

// newProposal checks a record and encodes it.
func newProposal(r *fsmpb.Record) (*proposal, error) {
	encoded, err := encodeRecord(r)
	if err != nil {
		return nil, err
	}
	return &proposal{record: encoded, size: len(encoded) + 4}, nil
}
