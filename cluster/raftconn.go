package cluster

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// The certificate of a connection says which node is at its other end, and whoever
// copied a node's files has that. What other nodes answer to a question (standing)
// says that the node runs somewhere and is unsealed, not that it is the one at the
// other end. So the ends of each connection of Raft prove to each other, before Raft
// gets it, that they are unsealed: each signs what no other connection has.

// role is an end of a connection.
type role byte

const (
	dialer   role = 'd'
	acceptor role = 'a'
)

func (r role) other() role {
	if r == dialer {
		return acceptor
	}
	return dialer
}

const (
	// connDomain separates proofs over connections from what else the key signs.
	connDomain = "conclave raft connection v1"
	// connExporter is the label under which TLS derives what a proof is bound to
	// (RFC 8446, section 7.5).
	connExporter = "EXPORTER-conclave-raft-connection"
	exporterSize = 32
	// connProofSize is that of a generation and a signature. A frame has one byte
	// more in front, its length.
	connProofSize = 4 + ed25519.SignatureSize
)

// errProofFrame is a connection whose other end does not begin with a proof, or with
// the word that it has none.
var errProofFrame = errors.New("malformed proof at the beginning of a connection")

// prefaceSize is that of what each end of a connection of Raft begins with, before the
// frame of its proof: the number of the Raft group that it is for, big-endian. A proof is
// of that group too, as what the origin key signs names it.
const prefaceSize = 4

// preface is that of a connection of this node's.
func preface() []byte { return binary.BigEndian.AppendUint32(nil, wire.Group) }

// readPreface refuses a connection of another Raft group, with wire.ErrGroup.
func readPreface(r io.Reader) error {
	var b [prefaceSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	return wire.CheckGroup(binary.BigEndian.Uint32(b[:]))
}

// connProof is what one end of a connection says to prove that it is unsealed.
type connProof struct {
	digest     [32]byte // what is to be signed
	generation uint32
	signature  []byte // nil for none
	judged     atomic.Pointer[judgement]
}

// judgement is what a proof is worth by the origin keys of a cluster.
type judgement struct {
	by   *fsmpb.Cluster
	good bool
}

// connDigest is what prover signs to prove to verifier that it is unsealed, over the
// connection with that exported keying material of which it is that end.
func connDigest(prover, verifier string, end role, exported []byte) [32]byte {
	h := sha256.New()
	for _, b := range [][]byte{[]byte(prover), []byte(verifier), {byte(end)}, exported} {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		_, _ = h.Write(b)
	}
	return [32]byte(h.Sum(nil))
}

// good reports whether an unsealed node of the cluster made the proof. It is looked at
// again whenever the cluster's record changes: a node that was just founded, or lags
// behind, may not know the key yet that made it.
func (p *connProof) good(c *fsmpb.Cluster) bool {
	if c == nil || p.signature == nil {
		return false
	}
	if j := p.judged.Load(); j != nil && j.by == c {
		return j.good
	}
	j := &judgement{c, fsm.VerifyOrigin(c, p.generation, connDomain, p.digest, p.signature)}
	p.judged.Store(j)
	return j.good
}

// frame is how a proof is sent.
func (p *connProof) frame() []byte {
	if p.signature == nil {
		return []byte{0}
	}
	b := binary.BigEndian.AppendUint32([]byte{connProofSize}, p.generation)
	return append(b, p.signature...)
}

// read takes a proof from the other end, of which nothing but the frame is read.
func (p *connProof) read(r io.Reader) error {
	var b [connProofSize]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return err
	}
	switch b[0] {
	case 0:
		return nil
	case connProofSize:
	default:
		return fmt.Errorf("%w: of %d bytes", errProofFrame, b[0])
	}
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	p.generation, p.signature = binary.BigEndian.Uint32(b[:4]), b[4:]
	return nil
}

// raftConn is a connection of Raft whose ends have said what they can prove.
type raftConn struct {
	*peerConn
	theirs connProof
	sealed bool // this node was sealed when it was made
}

// introduce has both ends of a new connection prove themselves, by the deadline. Each
// end writes before it reads, so neither waits for the other.
func (n *Node) introduce(c *peerConn, end role, deadline time.Time) (*raftConn, error) {
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	cs := c.ConnectionState()
	exported, err := cs.ExportKeyingMaterial(connExporter, nil, exporterSize)
	if err != nil {
		return nil, err
	}
	rc := &raftConn{peerConn: c, sealed: !n.unsealed()}
	rc.theirs.digest = connDigest(c.node, n.cfg.NodeID, end.other(), exported)
	var mine connProof
	if !rc.sealed {
		if g, sig, err := n.sign(connDomain, connDigest(n.cfg.NodeID, c.node, end, exported)); err == nil && len(sig) == ed25519.SignatureSize {
			mine.generation, mine.signature = g, sig
		}
	}
	if _, err := c.Write(append(preface(), mine.frame()...)); err != nil {
		return nil, err
	}
	if err := readPreface(c); err != nil {
		return nil, err
	}
	if err := rc.theirs.read(c); err != nil {
		return nil, err
	}
	return rc, c.SetDeadline(time.Time{})
}

// connProven reports whether the other end of a connection proved that it is unsealed.
func (n *Node) connProven(c *raftConn) bool {
	cluster, _ := n.State().Cluster()
	return c.theirs.good(cluster)
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
	if n.standings.unasked(node) { // however often somebody comes
		go n.askForProof(node) // ends with the node
	}
	return fmt.Errorf("%s: %w", node, errImpostor)
}

// proveMore reports whether this node has been unsealed since it opened a connection.
func (n *Node) proveMore(c *raftConn) bool { return c.sealed && n.founded() && n.unsealed() }

// knownUnsealed reports whether a node is known to be unsealed.
func (n *Node) knownUnsealed(node string) bool {
	return n.founded() && n.standings.proven(node, time.Now())
}

// errRetired is a connection that takes no more requests.
var errRetired = errors.New("the connection gives way to one over which more is proven")

// outbound is a connection that this node opened for its Raft. hashicorp/raft keeps it
// in a pool between requests.
type outbound struct {
	*raftConn
	proven  bool // the other end proved itself, when it was opened
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
	if c.answer.Add(int64(n)) > maxAnswer {
		return 0, fmt.Errorf("%w: an answer of more than %d bytes", errExcess, maxAnswer)
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
