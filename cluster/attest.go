package cluster

import (
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// attest gets the attestation for a snapshot of s: by this node if it is unsealed,
// else by another that is. The others are asked now, while they have that state,
// and their answers taken when the snapshot is written.
func (n *Node) attest(s *fsm.State) func(digest [32]byte) (*fsmpb.Attestation, error) {
	if n.unsealed() {
		return func(digest [32]byte) (*fsmpb.Attestation, error) { return fsm.Attest(digest, n.sign) }
	}
	return n.peers.Attestation(n.ctx, n.voters(), s)
}
