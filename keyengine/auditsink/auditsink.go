package auditsink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditsend"
	"github.com/conclavekms/conclave/keyengine/internal/outbound"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

const (
	// acknowledgeEvery is how often the record that a receiver has confirmed last is stored, at
	// most: that is a record of the audit log too.
	acknowledgeEvery = 5 * time.Second
	// takeOver is how long a node that has become leader waits for the one before it to store
	// that record. It is longer than that node takes: see lastWords.
	takeOver = 5 * time.Second
	// lastWords is how long a node that no longer leads waits for a receiver's confirmation,
	// and again how long it tries to store it.
	lastWords = 2 * time.Second

	retryMin = time.Second
	retryMax = time.Minute

	// maxRecords and maxBytes bound what is sent together. At most that is in memory for each
	// sink, and what one reading of the log returns.
	maxRecords = 256
	maxBytes   = 512 << 10
	// gatherFor is how long after a reading the next one is, unless so many records wait that
	// it returns as many as it can. Sending one record costs as much as sending many together,
	// and on a busy node that is taken from requests.
	gatherFor = 100 * time.Millisecond

	// maxPassed is how many records that a sink does not want are passed over before the state
	// says so.
	maxPassed = 16384
)

// Replica is the part of the replicated log that is used here.
type Replica interface {
	State() *fsm.State
	WaitApplied(ctx context.Context, index uint64) error
}

// Config configures a Service.
type Config struct {
	NodeID  string
	Sinks   []Sink
	Feed    *auditfeed.Feed
	Vault   *vault.Vault
	Replica Replica
	Events  *record.Recorder
	Log     *slog.Logger
	Metrics prometheus.Registerer // nil for none
}

// Service sends the audit log to the sinks of a node while it leads.
type Service struct {
	cfg     *Config
	streams []*stream
}

// New returns a Service. No receiver is called before Lead.
func New(cfg Config) (*Service, error) {
	s := &Service{cfg: &cfg}
	for _, sink := range cfg.Sinks {
		to, err := sink.receiver()
		if err != nil {
			return nil, fmt.Errorf("audit sink %q: %w", sink.Name, err)
		}
		s.streams = append(s.streams, &stream{
			cfg: &cfg, sink: sink, open: to.Open, log: cfg.Log.With("sink", sink.Name), rest: make(chan chan struct{}),
		})
	}
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(newCollector(s)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Lead sends what is appended to the audit log, until ctx ends. Then it stores what the receivers
// have confirmed, and returns within a few seconds.
func (s *Service) Lead(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, st := range s.streams {
		wg.Go(func() { st.run(ctx) })
	}
}

// Rest stores what the receivers have confirmed, and sends nothing for a few seconds. It is called
// before the node is sealed or stopped, so that another node does not send the same again.
func (s *Service) Rest(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, st := range s.streams {
		wg.Go(func() {
			done := make(chan struct{})
			st.mu.Lock()
			running := st.running
			st.mu.Unlock()
			if !running {
				return
			}
			select {
			case st.rest <- done:
			case <-ctx.Done():
				return
			case <-time.After(lastWords):
				return // it waits for a receiver
			}
			select {
			case <-done:
			case <-ctx.Done():
			}
		})
	}
}

// stream is the work for one sink.
type stream struct {
	cfg  *Config
	sink Sink
	open func() (auditsend.Sender, error)
	log  *slog.Logger
	rest chan chan struct{} // asks the stream to store what was confirmed, and to pause

	// Of the goroutine of run.
	sender auditsend.Sender
	next   uint64 // index of the record to send next
	held   place  // what the state says
	acked  time.Time
	dirty  bool // a record other than of an acknowledgement was confirmed since held

	mu      sync.Mutex
	running bool
	status  status
}

// status is what the metrics of a sink, and List, show.
type status struct {
	next     uint64
	since    time.Time // when the oldest record that is not confirmed was committed; zero if there is none
	sent     uint64
	failures uint64
	failing  bool
	err      string // of the last failure, at errAt
	errAt    time.Time
}

var (
	errTaken   = errors.New("another node sends to this sink")
	errResting = errors.New("the node is about to stop")
)

// run sends until ctx ends, with growing pauses after failures.
func (st *stream) run(ctx context.Context) {
	st.mu.Lock()
	st.running = true
	st.mu.Unlock()
	defer func() {
		st.mu.Lock()
		st.running, st.status = false, status{sent: st.status.sent, failures: st.status.failures}
		st.mu.Unlock()
	}()
	began := time.Now()
	for wait := retryMin; ctx.Err() == nil; {
		sent := st.status.sent
		done, err := st.session(ctx, began)
		if done != nil {
			close(done)
			err, wait = errResting, takeOver
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errResting), errors.Is(err, vault.ErrSealed):
		default:
			if st.status.sent > sent {
				wait = retryMin
			}
			st.failed(err, wait)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		case done := <-st.rest:
			close(done) // nothing is under way
		}
		if errors.Is(err, errResting) || errors.Is(err, vault.ErrSealed) {
			wait = retryMin
		} else {
			wait = min(2*wait, retryMax)
		}
	}
}

func (st *stream) failed(err error, wait time.Duration) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.status.failures++
	st.status.err, st.status.errAt = outbound.Clipped(err), time.Now()
	if st.status.since.IsZero() {
		st.status.since = time.Now()
	}
	if !st.status.failing {
		st.log.Warn("sending the audit log to a sink failed and will be retried", "err", st.status.err, "after", wait)
	}
	st.status.failing = true
}

// session sends until something fails, ctx ends, or the stream is asked to rest; then it returns
// the channel to close. In all cases it has stored what was confirmed, if it could.
func (st *stream) session(ctx context.Context, began time.Time) (done chan struct{}, err error) {
	o, err := st.cfg.Vault.Current()
	if err != nil {
		return nil, err
	}
	if err := st.resume(ctx, began); err != nil {
		return nil, err
	}
	st.mu.Lock()
	st.status.next = st.next
	st.mu.Unlock()
	if st.sender, err = st.open(); err != nil {
		return nil, err
	}
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
		defer cancel()
		if ctx.Err() != nil || done != nil || st.dirty {
			if failed := st.release(last, ctx.Err() != nil || done != nil); failed != nil {
				err = errors.Join(err, failed)
			}
		}
		err = errors.Join(err, st.sender.Close())
	}()
	// What is under way when ctx ends may still be confirmed.
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(lastWords, cancel) })()
	var start time.Time // of the last reading
	for ctx.Err() == nil {
		if st.cfg.Feed.Size() < st.next+maxRecords {
			select {
			case <-ctx.Done():
			case <-time.After(gatherFor - time.Since(start)):
			}
		}
		changed := st.cfg.Feed.Changed()
		start = time.Now()
		items, err := st.cfg.Feed.Read(st.next, maxRecords)
		if err != nil {
			return nil, err
		}
		reading := time.Since(start)
		for len(items) > 0 && ctx.Err() == nil {
			if done := st.asked(); done != nil {
				return done, nil
			}
			n, err := st.send(sending, items)
			if err != nil {
				return nil, err
			}
			items = items[n:]
		}
		if st.unsaved() && time.Since(st.acked) >= acknowledgeEvery {
			if err := st.store(sending, place{Next: st.next, Node: st.cfg.NodeID}); err != nil {
				return nil, err
			}
		}
		var after <-chan time.Time
		if len(items) > 0 || st.next < st.cfg.Feed.Size() {
			// Requests come first: decrypting takes at most half of a processor.
			after, changed = time.After(reading), nil
		} else {
			st.mu.Lock()
			st.status.since, st.status.failing = time.Time{}, false
			st.mu.Unlock()
			if st.unsaved() {
				after = time.After(acknowledgeEvery - time.Since(st.acked))
			}
		}
		select {
		case <-ctx.Done():
		case <-after:
		case <-changed:
		case <-o.Ended():
			return nil, vault.ErrSealed
		case done := <-st.rest:
			return done, nil
		}
	}
	return nil, ctx.Err()
}

// asked returns the channel to close if the stream is asked to rest.
func (st *stream) asked() chan struct{} {
	select {
	case done := <-st.rest:
		return done
	default:
		return nil
	}
}

// send sends the first of some items together, and passes over those that the sink does not
// want. It returns how many it has dealt with.
func (st *stream) send(ctx context.Context, items []auditfeed.Item) (n int, err error) {
	batch, n, news, err := st.batch(items)
	if err != nil {
		return 0, err
	}
	if len(batch) > 0 {
		if err := st.deliver(ctx, batch); err != nil {
			return 0, err
		}
	}
	st.next += uint64(n)
	st.dirty = st.dirty || news
	st.mu.Lock()
	st.status.next, st.status.since, st.status.failing = st.next, time.Time{}, false
	st.status.sent += uint64(len(batch))
	st.mu.Unlock()
	return n, nil
}

// batch returns the records to send together of the first n items, and whether one of them is
// news.
func (st *stream) batch(items []auditfeed.Item) (batch []auditsend.Record, n int, news bool, err error) {
	size := 0
	for i := range items {
		it := &items[i]
		if !st.sink.wants(it) {
			continue
		}
		line, err := it.Line()
		if err != nil {
			line = auditlog.RenderUnopenable(it.Entry) // as a reader gets it
		}
		if st.sink.Format == formatEventBridge {
			if line, err = eventBridge(it, line); err != nil {
				return nil, 0, false, err
			}
		}
		if size += len(line); size > maxBytes && len(batch) > 0 {
			return batch, i, news, nil
		}
		news = news || !acknowledges(it)
		batch = append(batch, recordOf(it, line))
	}
	return batch, len(items), news, nil
}

// deliver sends records, once the next leader can know that this node has sent something.
func (st *stream) deliver(ctx context.Context, batch []auditsend.Record) error {
	if st.held.Node != st.cfg.NodeID || st.held.Done {
		if err := st.store(ctx, place{Next: st.next, Node: st.cfg.NodeID}); err != nil {
			return err
		}
	}
	st.mu.Lock()
	st.status.since = batch[0].Time
	st.mu.Unlock()
	err := st.sender.Send(ctx, batch)
	if err != nil && !st.sender.Confirms() {
		st.next, st.dirty = st.held.Next, false // it may not have got what was sent before
	}
	return err
}

// unsaved reports whether the state is to say how far the stream is. What the sink does not want
// is passed over without that, but so much of it that reading it again would take long.
func (st *stream) unsaved() bool {
	return st.dirty || st.next-st.held.Next >= maxPassed
}
