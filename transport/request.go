package transport

import (
	"context"
	"crypto/tls"
	"sync"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/transport/admission"
)

// Arrival is what is known of a request when it begins to come in.
type Arrival struct {
	// Remote is the address of the other end of its connection, with the port.
	Remote string
	// Conn is the connection's place in the node's budget; nil if the listener is of
	// none.
	Conn *admission.Conn
	// Pool has the place that the request needs until it is worked on; nil if it needs
	// none.
	Pool *admission.Pool
	// Evict may be nil. It is called, from any goroutine, when the request is let go of
	// for one that came later, and must not block. The request's context has ended then.
	Evict func()
	// Lasts says that the request may turn out to have no deadline, see Stay.
	Lasts bool
}

// Request is one request to an API, from its arrival to its answer. It comes in
// through a pool, where the oldest request of the busiest source goes for a newer one.
// It passes the gate to the work only once all of it is there and its sender is known.
// So those who open connections and say nothing keep out nobody but themselves, and
// what is held for strangers is bounded by the places in their pool.
type Request struct {
	ID iam.RequestID
	// SourceIP is where it comes from, see SourceIP.
	SourceIP string
	// Method is what is asked for, for the log; "" where that is not known.
	Method string

	api     *API
	source  admission.Source
	conn    *admission.Conn
	cancel  context.CancelFunc
	onEvict func()
	clock   *time.Timer // of a request that may last
	evicted atomic.Bool

	mu      sync.Mutex
	place   *admission.Place // in a pool, until it is at a gate; nil without
	wants   *admission.Gate  // the sender is known, the request not all there
	gate    *admission.Gate
	arrived bool
	ended   bool
}

// Arrive lets a request in and names it. The context that it returns governs reading
// the request too, so that a client that sends a part and then nothing is let go of in
// time. If there is no room it returns an error, with a request that can only be
// answered. Request.End must be called in either case.
func (a *API) Arrive(ctx context.Context, in Arrival) (*Request, context.Context, error) {
	r := &Request{ID: NewRequestID(), SourceIP: SourceIP(in.Remote), api: a, conn: in.Conn, onEvict: in.Evict}
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

// evict lets go of the request for one that came later. It takes no lock of the
// request's: Lodge may have one while the pool calls this for another.
func (r *Request) evict() {
	r.evicted.Store(true)
	r.cancel()
	if r.onEvict != nil {
		r.onEvict()
	}
}

// Evicted reports whether the request was let go of.
func (r *Request) Evicted() bool { return r.evicted.Load() }

// failure is what the request failed of, given an error that it met: that it was let go
// of has many consequences.
func (r *Request) failure(err error) error {
	if r.Evicted() {
		return r.api.cfg.Busy
	}
	return err
}

// Charge takes n units of a pool for what the request holds, such as bytes of its
// body. The request is let go of if they are taken away.
func (r *Request) Charge(pool *admission.Pool, n int64) (*admission.Place, bool) {
	return pool.Enter(r.source, n, r.evict)
}

// Proved notes that it is known who sent the request: its connection is no stranger's
// any more.
func (r *Request) Proved() {
	if r.conn != nil {
		r.conn.Promote(admission.Client)
	}
}

// Arrived notes that all of the request is there.
func (r *Request) Arrived() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.arrived = true
	return r.advance()
}

// Work lets a request whose sender is known through the gate to the work, now or as
// soon as all of it is there. A request that is past a gate stays where it is. From
// there on it is not let go of.
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

// Stay lets a request that may last stay at the gate of its kind, without a deadline.
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

// Lodge lets a request that may last, but not at the cost of newer ones, have a place
// in a pool of its kind, without a deadline.
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

// leave gives back what the request holds.
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

// End gives back what the request holds, and ends its context.
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

// Caller describes the sender for the engine, but for the identity and what else the
// protocol says of it.
func (r *Request) Caller(userAgent string, state *tls.ConnectionState) *iam.Caller {
	return &iam.Caller{
		RequestID: r.ID,
		SourceIP:  r.SourceIP,
		UserAgent: UserAgent(userAgent),
		Transport: r.api.cfg.Name,
		TLS:       TLSInfo(state),
	}
}
