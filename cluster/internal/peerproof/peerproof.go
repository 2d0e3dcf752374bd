// Package peerproof lets both ends of a connection between nodes prove to each other that
// they are unsealed, before anything else is sent over it.
//
// The certificate of a connection names the node at its other end, but a copy of the node's
// files contains it too. A node's answer to a question (package standing) proves that the
// node runs somewhere and is unsealed, but not that it is at the other end of this
// connection. So each end signs what no other connection has: keying material that TLS
// exports for this one.
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
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/fsm/wire"
)

// Role is one of the two ends of a connection.
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
	// domain separates these proofs from other data that the origin key signs.
	domain = "conclave raft connection v1"
	// exporter is the label under which TLS exports the keying material that a proof is
	// bound to (RFC 8446, section 7.5).
	exporter     = "EXPORTER-conclave-raft-connection"
	exporterSize = 32
	// proofSize is the size of a generation and a signature. A frame has one more byte in
	// front, which is its length.
	proofSize = 4 + ed25519.SignatureSize
)

// ErrFrame is returned for a connection whose other end does not begin with a proof, or
// with an empty frame for none.
var ErrFrame = errors.New("malformed proof at the beginning of a connection")

// prefaceSize is the size of the number of the Raft group, big-endian, that each end sends
// before the frame of its proof. The proof is bound to the group as well, because the group
// is part of everything that the origin key signs.
const prefaceSize = 4

// preface returns the preface of this node's connections.
func preface() []byte { return binary.BigEndian.AppendUint32(nil, wire.Group) }

// readPreface returns wire.ErrGroup for a connection of another Raft group.
func readPreface(r io.Reader) error {
	var b [prefaceSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	return wire.CheckGroup(binary.BigEndian.Uint32(b[:]))
}

// Proof is the proof of one end of a connection that it is unsealed.
type Proof struct {
	digest     [32]byte // the signed digest
	generation uint32
	signature  []byte // nil if there is no proof
	judged     atomic.Pointer[judgement]
}

// judgement is the validity of a proof under the origin keys of a cluster's record.
type judgement struct {
	by   *fsmpb.Cluster
	good bool
}

// digest returns the digest that prover signs to prove to verifier that it is unsealed. end
// is the prover's end of the connection, and exported its exported keying material.
func digest(prover, verifier string, end Role, exported []byte) [32]byte {
	h := sha256.New()
	for _, b := range [][]byte{[]byte(prover), []byte(verifier), {byte(end)}, exported} {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		_, _ = h.Write(b)
	}
	return [32]byte(h.Sum(nil))
}

// Good reports whether the proof was made by an unsealed node of the cluster. It is
// evaluated again whenever the cluster's record changes: a node whose cluster was just
// initialised, or that lags behind, may not have the key for it yet.
func (p *Proof) Good(c *fsmpb.Cluster) bool {
	if c == nil || p.signature == nil {
		return false
	}
	if j := p.judged.Load(); j != nil && j.by == c {
		return j.good
	}
	j := &judgement{c, origin.Verify(c, p.generation, domain, p.digest, p.signature)}
	p.judged.Store(j)
	return j.good
}

// frame returns the encoded proof.
func (p *Proof) frame() []byte {
	if p.signature == nil {
		return []byte{0}
	}
	b := binary.BigEndian.AppendUint32([]byte{proofSize}, p.generation)
	return append(b, p.signature...)
}

// read reads the proof of the other end, and nothing beyond its frame.
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

// Exchange lets both ends of a new connection prove to each other that they are unsealed,
// until the deadline, and returns the proof of the other end. It returns wire.ErrGroup for
// a connection of another Raft group. self is this node, which proves nothing if sign is
// nil. Each end writes before it reads, so neither waits for the other.
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

// Signer signs a digest with the newest generation of the cluster's origin key. domain
// separates it from other data that this key signs.
type Signer func(domain string, digest [32]byte) (generation uint32, signature []byte, err error)
