package admission

import (
	"context"
	"net"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Door admits the connections of one listener to the budget.
type Door struct {
	budget    *Budget
	face      string
	strangers *Pool
	open      [classes]prometheus.Gauge
	refused   [classes]prometheus.Counter
}

// Strangers returns how many connections of strangers may be open at once
// through this door, in total and from one source.
func (d *Door) Strangers() (total, each int64) { return d.strangers.total, d.strangers.each }

// Prefer names sources whose connections are closed last; see Pool.Prefer.
func (d *Door) Prefer(prefer func(Source) bool) { d.strangers.Prefer(prefer) }

// Admit gives an accepted connection a place in the budget. If there is no
// room, it closes the connection and returns nil.
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
	if closed { // evicted in the meantime
		place.Leave()
	}
	return a
}

// Listener is a net.Listener whose connections count in a budget: each is a
// *Conn.
type Listener struct {
	net.Listener
	door *Door
}

// Door returns the door that the listener's connections come through.
func (l *Listener) Door() *Door { return l.door }

// Accept waits for a connection for which there is room.
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
	place  *Place // among the strangers
	closed bool
	after  []func()
}

// Source returns where the connection comes from.
func (c *Conn) Source() Source { return c.source }

// Class returns the current class of the connection.
func (c *Conn) Class() Class { return Class(c.class.Load()) }

// Promote moves the connection to the class of its other end, which has been
// authenticated. It reports false if that class is full: then the connection
// stays among the strangers, where it may still be evicted.
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

// OnClose registers f to be called once the connection is closed. If it is
// closed already, f is called at once.
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

// Close closes the connection and gives its place back. It may be called more
// than once.
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

// Of returns the Conn under c, which may be a TLS connection on top of it; nil
// if there is none.
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

// NewContext puts the Conn under c, if there is one, into a context. It is
// meant as the ConnContext of an http.Server.
func NewContext(ctx context.Context, c net.Conn) context.Context {
	if a := Of(c); a != nil {
		return context.WithValue(ctx, connKey{}, a)
	}
	return ctx
}

// FromContext returns the connection that NewContext put into the context; nil
// if there is none.
func FromContext(ctx context.Context) *Conn {
	c, _ := ctx.Value(connKey{}).(*Conn)
	return c
}
