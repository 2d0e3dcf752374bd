package rafttransport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/cluster/internal/raftscan"
)

// maxPool is how many connections without a request hashicorp/raft keeps to a target.
const maxPool = 3

// stream carries Raft to other nodes over the peer port. Raft knows nodes by
// address; the address says which node's certificate the other end must have.
// What comes from other nodes does not come this way: see Transport.
type stream struct {
	*peerport.Listener
	door *door

	mu sync.Mutex
	// open are the connections to each target.
	open map[raft.ServerAddress]map[*outbound]struct{}
}

func newStream(d *door) *stream {
	return &stream{
		Listener: peerport.NewListener(advertised(d.Advertise)), door: d,
		open: make(map[raft.ServerAddress]map[*outbound]struct{}),
	}
}

// advertised is the address under which other nodes know this one.
type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

// lane separates the connections of a target that serve one purpose from others, in
// hashicorp/raft's pool, which knows them by target, and in stream: a target is an
// address and its lanes. An answer does not say which connection it came over, but it is
// one of its target's, so those whose other end proved itself have a lane of their own.
const (
	laneMark      = "#"
	provenLane    = laneMark + "proven"
	pipelineLane  = laneMark + "pipeline"
	snapshotsLane = laneMark + "snapshots"
)

// Dial implements raft.StreamLayer.
func (s *stream) Dial(target raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	addr, lanes, _ := strings.Cut(string(target), laneMark)
	node, ok := s.door.node.NodeAt(addr)
	if !ok {
		return nil, fmt.Errorf("%w: no node is known at %s", peerport.ErrUnreachable, addr)
	}
	deadline := time.Now().Add(timeout)
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	pc, err := s.door.node.Connect(ctx, node)
	if err != nil {
		return nil, err
	}
	rc, err := s.door.introduce(pc, peerproof.Dialer, deadline)
	if err != nil {
		pc.Close()
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	s.door.acquaint(rc, peerproof.Dialer)
	want := strings.HasSuffix(laneMark+lanes, provenLane)
	switch {
	case want && !s.door.connProven(rc):
		pc.Close()
		s.door.Unproven.WithLabelValues(node).Inc()
		return nil, fmt.Errorf("%s: %w", node, ErrImpostor)
	case !want && s.door.knownUnsealed(node): // since now
		pc.Close()
		return nil, ErrRetired
	}
	c := &outbound{conn: rc, proven: want}
	c.closed = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open[target], c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[target] == nil {
		s.open[target] = make(map[*outbound]struct{})
	}
	s.open[target][c] = struct{}{}
	return c, nil
}

// renew closes those connections to a target, with and without the proven lane, that
// should give way to others, if they are not in use.
func (s *stream) renew(target raft.ServerAddress) {
	for _, c := range append(s.outdated(target), s.outdated(target+provenLane)...) {
		c.retire()
	}
}

// outdated are the connections to a target that should give way to others: ones over
// which this node can prove more, or in the lane in which the node at the other end is
// asked now.
func (s *stream) outdated(target raft.ServerAddress) (list []*outbound) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open[target] {
		if s.door.proveMore(c.conn) || c.proven != s.door.knownUnsealed(c.Node) || c.proven && !s.door.connProven(c.conn) {
			list = append(list, c)
		}
	}
	return list
}

// ErrRetired is a connection that takes no more requests.
var ErrRetired = errors.New("the connection gives way to one over which more is proven")

// outbound is a connection that this node opened for its Raft. hashicorp/raft keeps it
// in a pool between requests.
type outbound struct {
	*conn
	proven  bool // it is in the proven lane
	closed  func()
	busy    atomic.Bool  // a request waits for its answer
	answer  atomic.Int64 // bytes since something was sent
	retired atomic.Bool
}

// Write implements net.Conn.
func (c *outbound) Write(b []byte) (int, error) {
	if c.retired.Load() {
		return 0, ErrRetired
	}
	c.busy.Store(true)
	c.answer.Store(0)
	return c.conn.Write(b)
}

// Read implements net.Conn.
func (c *outbound) Read(b []byte) (int, error) {
	n, err := c.conn.Read(b)
	if n > 0 {
		c.busy.Store(false)
	}
	if c.answer.Add(int64(n)) > raftscan.MaxAnswer {
		return 0, fmt.Errorf("%w: an answer of more than %d bytes", raftscan.ErrExcess, raftscan.MaxAnswer)
	}
	return n, err
}

// Close implements net.Conn.
func (c *outbound) Close() error {
	err := c.conn.Close()
	c.closed()
	return err
}

// retire closes a connection between two requests. The next one fails with
// ErrRetired, before anything is sent.
func (c *outbound) retire() {
	if c.busy.Load() {
		return
	}
	c.retired.Store(true)
	_ = c.Close()
}
