// Package peerproof has the ends of a connection between nodes prove to each other that
// they are unsealed, before anything else is sent over it.
//
// The certificate of a connection says which node is at its other end, and whoever copied
// a node's files has that. What nodes answer to a question (package standing) says that the
// node runs somewhere and is unsealed, not that it is the one at the other end. So each
// end signs what no other connection has: keying material that TLS exports for it alone.
package peerproof

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// Role is an end of a connection.
type Role byte

// The ends of a connection.
const (
	Dialer   Role = 'd'
	Acceptor Role = 'a'
)

func (r Role) other() Role {
	if r == Dialer {
		return Acceptor
	}
	return Dialer
}

const (
	// domain separates proofs over connections from what else the key signs.
	domain = "conclave raft connection v1"
	// exporter is the label under which TLS derives what a proof is bound to
	// (RFC 8446, section 7.5).
	exporter     = "EXPORTER-conclave-raft-connection"
	exporterSize = 32
	// proofSize is that of a generation and a signature. A frame has one byte
	// more in front, its length.
	proofSize = 4 + ed25519.SignatureSize
)

// ErrFrame is a connection whose other end does not begin with a proof, or with
// the word that it has none.
var ErrFrame = errors.New("malformed proof at the beginning of a connection")

// prefaceSize is that of what each end begins with, before the frame of its proof: the
// number of the Raft group that the connection is for, big-endian. A proof is of that group
// too, as what the origin key signs names it.
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

// Proof is what one end of a connection says to prove that it is unsealed.
type Proof struct {
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

// digest is what prover signs to prove to verifier that it is unsealed, over the
// connection with that exported keying material of which it is that end.
func digest(prover, verifier string, end Role, exported []byte) [32]byte {
	h := sha256.New()
	for _, b := range [][]byte{[]byte(prover), []byte(verifier), {byte(end)}, exported} {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		_, _ = h.Write(b)
	}
	return [32]byte(h.Sum(nil))
}

// Good reports whether an unsealed node of the cluster made the proof. It is looked at
// again whenever the cluster's record changes: a node whose cluster was just initialised, or lags
// behind, may not know the key yet that made it.
func (p *Proof) Good(c *fsmpb.Cluster) bool {
	if c == nil || p.signature == nil {
		return false
	}
	if j := p.judged.Load(); j != nil && j.by == c {
		return j.good
	}
	j := &judgement{c, fsm.VerifyOrigin(c, p.generation, domain, p.digest, p.signature)}
	p.judged.Store(j)
	return j.good
}

// frame is how a proof is sent.
func (p *Proof) frame() []byte {
	if p.signature == nil {
		return []byte{0}
	}
	b := binary.BigEndian.AppendUint32([]byte{proofSize}, p.generation)
	return append(b, p.signature...)
}

// read takes a proof from the other end, of which nothing but the frame is read.
func (p *Proof) read(r io.Reader) error {
	var b [proofSize]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return err
	}
	switch b[0] {
	case 0:
		return nil
	case proofSize:
	default:
		return fmt.Errorf("%w: of %d bytes", ErrFrame, b[0])
	}
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	p.generation, p.signature = binary.BigEndian.Uint32(b[:4]), b[4:]
	return nil
}

// Exchange has both ends of a new connection prove to each other that they are unsealed, by
// the deadline, and returns what the other end said. A connection of another Raft group is
// refused, with wire.ErrGroup. self is this node, which proves
// nothing if sign is nil. Each end writes before it reads, so neither waits for the other.
func Exchange(c *peerport.Conn, self string, end Role, sign Signer, deadline time.Time) (theirs *Proof, err error) {
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	cs := c.ConnectionState()
	exported, err := cs.ExportKeyingMaterial(exporter, nil, exporterSize)
	if err != nil {
		return nil, err
	}
	theirs = &Proof{digest: digest(c.Node, self, end.other(), exported)}
	var mine Proof
	if sign != nil {
		if g, sig, err := sign(domain, digest(self, c.Node, end, exported)); err == nil && len(sig) == ed25519.SignatureSize {
			mine.generation, mine.signature = g, sig
		}
	}
	if _, err := c.Write(append(preface(), mine.frame()...)); err != nil {
		return nil, err
	}
	if err := readPreface(c); err != nil {
		return nil, err
	}
	if err := theirs.read(c); err != nil {
		return nil, err
	}
	return theirs, c.SetDeadline(time.Time{})
}

// Signer signs a digest with the newest generation of the cluster's origin key, separated
// by domain from what else that key signs.
type Signer func(domain string, digest [32]byte) (generation uint32, signature []byte, err error)
