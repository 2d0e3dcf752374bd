package peers

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/peerproof"
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/fsm/wire"
)

// unsealedDomain separates these proofs from other data that the origin key signs.
const unsealedDomain = "conclave unsealed v1"

// ProofWait bounds how long another node may take to prove itself.
const ProofWait = 2 * time.Second

// proofDigest returns the digest that a node signs to prove to another, for that node's
// nonce, that it is unsealed and which state it has.
func proofDigest(prover, verifier string, nonce []byte, index uint64, hash []byte) [32]byte {
	h := sha256.New()
	for _, b := range [][]byte{[]byte(prover), []byte(verifier), nonce, hash} {
		_, _ = h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		_, _ = h.Write(b)
	}
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, index))
	return [32]byte(h.Sum(nil))
}

// prove adds this node's proof for the verifier's nonce, unless the node is sealed.
func (s *server) prove(r *clusterpb.ClockResponse, verifier string, nonce []byte) {
	state := s.node.State()
	hash := state.Hash()
	r.StateIndex, r.StateHash = state.Index(), hash[:]
	if len(nonce) != peerproof.NonceSize {
		return
	}
	g, sig, err := s.node.Sign(unsealedDomain, proofDigest(r.Node, verifier, nonce, r.StateIndex, r.StateHash))
	if err == nil {
		r.Generation, r.Proof = g, sig
	}
}

// Proven reports whether an answer has a valid proof, for a nonce of this node, that its
// sender is unsealed.
func (p *Clients) Proven(r *clusterpb.ClockResponse, nonce []byte) bool {
	return origin.Verify(p.conf.Cluster(), r.Generation, unsealedDomain, proofDigest(r.Node, p.conf.ID, nonce, r.StateIndex, r.StateHash), r.Proof)
}

// Challenge asks the node at the other end of client to prove that it is unsealed. The
// proof says nothing about which node leads.
func (p *Clients) Challenge(ctx context.Context, node string, client clusterpb.PeerClient) error {
	if p.conf.Cluster() == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, ProofWait)
	defer cancel()
	nonce := peerproof.NewNonce()
	r, err := client.Clock(ctx, &clusterpb.ClockRequest{Group: wire.Group, Nonce: nonce})
	if err != nil {
		return err
	}
	if r.Node != node || !p.Proven(r, nonce) {
		return fmt.Errorf("%w: %s leads", commit.ErrSealed, node)
	}
	return nil
}
