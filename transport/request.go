package transport

import (
	"context"
	"crypto/tls"
	"sync"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/trace"
	"github.com/conclavekms/conclave/transport/admission"
)

// Arrival is what is known about a request when it begins to arrive.
type Arrival struct {
	// Remote is the address of the other end of the connection, with the port.
	Remote string
	// Forwarded are the values of the header X-Forwarded-For, which count only if the
	// connection is that of a trusted proxy.
	Forwarded []string
	// TraceParent are the values of the header traceparent.
	TraceParent []string
	// Conn is the connection's place in the node's budget; nil if the listener has
	// no budget.
	Conn *admission.Conn
	// Pool is the pool in which the request needs a place until it is worked on; nil
	// if it needs none.
	Pool *admission.Pool
	// Evict may be nil. It is called, from any goroutine, when the request is evicted
	// for a later one, and must not block. The request's context has ended by then.
	Evict func()
	// Lasts means that the request may turn out to have no deadline; see Stay.
	Lasts bool
}

// Request is one request to an API, from its arrival to its answer. First it has a
// place in a pool, from which the oldest request of the busiest source is evicted for
// a newer one. It passes a gate, to be worked on, only once it is complete and its
// sender is authenticated. So clients that open connections and send nothing keep out
// only themselves, and what is held for strangers is bounded by the places in their
// pool.
type Request struct {
	ID iam.RequestID
	// SourceIP is the address that it comes from; see Proxies.SourceIP.
	SourceIP string
	// Method is the requested method, for the log; "" if it is unknown.
	Method string
	// Trace measures the request; nil if it is not traced. Whoever handles the request ends it.
	Trace *trace.Request

	api     *API
	source  admission.Source
	conn    *admission.Conn
	cancel  context.CancelFunc
	onEvict func()
	clock   *time.Timer // the deadline of a request that may last
	evicted atomic.Bool

	mu      sync.Mutex
	place   *admission.Place // in a pool, until it passes a gate; nil if there is none
	wants   *admission.Gate  // to pass once the request, whose sender is known, is complete
	gate    *admission.Gate
	arrived bool
	ended   bool
}

// Arrive admits a request and gives it an id. The context that it returns also governs
// reading the request, so that a client that sends a part and then nothing is dropped
// in time. If there is no room, Arrive returns an error and a request that can only be
// answered. Request.End must be called in either case.
func (a *API) Arrive(ctx context.Context, in Arrival) (*Request, context.Context, error) {
	r := &Request{ID: NewRequestID(), SourceIP: a.cfg.Proxies.SourceIP(in.Remote, in.Forwarded), api: a, conn: in.Conn, onEvict: in.Evict}
	r.Trace = a.cfg.Tracer.Begin(a.cfg.Name, r.ID, in.TraceParent)
	if in.Conn != nil {
		r.source = in.Conn.Source()
	} else {
		r.source = admission.SourceOf(in.Remote)
	}
	if in.Lasts {
		ctx, r.cancel = context.WithCancel(ctx)
	} else {
		ctx, r.cancel = context.WithTimeout(ctx, a.cfg.Timeout)
	}
	if in.Pool != nil {
		place, ok := in.Pool.Enter(r.source, 1, r.evict)
		if !ok {
			return r, ctx, a.cfg.Busy
		}
		r.place = place
	}
	if in.Lasts {
		r.clock = time.AfterFunc(a.cfg.Timeout, r.cancel)
	}
	return r, ctx, nil
}

// evict ends the request in favour of a later one. It must not take the
// request's lock, which Lodge may hold on another request while the pool calls
// this.
func (r *Request) evict() {
	r.evicted.Store(true)
	r.cancel()
	if r.onEvict != nil {
		r.onEvict()
	}
}

// Evicted reports whether the request was evicted.
func (r *Request) Evicted() bool { return r.evicted.Load() }

// failure returns the reason why a request failed with err: if it was evicted, that is
// the reason, since an eviction can cause many other errors.
func (r *Request) failure(err error) error {
	if r.Evicted() {
		return r.api.cfg.Busy
	}
	return err
}

// Charge takes n units from a pool for something that the request holds, such as
// bytes of its body. If they are taken away, the request is evicted.
func (r *Request) Charge(pool *admission.Pool, n int64) (*admission.Place, bool) {
	return pool.Enter(r.source, n, r.evict)
}

// Proved notes that the sender of the request is authenticated, and promotes its
// connection out of the class of strangers.
func (r *Request) Proved() {
	r.Trace.Known()
	if r.conn != nil {
		r.conn.Promote(admission.Client)
	}
}

// Arrived notes that the request is complete.
func (r *Request) Arrived() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.arrived = true
	return r.advance()
}

// Work lets an authenticated request pass a gate to be worked on, now or as soon as
// it is complete. After that it cannot be evicted any more. Nothing happens if the
// request has passed a gate already.
func (r *Request) Work(g *admission.Gate) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wants == nil {
		r.wants = g
	}
	return r.advance()
}

func (r *Request) advance() error {
	switch {
	case r.ended || r.gate != nil || r.wants == nil || !r.arrived:
		return nil
	case r.place != nil && !r.place.Keep() || !r.wants.Enter():
		return r.api.cfg.Busy
	}
	r.leave()
	r.gate = r.wants
	return nil
}

// Stay lets a request that may last pass the gate for its kind, and removes its
// deadline.
func (r *Request) Stay(g *admission.Gate) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return nil
	}
	if !g.Enter() {
		return r.api.cfg.Busy
	}
	r.leave()
	r.gate = g
	r.clock.Stop()
	return nil
}

// Lodge moves a request that may last, but not at the expense of newer ones, to a
// pool for its kind, and removes its deadline.
func (r *Request) Lodge(pool *admission.Pool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return nil
	}
	place, ok := pool.Enter(r.source, 1, r.evict)
	if !ok {
		return r.api.cfg.Busy
	}
	r.leave()
	r.place, r.wants = place, nil
	r.clock.Stop()
	return nil
}

// leave gives back the places that the request holds.
func (r *Request) leave() {
	if r.place != nil {
		r.place.Leave()
		r.place = nil
	}
	if r.gate != nil {
		r.gate.Leave()
		r.gate = nil
	}
}

// End gives back the places that the request holds, and ends its context.
func (r *Request) End() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	if r.clock != nil {
		r.clock.Stop()
	}
	r.cancel()
	r.leave()
}

// Caller describes the sender for the engine, without the identity and other
// properties that depend on the protocol.
func (r *Request) Caller(userAgent, host string, state *tls.ConnectionState) *iam.Caller {
	return &iam.Caller{
		RequestID: r.ID,
		SourceIP:  r.SourceIP,
		UserAgent: UserAgent(userAgent),
		Transport: r.api.cfg.Name,
		TLS:       TLSInfo(state, host),
		Trace:     r.Trace,
	}
}
