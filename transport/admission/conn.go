package admission

import (
	"context"
	"net"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Door is where the connections of one listener come in.
type Door struct {
	budget    *Budget
	face      string
	strangers *Pool
	open      [classes]prometheus.Gauge
	refused   [classes]prometheus.Counter
}

// Strangers is how many connections of strangers the door lets in at once, and
// how many of one source.
func (d *Door) Strangers() (total, each int64) { return d.strangers.total, d.strangers.each }

// Prefer names sources whose strangers go last; see Pool.Prefer.
func (d *Door) Prefer(prefer func(Source) bool) { d.strangers.Prefer(prefer) }

// Admit makes an accepted connection one of the budget's. It is nil, and the
// connection closed, if there is no room.
func (d *Door) Admit(c net.Conn) *Conn {
	a := &Conn{Conn: c, door: d, source: sourceOfAddr(c.RemoteAddr())}
	d.open[Stranger].Inc()
	place, ok := d.strangers.Enter(a.source, 1, a.evict)
	if !ok {
		d.refused[Stranger].Inc()
		d.open[Stranger].Dec()
		c.Close()
		return nil
	}
	a.mu.Lock()
	a.place = place
	closed := a.closed
	a.mu.Unlock()
	if closed { // evicted at once
		place.Leave()
	}
	return a
}

// Listener is a net.Listener whose connections are of a budget: each is a *Conn.
type Listener struct {
	net.Listener
	door *Door
}

// Door is where the listener's connections come in.
func (l *Listener) Door() *Door { return l.door }

// Accept waits for a connection that there is room for.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if a := l.door.Admit(c); a != nil {
			return a, nil
		}
	}
}

// Conn is a connection that has a place in a budget until it is closed.
type Conn struct {
	net.Conn
	door   *Door
	source Source
	class  atomic.Int32

	mu     sync.Mutex
	place  *Place // a stranger's
	closed bool
	after  []func()
}

// Source is where the connection comes from.
func (c *Conn) Source() Source { return c.source }

// Class is whom the connection is known to be of.
func (c *Conn) Class() Class { return Class(c.class.Load()) }

// Promote notes that the other end proved who it is. It reports false if its
// class has no place left: then the connection stays among the strangers, where
// it may have to go.
func (c *Conn) Promote(to Class) bool {
	if c.Class() != Stranger {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return false
	case c.Class() != Stranger:
		return true
	case !c.door.budget.open[to].Enter():
		c.door.refused[to].Inc()
		return false
	}
	c.class.Store(int32(to))
	c.place.Leave()
	c.door.open[Stranger].Dec()
	c.door.open[to].Inc()
	return true
}

func (c *Conn) evict() { c.Close() }

// OnClose has f called once the connection is closed, at once if it is.
func (c *Conn) OnClose(f func()) {
	c.mu.Lock()
	closed := c.closed
	if !closed {
		c.after = append(c.after, f)
	}
	c.mu.Unlock()
	if closed {
		f()
	}
}

// Close gives the connection's place back, once.
func (c *Conn) Close() error {
	c.mu.Lock()
	after := c.after
	c.after = nil
	if !c.closed {
		c.closed = true
		class := c.Class()
		if class != Stranger {
			c.door.budget.open[class].Leave()
		} else if c.place != nil {
			c.place.Leave()
		}
		c.door.open[class].Dec()
	}
	c.mu.Unlock()
	err := c.Conn.Close()
	for _, f := range after {
		f()
	}
	return err
}

// Of is the budget's connection under c, which may be TLS on top of it; nil if
// there is none.
func Of(c net.Conn) *Conn {
	for {
		switch v := c.(type) {
		case *Conn:
			return v
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		default:
			return nil
		}
	}
}

type connKey struct{}

// NewContext puts the connection under c, if it is of a budget, into a context.
// It is an http.Server's ConnContext.
func NewContext(ctx context.Context, c net.Conn) context.Context {
	if a := Of(c); a != nil {
		return context.WithValue(ctx, connKey{}, a)
	}
	return ctx
}

// FromContext is the connection that NewContext put there; nil without.
func FromContext(ctx context.Context) *Conn {
	c, _ := ctx.Value(connKey{}).(*Conn)
	return c
}
