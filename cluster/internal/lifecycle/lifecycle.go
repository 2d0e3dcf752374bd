// Package lifecycle controls how long a node and its parts may run: until the node is shut
// down or takes itself out of the cluster.
//
// It guarantees:
//
//   - Everything that was begun with Go, Begin or Start is over when Wait returns, and
//     Begin and Start begin nothing after Stop has been called.
//   - A node fences itself once, for the first reason. After that no call begins.
package lifecycle

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/fsm"
)

// ErrFenced is returned after the node took itself out of the cluster.
var ErrFenced = fmt.Errorf("%w: node is fenced", fsm.ErrNodeStopped)

// Life is the lifetime of one node. Its methods are safe for concurrent use.
type Life struct {
	fenced func(error)

	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup
	starting sync.Mutex // guards stopping
	stopping bool
	draining atomic.Bool
	fence    atomic.Pointer[fence]
	once     sync.Once
}

// fence is the reason why the node left the cluster.
type fence struct{ err error }

// New begins a lifetime. fenced is called once, when the node fences itself, before Fence
// returns.
func New(fenced func(error)) *Life {
	l := &Life{fenced: fenced}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Context returns the context that ends when the node is shut down.
func (l *Life) Context() context.Context { return l.ctx }

// Go runs f, which must return when Context ends. It is for callers that are themselves
// part of the node; calls from outside need Begin first.
func (l *Life) Go(f func()) {
	l.running.Add(1)
	go func() {
		defer l.running.Done()
		f()
	}()
}

// Begin delays the end of the node until the caller calls end. Calls from outside that
// start goroutines need it.
func (l *Life) Begin() (end func(), err error) {
	l.starting.Lock()
	defer l.starting.Unlock()
	if l.stopping {
		return nil, commit.ErrShutdown
	}
	l.running.Add(1)
	return l.running.Done, nil
}

// Start runs f, unless the node is stopping or fenced. Stop waits for f.
func (l *Life) Start(f func() error) error {
	l.starting.Lock()
	defer l.starting.Unlock()
	if l.stopping {
		return commit.ErrShutdown
	}
	if err := l.Fenced(); err != nil {
		return err
	}
	return f()
}

// Fence takes the node out of the cluster. It can no longer be trusted, so it may not vote,
// lead or answer. Fence may be called from anywhere.
func (l *Life) Fence(err error) {
	l.once.Do(func() {
		l.fence.Store(&fence{err})
		l.fenced(err)
	})
}

// Fenced returns why the node took itself out of the cluster, or nil.
func (l *Life) Fenced() error {
	if f := l.fence.Load(); f != nil {
		return f.err
	}
	return nil
}

// Usable returns an error if no call may begin.
func (l *Life) Usable() error {
	if err := l.Fenced(); err != nil {
		return fmt.Errorf("%w: %w", ErrFenced, err)
	}
	if l.ctx.Err() != nil || l.draining.Load() {
		return commit.ErrShutdown
	}
	return nil
}

// Drain prevents further calls from beginning.
func (l *Life) Drain() { l.draining.Store(true) }

// Stop ends Context.
func (l *Life) Stop() {
	l.starting.Lock()
	l.stopping = true
	l.starting.Unlock()
	l.cancel()
}

// Wait returns when everything that was begun is over.
func (l *Life) Wait() { l.running.Wait() }
