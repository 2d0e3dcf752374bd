package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/wire"
)

// Authority is what only an unsealed node of an initialised cluster has. A node without
// it keeps copies and votes, and nothing that it says changes the state.
type Authority interface {
	// Sealed reports whether the node has no authority now.
	Sealed() bool
	// SignOrigin signs with the cluster's origin key; see fsm.VerifyOrigin.
	SignOrigin(domain string, digest [32]byte) (generation uint32, signature []byte, err error)
	// PeerMAC authenticates a message to other unsealed nodes, with a key of the
	// keyring.
	PeerMAC(message []byte) (generation uint32, mac []byte, err error)
	// CheckPeerMAC checks what another node's PeerMAC gave. ErrSealed says that
	// this node cannot tell; every other error, that no unsealed node made it.
	CheckPeerMAC(generation uint32, message, mac []byte) error
}

// SetAuthority registers this node's authority, once, before it takes part.
func (n *Node) SetAuthority(a Authority) { n.authority.Store(&a) }

// sign signs as an unsealed node.
func (n *Node) sign(domain string, digest [32]byte) (generation uint32, signature []byte, err error) {
	if !n.unsealed() {
		return 0, nil, ErrSealed
	}
	return (*n.authority.Load()).SignOrigin(domain, digest)
}

// signEntry signs an encoded entry as an unsealed leader.
func (n *Node) signEntry(encoded []byte) ([]byte, error) {
	return n.machine.fsm.SignEntry(encoded, n.sign)
}

// initialised reports whether the state has a cluster: from then on nothing enters the
// state that no unsealed node vouches for.
func (n *Node) initialised() bool {
	c, _ := n.State().Cluster()
	return c != nil
}

// unsealed reports whether this node has authority.
func (n *Node) unsealed() bool {
	a := n.authority.Load()
	return a != nil && !(*a).Sealed()
}

// powerless reports whether the cluster is initialised and this node sealed.
func (n *Node) powerless() bool { return n.initialised() && !n.unsealed() }

// submissionMAC authenticates an encoded batch or registration to the leader. There
// is none before the cluster is initialised.
func (n *Node) submissionMAC(kind string, encoded []byte) (generation uint32, mac []byte, err error) {
	if !n.initialised() {
		return 0, nil, nil
	}
	if !n.unsealed() {
		return 0, nil, ErrSealed
	}
	return (*n.authority.Load()).PeerMAC(macMessage(kind, encoded))
}

// errForged is what no honest node sends.
var errForged = errors.New("not from an unsealed node of this cluster")

// checkSubmission checks the MAC of what another node submitted. The error is
// ErrSealed when this node cannot tell or the other one did not claim anything,
// and errForged when the claim is false.
func (n *Node) checkSubmission(kind string, encoded []byte, generation uint32, mac []byte) error {
	if !n.initialised() {
		return nil
	}
	if !n.unsealed() || len(mac) == 0 {
		return ErrSealed
	}
	if err := (*n.authority.Load()).CheckPeerMAC(generation, macMessage(kind, encoded), mac); err != nil {
		if errors.Is(err, ErrSealed) {
			return ErrSealed
		}
		return fmt.Errorf("%w: %w", errForged, err)
	}
	return nil
}

func macMessage(kind string, encoded []byte) []byte {
	return append(append(make([]byte, 0, len(kind)+len(encoded)), kind...), encoded...)
}

// unsealedDomain separates proofs of being unsealed from what else the key signs.
const unsealedDomain = "conclave unsealed v1"

// proofWait bounds how long another node may take to prove itself.
const proofWait = 2 * time.Second

// proofDigest is what a node signs to prove to another, for its nonce, that it is
// unsealed and what state it has.
func proofDigest(prover, verifier string, nonce []byte, index uint64, hash []byte) [32]byte {
	h := sha256.New()
	for _, b := range [][]byte{[]byte(prover), []byte(verifier), nonce, hash} {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		_, _ = h.Write(b)
	}
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, index))
	return [32]byte(h.Sum(nil))
}

// prove adds this node's proof for the verifier's nonce, if it can.
func (n *Node) prove(r *clusterpb.ClockResponse, verifier string, nonce []byte) {
	s := n.State()
	hash := s.Hash()
	r.StateIndex, r.StateHash = s.Index(), hash[:]
	if len(nonce) != peerproof.NonceSize {
		return
	}
	g, sig, err := n.sign(unsealedDomain, proofDigest(r.Node, verifier, nonce, r.StateIndex, r.StateHash))
	if err == nil {
		r.Generation, r.Proof = g, sig
	}
}

// proven checks another node's proof.
func (n *Node) proven(r *clusterpb.ClockResponse, nonce []byte) bool {
	c, _ := n.State().Cluster()
	return fsm.VerifyOrigin(c, r.Generation, unsealedDomain, proofDigest(r.Node, n.cfg.NodeID, nonce, r.StateIndex, r.StateHash), r.Proof)
}

// challenge has the node at the other end of client prove that it is unsealed. It
// proves nothing about who leads.
func (n *Node) challenge(ctx context.Context, node string, client clusterpb.PeerClient) error {
	if !n.initialised() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, proofWait)
	defer cancel()
	nonce := peerproof.NewNonce()
	r, err := client.Clock(ctx, &clusterpb.ClockRequest{Group: wire.Group, Nonce: nonce})
	if err != nil {
		return err
	}
	if r.Node != node || !n.proven(r, nonce) {
		return fmt.Errorf("%w: %s leads", ErrSealed, node)
	}
	return nil
}
