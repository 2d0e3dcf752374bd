package cluster

import (
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/cluster/internal/peers"
	"github.com/conclavekms/conclave/fsm/fsmpb"
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
func (n *Node) initialised() bool { return n.cluster() != nil }

// cluster is the cluster's record; nil before the cluster is initialised.
func (n *Node) cluster() *fsmpb.Cluster {
	c, _ := n.State().Cluster()
	return c
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

// checkSubmission checks the MAC of what another node submitted. The error is
// ErrSealed when this node cannot tell or the other one did not claim anything,
// and peers.ErrForged when the claim is false.
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
		return fmt.Errorf("%w: %w", peers.ErrForged, err)
	}
	return nil
}

func macMessage(kind string, encoded []byte) []byte {
	return append(append(make([]byte, 0, len(kind)+len(encoded)), kind...), encoded...)
}
