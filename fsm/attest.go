package fsm

import (
	"bytes"
	"fmt"
	"io"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/origin"
)

// A node believes its snapshot. Anybody who can edit the file on its disk, or who leads it,
// could use one to enable a disabled key again, for example. The snapshot of an initialised
// cluster therefore carries an attestation: an Ed25519 signature, made with the cluster's
// origin key, over the digest of its header and rows. Only an unsealed node can make one,
// and does so only if its own state at the same Raft index is the same. A sealed node can
// verify it, as the public key is in the state. Since an attacker could replace that key
// too, a node that has a state accepts only its own cluster's keys, and a node that starts
// from a file checks, once it is unsealed, that the keys belong to the keyring.
//
// The sessions of nodes and the newest uses of keys are not attested, as they are not part
// of the immutable states that other nodes keep. Sessions decide only whether a batch is a
// repetition. Uses decide what GetKeyLastUsage says, and the condition key
// kms:TrailingDaysWithoutKeyUsage: with a snapshot whose uses are older than the real ones, a
// node could evaluate that a key was not used for long. The record of that outcome names the
// use that it rests on, so every node that has the real uses refuses it, and the state hash
// of the one that was deceived is no longer theirs. Uses that are newer than the real ones
// only make a key look as if it were in use. The observation of unsigned clocks, in which
// nodes may differ, is not attested either: editing it gains nothing that a leader of a
// sealed cluster does not have anyway. See package clustertime.

// StateAt returns the state after the entry at that Raft index, or nil if it is
// no longer kept. A node is asked for an attestation at the moment when the other node
// begins its snapshot, so the states of less than a second are enough. Each one keeps the
// rows alive that were replaced since. StateAt is safe for concurrent use.
func (f *FSM) StateAt(index uint64) *State {
	return f.recent.Find(func(s *State) bool { return s.index == index })
}

// attest asks for an attestation of s, and returns a function that waits for it.
func (f *FSM) attest(s *State) func([32]byte) (*fsmpb.Attestation, error) {
	if f.cfg.Attest == nil {
		return func([32]byte) (*fsmpb.Attestation, error) { return nil, origin.ErrNoAttestation }
	}
	wait := f.cfg.Attest(s)
	return func(digest [32]byte) (*fsmpb.Attestation, error) {
		a, err := wait(digest)
		if err != nil {
			return nil, err
		}
		c, _ := s.Cluster()
		// Fail now rather than when the snapshot is restored.
		return a, origin.VerifyAttestation(c, digest, a)
	}
}

// verify checks the attestation of a snapshot that was read and, if the node
// already knows its cluster, that the snapshot belongs to that cluster.
func (n *restored) verify(current *State) error {
	read := State{db: n.db}
	c, _ := read.Cluster()
	known, _ := current.Cluster()
	switch {
	case c == nil && known == nil && n.uninitialised():
		return nil // there is nothing to protect yet, and no key to sign with
	case c == nil:
		return fmt.Errorf("%w: it belongs to no cluster", origin.ErrAttestation)
	case known != nil && !bytes.Equal(known.Id, c.Id):
		return fmt.Errorf("%w: it belongs to another cluster", origin.ErrAttestation)
	case known != nil:
		c = known // the keys that this node trusts, whatever the snapshot has
	}
	return origin.VerifyAttestation(c, n.digest, n.attested)
}

// uninitialised reports whether the snapshot holds only what can be there before
// init: the nodes' registrations.
func (n *restored) uninitialised() bool {
	ok := true
	n.db.rows.Ascend(func(o *object) bool {
		ok = registry[o.id[0]].before
		return ok
	})
	return ok && n.state.frontier.Size() == 0
}

// CheckSnapshot reads a whole snapshot that another node sent, and returns an error
// unless a node whose state is current may take it over as its state at Raft index
// index. Restore checks the same, but by then Raft has discarded what the node had.
func CheckSnapshot(r io.Reader, current *State, index uint64) error {
	n, err := readSnapshot(r, current.known)
	if err != nil {
		return err
	}
	if n.state.index != index {
		// Otherwise the sender could make the node skip the commands between the two.
		return fmt.Errorf("%w: it should reach Raft index %d, and reaches %d", origin.ErrAttestation, index, n.state.index)
	}
	return n.verify(current)
}
