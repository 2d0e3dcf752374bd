package rafttransport

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
)

// conn is a Raft connection whose ends have exchanged their proofs.
type conn struct {
	*peerport.Conn
	theirs *peerproof.Proof
	sealed bool // whether this node was sealed when the connection was made
}

// introduce lets both ends of a new connection prove that they are unsealed, until the
// deadline.
func (d *door) introduce(c *peerport.Conn, end peerproof.Role, deadline time.Time) (*conn, error) {
	rc := &conn{Conn: c, sealed: !d.node.Unsealed()}
	var sign peerproof.Signer
	if !rc.sealed {
		sign = d.node.Sign
	}
	var err error
	rc.theirs, err = peerproof.Exchange(c, d.ID, end, sign, deadline)
	return rc, err
}

// connProven reports whether the other end of a connection proved that it is unsealed.
func (d *door) connProven(c *conn) bool {
	return c.theirs.Good(d.node.Cluster())
}

// acquaint records what the other end of a new connection proved. If it proved nothing, the
// node itself is asked.
func (d *door) acquaint(c *conn, end peerproof.Role) {
	switch {
	case !d.initialised():
	case d.connProven(c):
		d.Standings.Prove(c.Node, time.Now())
	case end == peerproof.Acceptor || d.Standings.Proven(c.Node, time.Now()):
		d.node.AskForProof(c.Node)
	}
}

// ErrImpostor is returned for a request or answer in the name of a node that is known to be
// unsealed, if the other end of the connection has not proved that it is that node.
var ErrImpostor = errors.New("the node has not proved over this connection that it is unsealed")

// notImpostor refuses what arrives over a connection without proof in the name of a node
// that is known to be unsealed. So such a node is heard only over connections with proof,
// and its standing applies to everything that was accepted from it.
func (d *door) notImpostor(node string, proven bool) error {
	if proven || !d.knownUnsealed(node) {
		return nil
	}
	d.Unproven.WithLabelValues(node).Inc()
	if d.Standings.Unasked(node) { // however often such connections are made
		go d.node.AskForProof(node) // ends with the node
	}
	return fmt.Errorf("%s: %w", node, ErrImpostor)
}

// proveMore reports whether this node has been unsealed since the connection was opened.
func (d *door) proveMore(c *conn) bool { return c.sealed && d.initialised() && d.node.Unsealed() }

// knownUnsealed reports whether a node is known to be unsealed.
func (d *door) knownUnsealed(node string) bool {
	return d.initialised() && d.Standings.Proven(node, time.Now())
}

// OpenConn describes an open connection, for tests.
type OpenConn struct {
	net.Conn
	Node    string // at the other end
	Dialled bool   // by this node
	Proven  bool   // the other end proved that it is unsealed
	Busy    bool   // a request of this node is waiting for its answer
}

// Conns returns the open connections.
func (t *Transport) Conns() (list []OpenConn) {
	t.mu.Lock()
	for in := range t.inbound {
		list = append(list, OpenConn{Conn: in.conn, Node: in.conn.Node, Proven: t.door.connProven(in.conn)})
	}
	t.mu.Unlock()
	t.out.mu.Lock()
	defer t.out.mu.Unlock()
	for _, conns := range t.out.open {
		for c := range conns {
			list = append(list, OpenConn{Conn: c, Node: c.Node, Dialled: true, Proven: t.door.connProven(c.conn), Busy: c.busy.Load()})
		}
	}
	return list
}
