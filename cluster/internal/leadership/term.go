package leadership

import (
	"context"
	"sync"
)

// leaderFuncs are what runs while this node leads.
type leaderFuncs struct {
	mu    sync.Mutex
	funcs []func(context.Context)
	ctx   context.Context // of the leadership term under way, or nil
	run   func(func())
}

// OnLeader registers f to run, each time this node has become leader and its
// state contains everything committed before, until ctx ends with the
// leadership. f must return then. It may be called at any time.
func (t *Terms) OnLeader(f func(ctx context.Context)) {
	l := &t.funcs
	l.mu.Lock()
	defer l.mu.Unlock()
	l.funcs = append(l.funcs, f)
	if l.ctx != nil && l.ctx.Err() == nil {
		ctx := l.ctx
		l.run(func() { f(ctx) })
	}
}

func (l *leaderFuncs) begin(ctx context.Context, run func(func())) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ctx, l.run = ctx, run
	for _, f := range l.funcs {
		run(func() { f(ctx) })
	}
}

func (l *leaderFuncs) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ctx, l.run = nil, nil
}
