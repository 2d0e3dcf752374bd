// Package barrier waits until a node's state has everything that was committed before,
// wherever the leader is.
//
// What may be relied on: after Wait returned nil, the state contains what was committed when
// it was called. Nothing is written to the log for it: strangers can cause barriers.
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
	// ID is this node.
	ID string
	// LeaderWait is how long a barrier waits for a leader.
	LeaderWait time.Duration
	// Leader is the node that leads, as far as this one knows; "" for none.
	Leader func() string
	// Here is an index that a state must reach to have what was committed before, as
	// this node knows when it leads; There asks a leader for it.
	Here  func(ctx context.Context) (uint64, error)
	There func(ctx context.Context, leader string) (uint64, error)
	// WaitApplied returns once this node's state is of an index.
	WaitApplied func(ctx context.Context, index uint64) error
	Life        *lifecycle.Life
}

// Barriers lets callers share barriers: each waits for one that was started
// after it came, and one is on its way at a time.
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

// New makes the Barriers of a node.
func New(cfg Config) *Barriers { return &Barriers{cfg: cfg} }

// Wait returns once this node's state contains everything that was committed when it was
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

// run asks the leader, whoever it is by then, for as long as a proposal
// would wait for one.
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

// index is one that the state must reach to have what was committed before.
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
