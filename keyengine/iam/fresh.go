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
	// FreshRate is the number of barriers per second, and at once, that this node requests
	// for callers whose credential it does not find.
	FreshRate = 20
	// freshPatience is the timeout of one barrier.
	freshPatience = 3 * time.Second
)

// Replica is the part of the replicated log that authentication uses.
type Replica interface {
	State() *fsm.State
	// Barrier waits until State has everything that was committed before the call.
	Barrier(ctx context.Context) error
}

// freshness provides up-to-date states. Each costs the leader a round trip to a majority,
// though no write, and anyone can cause one by naming an access key that does not exist.
// Barriers are therefore shared, run one at a time, and limited in rate. Each caller waits
// for two barriers at most, however many callers there are: unauthenticated callers can
// delay the first use of a new credential by at most 2/FreshRate seconds.
type freshness struct {
	replica Replica
	life    context.Context
	end     context.CancelFunc
	workers sync.WaitGroup
	rate    *rate.Limiter

	running sync.Mutex // held by the one barrier under way
	mu      sync.Mutex
	next    *barrier // not begun yet; nil if no caller waits for one
}

// barrier is a barrier that is shared by all callers waiting for it.
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

// close ends the barrier in progress. state fails afterwards.
func (f *freshness) close() {
	f.mu.Lock()
	f.end()
	f.mu.Unlock()
	f.workers.Wait()
}

// state returns a state with everything that was committed before the call.
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
	f.next = nil // callers from here on need a later barrier
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
