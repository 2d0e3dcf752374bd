package iam

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

const (
	// freshRate is how many barriers a second this node asks for, and how many at
	// once, on behalf of callers whose credential it does not find good.
	FreshRate = 20
	// freshPatience is how long one may take.
	freshPatience = 3 * time.Second
)

// Replica is what authentication needs of the replicated log.
type Replica interface {
	State() *fsm.State
	// Barrier waits until State has everything that was committed before.
	Barrier(ctx context.Context) error
}

// freshness gets states that are not behind. Each costs the leader a word with a
// majority, though nothing is written, and anybody can ask for one by naming an
// access key that does not exist; so they are shared, one at a time, at a bounded
// rate. However many ask, each has its answer after two of them: strangers make a
// credential that was just made elsewhere wait for 2/freshRate seconds at most.
type freshness struct {
	replica Replica
	life    context.Context
	end     context.CancelFunc
	workers sync.WaitGroup
	rate    *rate.Limiter

	running sync.Mutex // held by the one barrier under way
	mu      sync.Mutex
	next    *barrier // not begun yet; nil when nobody waits for one
}

// barrier is a barrier that callers wait for.
type barrier struct {
	done  chan struct{}
	state *fsm.State
	err   error
}

func newFreshness(r Replica) *freshness {
	f := &freshness{replica: r, rate: rate.NewLimiter(FreshRate, FreshRate)}
	f.life, f.end = context.WithCancel(context.Background())
	return f
}

// close ends what is under way; nobody may ask any more.
func (f *freshness) close() {
	f.mu.Lock()
	f.end()
	f.mu.Unlock()
	f.workers.Wait()
}

// state is a state that has everything that was committed before the call.
func (f *freshness) state(ctx context.Context) (*fsm.State, error) {
	f.mu.Lock()
	b := f.next
	if b == nil {
		if f.life.Err() != nil {
			f.mu.Unlock()
			return nil, record.Unavailable(fsm.ErrNodeStopped)
		}
		b = &barrier{done: make(chan struct{})}
		f.next = b
		f.workers.Go(func() { f.run(b) })
	}
	f.mu.Unlock()
	select {
	case <-b.done:
		if b.err != nil {
			return nil, record.Unavailable(b.err)
		}
		return b.state, nil
	case <-ctx.Done():
		return nil, record.Unavailable(ctx.Err())
	}
}

func (f *freshness) run(b *barrier) {
	defer close(b.done)
	f.running.Lock()
	defer f.running.Unlock()
	b.err = f.rate.Wait(f.life)
	f.mu.Lock()
	f.next = nil // who asks from here on may ask for what comes after the barrier
	f.mu.Unlock()
	if b.err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(f.life, freshPatience)
	defer cancel()
	if b.err = f.replica.Barrier(ctx); b.err == nil {
		b.state = f.replica.State()
	}
}
