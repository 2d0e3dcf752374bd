package harness

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Anyone stands for every sender where a proxy cannot tell who connects.
const Anyone = "*"

// Rule is what a link does to the bytes in one direction.
type Rule struct {
	// Delay is added to each byte, plus up to Jitter. Bytes stay in order.
	Delay, Jitter time.Duration
	// Reset is the probability that a chunk of bytes ends its connection.
	Reset float64
	// Hold lets nothing through until the rule changes, like a network that loses every
	// packet.
	Hold bool
}

// Network carries the connections between nodes and breaks them on demand. With the zero
// rule everywhere it has no faults.
type Network struct {
	// Break makes every connection obey the rules. Without it connections are only tracked,
	// at no cost, and can be cut.
	Break bool

	mu      sync.Mutex
	random  *rand.Rand
	rules   map[[2]string]Rule
	changed chan struct{}
	gone    map[string]bool
	open    map[*wire]struct{}
	proxies []net.Listener
}

// NewNetwork returns a network without faults. Its random decisions are derived from seed.
func NewNetwork(seed uint64) *Network {
	return &Network{
		random: rand.New(rand.NewPCG(seed, 1)), rules: make(map[[2]string]Rule), changed: make(chan struct{}),
		gone: make(map[string]bool), open: make(map[*wire]struct{}),
	}
}

// wire is one connection.
type wire struct {
	from, to string // from is the node that dialled
	conns    []net.Conn
	done     chan struct{}
	once     sync.Once
}

func (c *wire) close() {
	c.once.Do(func() {
		close(c.done)
		for _, conn := range c.conns {
			conn.Close()
		}
	})
}

// Set sets the rule for the bytes from one node to another.
func (w *Network) Set(from, to string, r Rule) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rules[[2]string{from, to}] = r
	close(w.changed)
	w.changed = make(chan struct{})
}

// SetBoth sets the rule for both directions between two nodes.
func (w *Network) SetBoth(a, b string, r Rule) {
	w.Set(a, b, r)
	w.Set(b, a, r)
}

// Heal removes all rules.
func (w *Network) Heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.rules)
	close(w.changed)
	w.changed = make(chan struct{})
}

// Isolate closes all connections of a node, as if it had stopped, and prevents new ones
// until Rejoin.
func (w *Network) Isolate(node string) {
	w.mu.Lock()
	w.gone[node] = true
	var cut []*wire
	for c := range w.open {
		if c.from == node || c.to == node {
			cut = append(cut, c)
		}
	}
	w.mu.Unlock()
	for _, c := range cut {
		c.close()
	}
}

// Rejoin lets a node connect again.
func (w *Network) Rejoin(node string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.gone, node)
}

// Close closes all connections.
func (w *Network) Close() {
	w.mu.Lock()
	proxies := w.proxies
	w.proxies = nil
	var all []*wire
	for c := range w.open {
		all = append(all, c)
	}
	w.mu.Unlock()
	for _, l := range proxies {
		l.Close()
	}
	for _, c := range all {
		c.close()
	}
}

// rule returns the rule of a direction, and a channel that is closed when it changes.
func (w *Network) rule(from, to string) (Rule, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.rules[[2]string{from, to}]
	if !ok {
		r = w.rules[[2]string{Anyone, to}]
	}
	return r, w.changed
}

// chance decides at random whether a chunk ends the connection, and how much it is delayed.
func (w *Network) chance(r Rule) (reset bool, jitter time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	reset = r.Reset > 0 && w.random.Float64() < r.Reset
	if r.Jitter > 0 {
		jitter = time.Duration(w.random.Int64N(int64(r.Jitter)))
	}
	return reset, jitter
}

var errIsolated = errors.New("the node is cut off")

// add registers a connection, if both ends may connect.
func (w *Network) add(c *wire) error {
	c.done = make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone[c.from] || w.gone[c.to] {
		return errIsolated
	}
	w.open[c] = struct{}{}
	return nil
}

func (w *Network) forget(c *wire) {
	c.close()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, c)
}

// Dialer returns the function for cluster.Hooks.Dial of a node.
func (w *Network) Dialer(from string) func(ctx context.Context, node, addr string) (net.Conn, error) {
	var d net.Dialer
	return func(ctx context.Context, node, addr string) (net.Conn, error) {
		if hold, _ := w.rule(from, node); hold.Hold {
			// This acts like a SYN packet that was lost.
			<-ctx.Done()
			return nil, ctx.Err()
		}
		out, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		c := &wire{from: from, to: node, conns: []net.Conn{out}}
		if !w.Break {
			if err := w.add(c); err != nil {
				out.Close()
				return nil, err
			}
			return &tracked{Conn: out, closed: func() { w.forget(c) }}, nil
		}
		near, far := net.Pipe()
		c.conns = append(c.conns, far)
		if err := w.add(c); err != nil {
			out.Close()
			return nil, err
		}
		go w.carry(c, far, out)
		return &tracked{Conn: near, remote: out.RemoteAddr(), local: out.LocalAddr(), closed: func() {}}, nil
	}
}

// Proxy listens for connections to a node and forwards them to the address that it really
// listens on. It cannot tell which node connects, so the rules from Anyone apply to the
// requests and those to Anyone to the answers.
func (w *Network) Proxy(node, listen, target string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.proxies = append(w.proxies, l)
	w.mu.Unlock()
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				out, err := net.Dial("tcp", target)
				if err != nil {
					in.Close()
					return
				}
				c := &wire{from: Anyone, to: node, conns: []net.Conn{in, out}}
				if w.add(c) != nil {
					in.Close()
					out.Close()
					return
				}
				w.carry(c, in, out)
			}()
		}
	}()
	return nil
}

// carry forwards bytes both ways until either end closes.
func (w *Network) carry(c *wire, near, far net.Conn) {
	defer w.forget(c)
	var both sync.WaitGroup
	both.Go(func() { w.move(c, far, near, c.from, c.to) })
	both.Go(func() { w.move(c, near, far, c.to, c.from) })
	both.Wait()
}

type chunk struct {
	data []byte
	due  time.Time
}

// move forwards one direction. Its buffer is bounded, so a held link pushes back on its
// sender as TCP does.
func (w *Network) move(c *wire, dst, src net.Conn, from, to string) {
	chunks := make(chan chunk, 64)
	go func() {
		defer close(chunks)
		var last time.Time
		buf := make([]byte, 32<<10)
		for {
			n, err := src.Read(buf)
			if n > 0 {
				r, _ := w.rule(from, to)
				reset, jitter := w.chance(r)
				if reset {
					c.close()
					return
				}
				due := time.Now().Add(r.Delay + jitter)
				if due.Before(last) {
					due = last
				}
				last = due
				select {
				case chunks <- chunk{append([]byte(nil), buf[:n]...), due}:
				case <-c.done:
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	defer c.close()
	for k := range chunks {
		if d := time.Until(k.due); d > 0 {
			select {
			case <-time.After(d):
			case <-c.done:
				return
			}
		}
		for {
			r, changed := w.rule(from, to)
			if !r.Hold {
				break
			}
			select {
			case <-changed:
			case <-c.done:
				return
			}
		}
		if _, err := dst.Write(k.data); err != nil {
			return
		}
	}
}

// tracked is a connection that reports when it is closed.
type tracked struct {
	net.Conn
	local, remote net.Addr
	closed        func()
}

// Close implements net.Conn.
func (c *tracked) Close() error {
	err := c.Conn.Close()
	c.closed()
	return err
}

// LocalAddr implements net.Conn.
func (c *tracked) LocalAddr() net.Addr {
	if c.local != nil {
		return c.local
	}
	return c.Conn.LocalAddr()
}

// RemoteAddr implements net.Conn.
func (c *tracked) RemoteAddr() net.Addr {
	if c.remote != nil {
		return c.remote
	}
	return c.Conn.RemoteAddr()
}
