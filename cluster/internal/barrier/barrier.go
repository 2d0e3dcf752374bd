// Package barrier waits until a node's state contains everything that was committed before,
// wherever the leader is.
//
// It guarantees that after Wait has returned nil, the state contains what was committed
// when Wait was called. Nothing is written to the log for it, because unauthenticated
// clients can cause barriers.
package barrier

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/lifecycle"
	"github.com/conclavekms/conclave/fsm"
)

// Config describes Barriers. Everything is required. The functions may be called from any
// goroutine.
type Config struct {
	// ID is the id of this node.
	ID string
	// LeaderWait is how long a barrier waits for a leader.
	LeaderWait time.Duration
	// Leader returns the leader as far as this node knows, or "".
	Leader func() string
	// Here and There return an index; a state of that index contains what was committed
	// before the call. Here is for the leader itself, There asks the leader.
	Here  func(ctx context.Context) (uint64, error)
	There func(ctx context.Context, leader string) (uint64, error)
	// WaitApplied returns once this node has applied the index.
	WaitApplied func(ctx context.Context, index uint64) error
	Life        *lifecycle.Life
}

// Barriers lets callers share barriers: each caller waits for a barrier that was started
// after its call, and only one is in flight at a time.
type Barriers struct {
	cfg Config

	mu      sync.Mutex
	running bool
	next    *barrier
}

type barrier struct {
	done chan struct{}
	err  error
}

// New returns the Barriers of a node.
func New(cfg Config) *Barriers { return &Barriers{cfg: cfg} }

// Wait returns once this node's state contains everything that was committed when Wait was
// called.
func (b *Barriers) Wait(ctx context.Context) error {
	if err := b.cfg.Life.Usable(); err != nil {
		return err
	}
	end, err := b.cfg.Life.Begin()
	if err != nil {
		return err
	}
	defer end()
	b.mu.Lock()
	if b.next == nil {
		b.next = &barrier{done: make(chan struct{})}
	}
	mine := b.next
	if !b.running {
		b.running = true
		b.cfg.Life.Go(b.loop)
	}
	b.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *Barriers) loop() {
	for {
		b.mu.Lock()
		mine := b.next
		b.next = nil
		if mine == nil {
			b.running = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		mine.err = b.run()
		close(mine.done)
	}
}

// run asks the current leader, and waits for one for as long as a proposal would.
func (b *Barriers) run() error {
	ctx, cancel := context.WithTimeout(b.cfg.Life.Context(), b.cfg.LeaderWait)
	defer cancel()
	backoff := commit.MinBackoff
	for {
		index, err := b.index(ctx)
		if err == nil {
			return b.cfg.WaitApplied(b.cfg.Life.Context(), index)
		}
		if uerr := b.cfg.Life.Usable(); uerr != nil {
			return uerr
		}
		select {
		case <-time.After(backoff):
			backoff = min(2*backoff, commit.MaxBackoff)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", fsm.ErrNoLeader, err)
		}
	}
}

// index returns an index that the state must reach to contain what was committed before.
func (b *Barriers) index(ctx context.Context) (uint64, error) {
	leader := b.cfg.Leader()
	switch leader {
	case "":
		return 0, fsm.ErrNoLeader
	case b.cfg.ID:
		return b.cfg.Here(ctx)
	}
	return b.cfg.There(ctx, leader)
}
