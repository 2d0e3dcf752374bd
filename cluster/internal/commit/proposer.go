package commit

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/signal"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

const (
	batchDelay = 2 * time.Millisecond
	// gatherDelay is how long a node under load waits, before it sends a batch, for the
	// requests that follow the last answers.
	gatherDelay = 300 * time.Microsecond
	batchBytes  = 128 << 10
	// BatchesInFlight is how many batches of a Proposer may be unanswered.
	BatchesInFlight = 4
	// MinBackoff and MaxBackoff bound the delay between two attempts to reach a leader.
	MinBackoff = 5 * time.Millisecond
	MaxBackoff = 50 * time.Millisecond
)

// Timeouts are the timeouts of a Proposer; see cluster.Timeouts.
type Timeouts struct {
	Resubmit, LeaderWait, Outcome, Release time.Duration
}

// ProposerConfig configures a Proposer.
type ProposerConfig struct {
	Node        string
	Incarnation uint64
	Timeouts    Timeouts
	// MaxRecords and MaxBytes bound the records that wait to be submitted.
	MaxRecords, MaxBytes int64
	// Resubmitted counts the batches that were sent again.
	Resubmitted prometheus.Counter
	// Dial opens a link to the leader, or returns nil if there is none.
	Dial func(answer func(*clusterpb.SubmitResponse)) Link
	// Moved reports whether the leader is not known or is not the given node.
	Moved func(leader string) bool
	// Register returns the registration of this incarnation.
	Register func() *fsmpb.RegisterNode
	// Powerless reports whether the node is sealed, in which case nothing can be submitted.
	// MAC authenticates submissions; kind is MACBatch or MACRegistration.
	Powerless func() bool
	MAC       func(kind string, encoded []byte) (generation uint32, mac []byte, err error)
	// Watermark returns the index of the node's state.
	Watermark func() uint64
	// Level returns the cluster's feature level, as far as this node has applied the log.
	Level func() uint32
	// Fenced is called when a newer incarnation of the node exists.
	Fenced func(error)
}

// Kinds of messages that are authenticated with a MAC.
const (
	MACBatch        = "conclave batch v1\x00"
	MACRegistration = "conclave registration v1\x00"
)

// Proposer turns this node's records into batches and submits them to the leader until each
// has been answered. One goroutine owns all of its state except the counters.
type Proposer struct {
	cfg ProposerConfig

	in    *queue
	wake  chan struct{} // the leader may have changed
	stop  chan struct{}
	done  chan struct{}
	ready atomic.Pointer[string] // the leader, once linked and registered

	draining atomic.Bool   // it accepts nothing new
	idle     chan struct{} // closed when nothing is left, while draining

	waitingRecords atomic.Int64
	waitingBytes   atomic.Int64
	inFlight       atomic.Int64

	answersMu sync.Mutex
	answers   []answered
	answered  chan struct{}

	// The fields below are owned by run.
	waiting     []*proposal
	want        int // how many proposals, or bytes of them, step can use
	wantBytes   int
	nextExpiry  time.Time
	unsettled   []*sentBatch // by seq
	nextSeq     uint64
	lastSettled int // records in the batch that was answered last
	link        Link
	epoch       uint64
	registered  bool // on the current link
	backoff     time.Duration
	retryAt     time.Time
}

// NewProposer starts a Proposer. Close stops it.
func NewProposer(cfg ProposerConfig) *Proposer {
	pr := &Proposer{
		cfg: cfg, in: newQueue(),
		answered: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		stop: make(chan struct{}), idle: make(chan struct{}), done: make(chan struct{}),
		nextSeq: 1,
	}
	go pr.run()
	return pr
}

// Leader returns the node with which this Proposer has a link and is registered, or "".
func (pr *Proposer) Leader() string {
	if l := pr.ready.Load(); l != nil {
		return *l
	}
	return ""
}

// InFlight returns the number of unanswered batches.
func (pr *Proposer) InFlight() int64 { return pr.inFlight.Load() }

// Waiting returns the number of records that have not been submitted yet, and their size.
func (pr *Proposer) Waiting() (records, bytes int64) {
	return pr.waitingRecords.Load(), pr.waitingBytes.Load()
}

// Poke makes the Proposer check which node leads.
func (pr *Proposer) Poke() { signal.Send(pr.wake) }

// Propose submits one record and returns its outcome; see cluster.Node.Propose for the
// errors. An exclusive record goes alone and ahead of all that wait. It is for a leader
// whose Committer is held.
func (pr *Proposer) Propose(ctx context.Context, r *fsmpb.Record, exclusive bool) (fsm.Decision, error) {
	encoded, levels, err := encodeRecord(r)
	if err != nil {
		return fsm.Decision{}, err
	}
	return pr.propose(ctx, &proposal{record: encoded, levels: levels, size: len(encoded) + 4, exclusive: exclusive})
}

// propose submits one proposal and returns its outcome.
func (pr *Proposer) propose(ctx context.Context, p *proposal) (fsm.Decision, error) {
	if err := ctx.Err(); err != nil {
		return fsm.Decision{}, err
	}
	p.done = make(chan outcome, 1)
	p.queued = time.Now()
	records, bytes := pr.waitingRecords.Add(1), pr.waitingBytes.Add(int64(p.size))
	if records > pr.cfg.MaxRecords || bytes > pr.cfg.MaxBytes {
		pr.release(p)
		return fsm.Decision{}, fsm.ErrOverloaded
	}
	if !pr.in.put(p) {
		pr.release(p)
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
	// It has been submitted, so only the outcome matters now, even if ctx has ended. The
	// Proposer answers within Timeouts.Outcome.
	out := <-p.done
	return out.verdict, out.err
}

// release undoes what propose counted towards the limits.
func (pr *Proposer) release(p *proposal) {
	pr.waitingRecords.Add(-1)
	pr.waitingBytes.Add(-int64(p.size))
}

// Drain refuses what has not been submitted yet and waits for the outcome of the rest until
// ctx ends.
func (pr *Proposer) Drain(ctx context.Context) {
	pr.draining.Store(true)
	pr.Poke()
	select {
	case <-pr.idle:
	case <-ctx.Done():
	}
}

// Close stops the Proposer. The outcome of what was submitted is then unknown.
func (pr *Proposer) Close() {
	close(pr.stop)
	<-pr.done
}

func (pr *Proposer) run() {
	defer close(pr.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		pr.take(pr.in.take())
		timer.Reset(pr.step(time.Now()))
		pr.in.expect(pr.want, pr.wantBytes)
		select {
		case <-pr.in.arrived:
		case <-pr.answered:
			pr.answersMu.Lock()
			list := pr.answers
			pr.answers = nil
			pr.answersMu.Unlock()
			for _, a := range list {
				pr.answer(a)
			}
		case <-pr.wake:
			if pr.link != nil && pr.cfg.Moved(pr.link.Leader()) {
				pr.unlink(false)
			}
			pr.retryAt = time.Time{}
		case <-timer.C:
		case <-pr.stop:
			pr.shutdown()
			return
		}
	}
}

// take queues proposals. An exclusive one goes to the front, since others may not be able
// to proceed before it.
func (pr *Proposer) take(arrived []*proposal) {
	for _, p := range arrived {
		if p.exclusive {
			pr.waiting = slices.Insert(pr.waiting, 0, p)
		} else {
			pr.waiting = append(pr.waiting, p)
		}
	}
}

func (pr *Proposer) shutdown() {
	if pr.link != nil {
		pr.unlink(false)
	}
	for _, b := range pr.unsettled {
		for _, p := range b.proposals {
			p.answer(outcome{err: fsm.ErrOutcomeUnknown})
		}
	}
	pr.in.close()
	pr.take(pr.in.take())
	pr.refuseWaiting()
}

func (pr *Proposer) refuseWaiting() {
	for _, p := range pr.waiting {
		pr.release(p)
		if p.state.CompareAndSwap(proposalWaiting, proposalTaken) {
			p.answer(outcome{err: ErrShutdown})
		}
	}
	pr.waiting = nil
}

// step does what can be done now and returns the longest time until it must be called
// again.
func (pr *Proposer) step(now time.Time) time.Duration {
	pr.want, pr.wantBytes = 1, 0
	next := now.Add(time.Second)
	at := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	if pr.draining.Load() {
		pr.refuseWaiting()
		if len(pr.unsettled) == 0 {
			select {
			case <-pr.idle:
			default:
				close(pr.idle)
			}
		}
	}
	pr.expire(now)
	for _, b := range pr.unsettled {
		pr.giveUp(b, now)
		at(b.due)
	}
	if len(pr.waiting) > 0 && now.Before(pr.nextExpiry) {
		at(pr.nextExpiry) // if it is in the past, it would make this loop spin
	}
	if len(pr.unsettled) > 0 && pr.link == nil {
		at(now.Add(50 * time.Millisecond))
	}
	if pr.link == nil {
		if now.Before(pr.retryAt) {
			at(pr.retryAt)
			return next.Sub(now)
		}
		if pr.connect(now); pr.link == nil {
			at(pr.retryAt)
			return next.Sub(now)
		}
	}
	if len(pr.unsettled) > 0 {
		// The answer may be lost, so ask again on a new link.
		if due := pr.oldestSend().Add(pr.cfg.Timeouts.Resubmit); !now.Before(due) {
			pr.unlink(true)
			at(pr.retryAt)
			return next.Sub(now)
		} else {
			at(due)
		}
	}
	if pr.registered {
		if wait, more := pr.form(now); more {
			at(now.Add(wait))
		}
	}
	return max(next.Sub(now), 0)
}

// expire gives up on proposals that found no leader in time, and drops those whose callers
// have left.
func (pr *Proposer) expire(now time.Time) {
	if pr.link == nil {
		pr.withdraw(now)
	}
	if now.Before(pr.nextExpiry) || pr.link != nil && pr.registered && len(pr.unsettled) < BatchesInFlight {
		return // checked a moment ago, or about to be sent
	}
	pr.nextExpiry = now.Add(50 * time.Millisecond)
	keep := pr.waiting[:0]
	for _, p := range pr.waiting {
		switch {
		case p.state.Load() == proposalGone:
			pr.release(p)
		case now.Sub(p.queued) < min(pr.cfg.Timeouts.LeaderWait, pr.cfg.Timeouts.Outcome):
			keep = append(keep, p)
		case p.state.CompareAndSwap(proposalWaiting, proposalTaken):
			pr.release(p)
			err := fsm.ErrNoLeader
			if pr.registered && now.Sub(p.queued) >= pr.cfg.Timeouts.LeaderWait {
				err = fsm.ErrOverloaded
			}
			p.answer(outcome{err: err})
		default:
			pr.release(p)
		}
	}
	clear(pr.waiting[len(keep):])
	pr.waiting = keep
}

// giveUp answers the callers of a batch that has been without an answer for too long. The
// batch itself is still sent until it is answered.
func (pr *Proposer) giveUp(b *sentBatch, now time.Time) {
	if now.Before(b.due) {
		return
	}
	b.due = now.Add(pr.cfg.Timeouts.Outcome)
	for _, p := range b.proposals {
		if due := p.queued.Add(pr.cfg.Timeouts.Outcome); !due.After(now) {
			p.answer(outcome{err: fsm.ErrOutcomeUnknown})
		} else if due.Before(b.due) {
			b.due = due
		}
	}
}

// withdraw likewise gives up on batches of which no other node can have a copy. Their
// numbers are not used again.
func (pr *Proposer) withdraw(now time.Time) {
	pr.unsettled = slices.DeleteFunc(pr.unsettled, func(b *sentBatch) bool {
		if b.out || b.unknown || now.Sub(b.proposals[0].queued) < pr.cfg.Timeouts.LeaderWait {
			return false
		}
		for _, p := range b.proposals {
			p.answer(outcome{err: fsm.ErrNoLeader})
		}
		return true
	})
	pr.inFlight.Store(int64(len(pr.unsettled)))
}

// connect opens a link and sends the unanswered batches, oldest first. A new link registers
// the incarnation first, unless there is such a batch: it was sent only after the
// registration had been applied.
func (pr *Proposer) connect(now time.Time) {
	if pr.cfg.Powerless() {
		pr.delay(now)
		return
	}
	pr.epoch++
	epoch := pr.epoch
	pr.link = pr.cfg.Dial(func(r *clusterpb.SubmitResponse) { pr.deliver(answered{epoch, r}) })
	if pr.link == nil {
		pr.delay(now)
		return
	}
	if pr.nextSeq == 1 {
		pr.registered = false
		if !pr.sendRegistration() {
			pr.unlink(true)
		}
		return
	}
	pr.linked()
	for _, b := range pr.unsettled {
		pr.send(b)
	}
}

func (pr *Proposer) sendRegistration() bool {
	s := &Submission{Register: pr.cfg.Register(), Size: 256}
	var err error
	if s.Registration, err = wire.EncodeRegistration(s.Register); err != nil {
		panic(err) // its texts come from this node's configuration, which was checked
	}
	if s.Generation, s.MAC, err = pr.cfg.MAC(MACRegistration, s.Registration); err != nil {
		return false // sealed a moment ago
	}
	pr.link.Send(s)
	return true
}

func (pr *Proposer) linked() {
	pr.registered = true
	leader := pr.link.Leader()
	pr.ready.Store(&leader)
}

// unlink closes the link. If backoff is set, the next one is delayed.
func (pr *Proposer) unlink(backoff bool) {
	pr.link.Close()
	pr.link = nil
	for _, b := range pr.unsettled {
		b.unknown = b.unknown || b.out
		b.out = false
	}
	pr.registered = false
	pr.ready.Store(nil)
	pr.epoch++
	if backoff {
		pr.delay(time.Now())
	}
}

func (pr *Proposer) delay(now time.Time) {
	pr.backoff = min(max(2*pr.backoff, MinBackoff), MaxBackoff)
	pr.retryAt = now.Add(pr.backoff/2 + rand.N(pr.backoff/2+1))
}

func (pr *Proposer) oldestSend() time.Time {
	oldest := pr.unsettled[0].lastSend
	for _, b := range pr.unsettled[1:] {
		if b.lastSend.Before(oldest) {
			oldest = b.lastSend
		}
	}
	return oldest
}
