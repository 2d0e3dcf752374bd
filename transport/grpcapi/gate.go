package grpcapi

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/conclavekms/conclave/keyengine"
)

// gates bound what is under way at once, before a byte of a request's message is
// read. Everything comes in as a call, and has a call's time to be answered. A
// stream that is to live as long as its client likes moves to a gate of its kind
// once it has shown that it may, so that those who only open streams and say
// nothing can neither stay nor take such places.
type gates struct {
	calls, watches, audits gate
	timeout                time.Duration
}

// gate lets so many in at once.
type gate struct {
	limit  int64
	inside atomic.Int64
}

func (g *gate) enter() bool {
	if g.inside.Add(1) > g.limit {
		g.inside.Add(-1)
		return false
	}
	return true
}

func (g *gate) leave() { g.inside.Add(-1) }

func (g *gates) init(cfg Config) {
	g.calls.limit, g.watches.limit, g.audits.limit = int64(cfg.MaxCalls), int64(cfg.MaxStreams), int64(cfg.MaxStreams)
	g.timeout = cfg.Timeout
}

// pass is of one call.
type pass struct {
	at    atomic.Pointer[gate] // nil once the call has ended
	clock *time.Timer
}

type passKey struct{}

var errFull = &keyengine.Error{Code: keyengine.ErrThrottling.Code, Message: "This node has too many requests under way. Try again, or another node."}

// enter is called on a connection's reader for each new stream. The context that
// it returns governs reading the request too, so a client that sends headers and
// then nothing is let go of in time.
func (g *gates) enter(ctx context.Context, _ *tap.Info) (context.Context, error) {
	if !g.calls.enter() {
		return nil, status.Error(codes.ResourceExhausted, errFull.Message)
	}
	p := &pass{}
	p.at.Store(&g.calls)
	timed, cancel := context.WithCancel(context.WithValue(ctx, passKey{}, p))
	p.clock = time.AfterFunc(g.timeout, cancel)
	// The stream's own context ends with the stream, whatever becomes of it.
	context.AfterFunc(ctx, func() {
		p.clock.Stop()
		cancel()
		p.move(nil)
	})
	return timed, nil
}

// stay moves a call to the gate of its kind, where it may stay.
func stay(ctx context.Context, g *gate) error {
	p, ok := ctx.Value(passKey{}).(*pass)
	if !ok {
		return nil
	}
	if !g.enter() {
		return errFull
	}
	p.clock.Stop()
	p.move(g)
	return nil
}

// move gives the place at the old gate back. The call may have ended meanwhile,
// and given back its last one.
func (p *pass) move(to *gate) {
	for {
		from := p.at.Load()
		if from == nil {
			if to != nil {
				to.leave()
			}
			return
		}
		if p.at.CompareAndSwap(from, to) {
			from.leave()
			return
		}
	}
}
