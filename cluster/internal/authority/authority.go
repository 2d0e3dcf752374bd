// Package authority holds what a node can do only because it is unsealed: sign with the
// cluster's origin key, and authenticate its submissions to the leader.
//
// It guarantees that a sealed node signs and authenticates nothing, and that once the
// cluster is initialised, only submissions with the MAC of an unsealed node are accepted.
package authority

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/peers"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Authority is what only an unsealed node of an initialised cluster has. A node without it
// stores the log and votes, but cannot change the state.
type Authority interface {
	// Sealed reports whether the node is without authority now.
	Sealed() bool
	// SignOrigin signs with the cluster's origin key; see Verify of package fsm/origin.
	SignOrigin(domain string, digest [32]byte) (generation uint32, signature []byte, err error)
	// PeerMAC authenticates a message to other unsealed nodes with a key of the keyring.
	PeerMAC(message []byte) (generation uint32, mac []byte, err error)
	// CheckPeerMAC checks the result of another node's PeerMAC. ErrSealed means that this
	// node cannot check it, and any other error that no unsealed node made it.
	CheckPeerMAC(generation uint32, message, mac []byte) error
}

// Holder holds a node's authority, if it has any.
type Holder struct {
	state func() *fsm.State
	held  atomic.Pointer[Authority]
}

// New returns a Holder without authority. state returns the newest applied state.
func New(state func() *fsm.State) *Holder { return &Holder{state: state} }

// Set registers the node's authority, once, before it takes part.
func (h *Holder) Set(a Authority) { h.held.Store(&a) }

// Sign signs with the origin key. It fails on a sealed node.
func (h *Holder) Sign(domain string, digest [32]byte) (generation uint32, signature []byte, err error) {
	if !h.Unsealed() {
		return 0, nil, commit.ErrSealed
	}
	return (*h.held.Load()).SignOrigin(domain, digest)
}

// Initialised reports whether the cluster is initialised. From then on nothing enters the
// state unless an unsealed node has authenticated it.
func (h *Holder) Initialised() bool { return h.Cluster() != nil }

// Cluster returns the cluster's record, or nil before the cluster is initialised.
func (h *Holder) Cluster() *fsmpb.Cluster {
	c, _ := h.state().Cluster()
	return c
}

// Unsealed reports whether this node has authority.
func (h *Holder) Unsealed() bool {
	a := h.held.Load()
	return a != nil && !(*a).Sealed()
}

// Powerless reports whether the cluster is initialised and this node is sealed.
func (h *Holder) Powerless() bool { return h.Initialised() && !h.Unsealed() }

// SubmissionMAC authenticates an encoded batch or registration to the leader. Before the
// cluster is initialised there is no MAC.
func (h *Holder) SubmissionMAC(kind string, encoded []byte) (generation uint32, mac []byte, err error) {
	if !h.Initialised() {
		return 0, nil, nil
	}
	if !h.Unsealed() {
		return 0, nil, commit.ErrSealed
	}
	return (*h.held.Load()).PeerMAC(macMessage(kind, encoded))
}

// CheckSubmission checks the MAC of another node's submission. The error is
// commit.ErrSealed if this node cannot check it or there is no MAC, and peers.ErrForged if
// the MAC is wrong.
func (h *Holder) CheckSubmission(kind string, encoded []byte, generation uint32, mac []byte) error {
	if !h.Initialised() {
		return nil
	}
	if !h.Unsealed() || len(mac) == 0 {
		return commit.ErrSealed
	}
	if err := (*h.held.Load()).CheckPeerMAC(generation, macMessage(kind, encoded), mac); err != nil {
		if errors.Is(err, commit.ErrSealed) {
			return commit.ErrSealed
		}
		return fmt.Errorf("%w: %w", peers.ErrForged, err)
	}
	return nil
}

func macMessage(kind string, encoded []byte) []byte {
	return append(append(make([]byte, 0, len(kind)+len(encoded)), kind...), encoded...)
}
