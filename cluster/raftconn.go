package cluster

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/cluster/internal/raftscan"
)

// raftConn is a connection of Raft whose ends have said what they can prove.
type raftConn struct {
	*peerport.Conn
	theirs *peerproof.Proof
	sealed bool // this node was when it was made
}

// introduce has both ends of a new connection prove themselves, by the deadline.
func (n *Node) introduce(c *peerport.Conn, end peerproof.Role, deadline time.Time) (*raftConn, error) {
	rc := &raftConn{Conn: c, sealed: !n.unsealed()}
	sign := n.sign
	if rc.sealed {
		sign = nil
	}
	var err error
	rc.theirs, err = peerproof.Exchange(c, n.cfg.NodeID, end, sign, deadline)
	return rc, err
}

// connProven reports whether the other end of a connection proved that it is unsealed.
func (n *Node) connProven(c *raftConn) bool {
	cluster, _ := n.State().Cluster()
	return c.theirs.Good(cluster)
}

// errImpostor is what comes over a connection in the name of a node that is known to
// be unsealed, from an end that did not prove itself.
var errImpostor = errors.New("not proven over this connection to be the unsealed node that it says it is")

// notImpostor refuses what comes from an end without proof in the name of a node that
// proves itself when it is asked. So a node that is known to be unsealed is heard only
// over connections with proof, and what standing says of a node holds for whatever was
// heard of it.
func (n *Node) notImpostor(node string, proven bool) error {
	if proven || !n.knownUnsealed(node) {
		return nil
	}
	n.metrics.unproven.WithLabelValues(node).Inc()
	if n.standings.Unasked(node) { // however often somebody comes
		go n.askForProof(node) // ends with the node
	}
	return fmt.Errorf("%s: %w", node, errImpostor)
}

// proveMore reports whether this node has been unsealed since it opened a connection.
func (n *Node) proveMore(c *raftConn) bool { return c.sealed && n.initialised() && n.unsealed() }

// knownUnsealed reports whether a node is known to be unsealed.
func (n *Node) knownUnsealed(node string) bool {
	return n.initialised() && n.standings.Proven(node, time.Now())
}

// errRetired is a connection that takes no more requests.
var errRetired = errors.New("the connection gives way to one over which more is proven")

// outbound is a connection that this node opened for its Raft. hashicorp/raft keeps it
// in a pool between requests.
type outbound struct {
	*raftConn
	proven  bool // it is in the proven lane
	closed  func()
	busy    atomic.Bool  // a request waits for its answer
	answer  atomic.Int64 // bytes since something was sent
	retired atomic.Bool
}

// Write implements net.Conn.
func (c *outbound) Write(b []byte) (int, error) {
	if c.retired.Load() {
		return 0, errRetired
	}
	c.busy.Store(true)
	c.answer.Store(0)
	return c.raftConn.Write(b)
}

// Read implements net.Conn.
func (c *outbound) Read(b []byte) (int, error) {
	n, err := c.raftConn.Read(b)
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
	err := c.raftConn.Close()
	c.closed()
	return err
}

// retire closes a connection between two requests. The next one fails with
// errRetired, before anything is sent.
func (c *outbound) retire() {
	if c.busy.Load() {
		return
	}
	c.retired.Store(true)
	_ = c.Close()
}

var _ net.Conn = (*outbound)(nil)
