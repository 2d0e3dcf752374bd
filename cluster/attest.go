package cluster

import (
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
)

// attest returns a function that obtains the attestation for a snapshot of s. An unsealed
// node makes it itself; a sealed one asks the other voters. They are asked now, while they
// still keep that state, and their answers are collected when the snapshot is written.
func (n *Node) attest(s *fsm.State) func(digest [32]byte) (*fsmpb.Attestation, error) {
	if n.auth.Unsealed() {
		return func(digest [32]byte) (*fsmpb.Attestation, error) { return origin.Attest(digest, n.auth.Sign) }
	}
	return n.peers.Attestation(n.life.Context(), n.members.Voters(), s)
}
