package cluster

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/clustertest"
	"github.com/conclavekms/conclave/fsm"
)

// network lets a test cut nodes off. Connections stay open and fall silent, as
// they do when a cable is pulled.
type network struct {
	mu  sync.Mutex
	cut map[string]bool
}

func (w *network) set(node string, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[node] = cut
}

func (w *network) silent(a, b string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut[a] || w.cut[b]
}

func (w *network) dialer(self string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, node, addr string) (net.Conn, error) {
		for w.silent(self, node) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(5 * time.Millisecond):
			}
		}
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return &silentConn{Conn: c, silent: func() bool { return w.silent(self, node) }, done: make(chan struct{})}, nil
	}
}

type silentConn struct {
	net.Conn
	silent   func() bool
	done     chan struct{}
	once     sync.Once
	mu       sync.Mutex
	deadline time.Time
}

func (c *silentConn) wait() error {
	for c.silent() {
		c.mu.Lock()
		late := !c.deadline.IsZero() && time.Now().After(c.deadline)
		c.mu.Unlock()
		if late {
			return os.ErrDeadlineExceeded
		}
		select {
		case <-c.done:
			return net.ErrClosed
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

func (c *silentConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if werr := c.wait(); werr != nil {
		return 0, werr
	}
	return n, err
}

func (c *silentConn) Write(b []byte) (int, error) {
	if err := c.wait(); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

func (c *silentConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadline = t
	c.mu.Unlock()
	return c.Conn.SetDeadline(t)
}

func (c *silentConn) Close() error {
	c.once.Do(func() { close(c.done) })
	return c.Conn.Close()
}

// TestPartition cuts the leader off under load: it must accept nothing alone,
// the majority goes on, and what was submitted on either side is decided once.
func TestPartition(t *testing.T) {
	t.Parallel()
	w := &network{cut: make(map[string]bool)}
	c := startCluster(t, 3, func(id string, cfg *Config) { cfg.Hooks.Dial = w.dialer(id) })
	old, majority := c.leader(), c.followers()
	var mu sync.Mutex
	accepted := make(map[[16]byte]int64) // Raft index by request
	propose := func(n *testNode) (fsm.Decision, error) {
		r := clustertest.Record()
		v, err := n.Propose(context.Background(), r)
		if err == nil && v.Verdict == fsm.Accepted {
			mu.Lock()
			accepted[[16]byte(r.RequestId)] = int64(v.Index)
			mu.Unlock()
		}
		return v, err
	}
	for _, n := range c.up() {
		if _, err := propose(n); err != nil {
			t.Fatal(err)
		}
	}
	w.set(old.id, true)
	var wg sync.WaitGroup
	type result struct {
		at  time.Time
		v   fsm.Decision
		err error
	}
	alone := make(chan result, 8)
	for range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			v, err := propose(old)
			alone <- result{time.Now(), v, err}
		}()
	}
	for _, n := range majority {
		if _, err := propose(n); err != nil {
			t.Errorf("%s, in the majority: %v", n.id, err)
		}
	}
	if l := c.leader(); l == old {
		t.Error("the majority has no leader of its own")
	}
	time.Sleep(100 * time.Millisecond)
	healed := time.Now()
	w.set(old.id, false)
	wg.Wait()
	close(alone)
	for r := range alone {
		switch {
		case r.err == nil && r.at.Before(healed):
			t.Errorf("a node alone answered %+v", r.v)
		case r.err != nil && !errors.Is(r.err, ErrNoLeader):
			t.Errorf("after the cut was healed: %v", r.err)
		}
	}
	c.converged()
	got := leaves(t, c.leader())
	for id := range accepted {
		if got[id] != 1 {
			t.Errorf("accepted request %x is %d times in the log", id, got[id])
		}
	}
	c.noFaults()
}
