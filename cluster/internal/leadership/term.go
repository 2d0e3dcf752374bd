package leadership

import (
	"context"
	"sync"
)

// leaderFuncs are the functions that run while this node leads.
type leaderFuncs struct {
	mu    sync.Mutex
	funcs []func(context.Context)
	ctx   context.Context // of the current leadership term, or nil
	run   func(func())
}

// OnLeader registers f to run each time this node has become leader and its state contains
// everything committed before. The context ends with the leadership, and f must then
// return. OnLeader may be called at any time.
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
