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

// maxPool is how many idle connections hashicorp/raft keeps to a target.
const maxPool = 3

// stream opens Raft's connections to other nodes on their peer ports. Raft identifies nodes
// by address; stream finds the node with that address, whose certificate the other end must
// show. Connections from other nodes are accepted elsewhere; see Transport.
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

// Network implements net.Addr, like String.
func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }

// A target is an address and its lanes. A lane separates the connections for one purpose
// from others to the same address, both in hashicorp/raft's pool, which has one list for
// each target, and in stream. An answer does not say which connection it came over, only
// which target. So connections whose other end proved that it is unsealed have a lane of
// their own.
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
	case !want && s.door.knownUnsealed(node): // it has become known since
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

// renew retires the outdated connections to a target, in the proven lane and outside of it,
// that are not in use.
func (s *stream) renew(target raft.ServerAddress) {
	for _, c := range append(s.outdated(target), s.outdated(target+provenLane)...) {
		c.retire()
	}
}

// outdated returns the connections to a target that must be replaced: this node can prove
// more on a new one, or they are not in the lane that the node at the other end has now.
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

// ErrRetired is returned by a connection that accepts no more requests.
var ErrRetired = errors.New("the connection is replaced by one over which the node has proved more")

// outbound is a connection that this node opened for its Raft. hashicorp/raft keeps it in a
// pool between requests.
type outbound struct {
	*conn
	proven  bool // it is in the proven lane
	closed  func()
	busy    atomic.Bool  // a request is waiting for its answer
	answer  atomic.Int64 // bytes received since something was sent
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

// retire closes a connection between two requests. The next request fails with ErrRetired
// before anything is sent.
func (c *outbound) retire() {
	if c.busy.Load() {
		return
	}
	c.retired.Store(true)
	_ = c.Close()
}
