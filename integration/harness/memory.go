package harness

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Memory is a network between nodes in one process. Nothing in it waits for the operating
// system, so whole clusters can run on it in a bubble of testing/synctest, where days pass
// as soon as all goroutines are blocked.
type Memory struct {
	mu        sync.Mutex
	listeners map[string]*memoryListener
	cut       map[[2]string]bool
	open      map[*memoryConn]struct{} // both ends of each connection
}

// NewMemory returns a network without faults and without nodes.
func NewMemory() *Memory {
	return &Memory{
		listeners: make(map[string]*memoryListener), cut: make(map[[2]string]bool), open: make(map[*memoryConn]struct{}),
	}
}

var errMemory = errors.New("nobody answers there")

// Listen opens a node's port. Its address is the name of the node.
func (m *Memory) Listen(node string) net.Listener {
	l := &memoryListener{m: m, node: node, conns: make(chan net.Conn), done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listeners[node] = l
	return l
}

// Address returns the address at which other nodes reach a node.
func (*Memory) Address(node string) string { return net.JoinHostPort(node, "1") }

// Dialer returns a function with which a node connects to others.
func (m *Memory) Dialer(from string) func(ctx context.Context, to, addr string) (net.Conn, error) {
	return func(ctx context.Context, to, _ string) (net.Conn, error) {
		m.mu.Lock()
		l := m.listeners[to]
		if l == nil || m.cut[pair(from, to)] {
			m.mu.Unlock()
			return nil, errMemory
		}
		there, back := newMemoryPipe(), newMemoryPipe()
		near := &memoryConn{m: m, ends: pair(from, to), from: from, to: to, in: back, out: there}
		far := &memoryConn{m: m, ends: near.ends, from: to, to: from, in: there, out: back}
		m.open[near], m.open[far] = struct{}{}, struct{}{}
		m.mu.Unlock()
		select {
		case l.conns <- far:
			return near, nil
		case <-l.done:
			near.Close()
			far.Close()
			return nil, errMemory
		case <-ctx.Done():
			near.Close()
			far.Close()
			return nil, ctx.Err()
		}
	}
}

// Cut discards what two nodes send each other, like a network that loses every packet,
// until Heal is called.
func (m *Memory) Cut(a, b string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut[pair(a, b)] = true
	for c := range m.open {
		if c.ends == pair(a, b) {
			c.in.stop()
		}
	}
}

// Heal ends all cuts. Connections that lost bytes are closed.
func (m *Memory) Heal() {
	m.mu.Lock()
	var broken []*memoryConn
	for c := range m.open {
		if m.cut[c.ends] {
			broken = append(broken, c)
		}
	}
	clear(m.cut)
	m.mu.Unlock()
	for _, c := range broken {
		c.Close()
	}
}

// Unplug removes a node from the network with all its connections until it listens again.
func (m *Memory) Unplug(node string) {
	m.mu.Lock()
	delete(m.listeners, node)
	var gone []*memoryConn
	for c := range m.open {
		if c.from == node || c.to == node {
			gone = append(gone, c)
		}
	}
	m.mu.Unlock()
	for _, c := range gone {
		c.Close()
	}
}

func pair(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

type memoryListener struct {
	m     *Memory
	node  string
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// Accept implements net.Listener.
func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *memoryListener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.m.mu.Lock()
		defer l.m.mu.Unlock()
		if l.m.listeners[l.node] == l {
			delete(l.m.listeners, l.node)
		}
	})
	return nil
}

// Addr implements net.Listener.
func (l *memoryListener) Addr() net.Addr { return memoryAddr(l.node) }

type memoryAddr string

// Network implements net.Addr, like String.
func (memoryAddr) Network() string  { return "memory" }
func (a memoryAddr) String() string { return net.JoinHostPort(string(a), "1") }

// memoryConn is one end of a connection.
type memoryConn struct {
	m        *Memory
	ends     [2]string
	from, to string
	in, out  *memoryPipe
}

// Read implements net.Conn, like the methods below.
func (c *memoryConn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *memoryConn) Write(b []byte) (int, error) { return c.out.write(b) }

func (c *memoryConn) Close() error {
	c.in.close(net.ErrClosed, io.ErrClosedPipe)
	c.out.close(io.EOF, net.ErrClosed)
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	delete(c.m.open, c)
	return nil
}

func (c *memoryConn) LocalAddr() net.Addr               { return memoryAddr(c.from) }
func (c *memoryConn) RemoteAddr() net.Addr              { return memoryAddr(c.to) }
func (c *memoryConn) SetWriteDeadline(time.Time) error  { return nil } // writes never wait
func (c *memoryConn) SetDeadline(t time.Time) error     { return c.SetReadDeadline(t) }
func (c *memoryConn) SetReadDeadline(t time.Time) error { c.in.setDeadline(t); return nil }

// memoryPipe is one direction of a connection. It accepts any number of bytes, so that no
// goroutine waits in it while holding a lock.
type memoryPipe struct {
	mu       sync.Mutex
	changed  sync.Cond
	bytes    []byte
	stopped  bool  // what is sent does not arrive
	readErr  error // once closed: after the last byte
	writeErr error
	deadline time.Time
	alarm    *time.Timer
}

func newMemoryPipe() *memoryPipe {
	p := &memoryPipe{}
	p.changed.L = &p.mu
	return p
}

func (p *memoryPipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case !p.deadline.IsZero() && !time.Now().Before(p.deadline):
			return 0, os.ErrDeadlineExceeded
		case p.readErr == net.ErrClosed:
			return 0, p.readErr
		case len(p.bytes) > 0 && !p.stopped:
			n := copy(b, p.bytes)
			if p.bytes = p.bytes[n:]; len(p.bytes) == 0 {
				p.bytes = nil
			}
			return n, nil
		case p.readErr != nil:
			return 0, p.readErr
		}
		p.changed.Wait()
	}
}

func (p *memoryPipe) write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.writeErr != nil {
		return 0, p.writeErr
	}
	if !p.stopped {
		p.bytes = append(p.bytes, b...)
		p.changed.Broadcast()
	}
	return len(b), nil
}

func (p *memoryPipe) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
}

// close sets what later reads and writes return. Only the first call counts, except that a
// reader can still close its own end.
func (p *memoryPipe) close(read, write error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.readErr == nil || read == net.ErrClosed {
		p.readErr = read
	}
	if p.writeErr == nil {
		p.writeErr = write
	}
	if p.alarm != nil {
		p.alarm.Stop()
	}
	p.changed.Broadcast()
}

func (p *memoryPipe) setDeadline(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = t
	if p.alarm != nil {
		p.alarm.Stop()
		p.alarm = nil
	}
	if !t.IsZero() {
		p.alarm = time.AfterFunc(time.Until(t), func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.changed.Broadcast()
		})
	}
	p.changed.Broadcast()
}
