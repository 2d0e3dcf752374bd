package fsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// A snapshot decides what a node believes: whoever can edit the file on its disk,
// or lead it, could give it a disabled key back. So the snapshot of a founded
// cluster carries an attestation: an Ed25519 signature, with the cluster's origin
// key, of the digest of its header and rows. Only an unsealed node can make one, and
// does so for a state of its own at the same Raft index. A sealed node can check
// it, as the public key is in the state, but an attacker could put a key of his own
// there: so a node that has a state takes only its own cluster's keys, and one that
// begins from a file finds out when it is unsealed whether the keys are the
// keyring's.
//
// Not attested are what is left of nodes' batches and the newest uses of keys. They
// decide nothing but whether a batch is a repetition and what GetKeyLastUsage says,
// and are not part of the immutable state that other nodes can look back to. Nor is
// what the node observed of unsigned clocks, in which nodes may differ: whoever edits
// it gains what a leader of a sealed cluster has anyway, see State.advance.

// attestDomain separates attestations from what else the origin key signs.
const attestDomain = "conclave state v1"

var (
	// ErrAttestation is a snapshot that no unsealed node of this cluster attests.
	ErrAttestation = errors.New("snapshot without a valid attestation")
	// ErrNoAttestation is returned for a snapshot that nobody is there to attest.
	ErrNoAttestation = errors.New("no unsealed node attests the state")
)

// recentStates is how many states a node can look back to. It is asked in the moment
// in which the other node begins its snapshot, so less than a second's are enough;
// each keeps the rows alive that were replaced since.
const recentStates = 128

// recent keeps the newest states, one for each entry, also of those that were
// applied together: nodes take entries together as they come.
type recent struct {
	mu     sync.Mutex
	states [recentStates]*State
	next   int
}

func (r *recent) add(states []*State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range states[max(0, len(states)-recentStates):] {
		r.states[r.next%recentStates] = s
		r.next++
	}
}

func (r *recent) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.states[:])
}

// StateAt is the state after the entry at that Raft index, while it is kept: the
// newest few hundred are. It may be called from anywhere.
func (f *FSM) StateAt(index uint64) *State {
	f.recent.mu.Lock()
	defer f.recent.mu.Unlock()
	for _, s := range f.recent.states {
		if s != nil && s.index == index {
			return s
		}
	}
	return nil
}

// attest begins to get an attestation for s.
func (f *FSM) attest(s *State) func([32]byte) (*fsmpb.Attestation, error) {
	if f.cfg.Attest == nil {
		return func([32]byte) (*fsmpb.Attestation, error) { return nil, ErrNoAttestation }
	}
	wait := f.cfg.Attest(s)
	return func(digest [32]byte) (*fsmpb.Attestation, error) {
		a, err := wait(digest)
		if err != nil {
			return nil, err
		}
		c, _ := s.Cluster()
		// A signature that would be refused later is of no use now.
		return a, VerifyAttestation(c, digest, a)
	}
}

// Attest signs the digest of a state.
func Attest(digest [32]byte, sign Sign) (*fsmpb.Attestation, error) {
	g, sig, err := sign(attestDomain, digest)
	if err != nil {
		return nil, err
	}
	return &fsmpb.Attestation{Generation: g, Signature: sig}, nil
}

// VerifyAttestation checks an attestation of a state with that digest by the
// cluster's origin keys. The error is ErrAttestation.
func VerifyAttestation(c *fsmpb.Cluster, digest [32]byte, a *fsmpb.Attestation) error {
	if a == nil || !VerifyOrigin(c, a.Generation, attestDomain, digest, a.Signature) {
		return ErrAttestation
	}
	return nil
}

// attests reports whether an item of a snapshot is part of what is attested.
func attests(item *fsmpb.SnapshotItem) bool {
	switch item.Item.(type) {
	case *fsmpb.SnapshotItem_Session, *fsmpb.SnapshotItem_KeyUse, *fsmpb.SnapshotItem_StateChecks,
		*fsmpb.SnapshotItem_Observation, *fsmpb.SnapshotItem_Attestation, *fsmpb.SnapshotItem_End:
		return false
	}
	return true
}

// verify checks the attestation of a snapshot that was read, and, when the node
// already knows its cluster, that it is that cluster's.
func (n *restored) verify(current *State) error {
	read := State{db: n.db}
	c, _ := read.Cluster()
	known, _ := current.Cluster()
	switch {
	case c == nil && known == nil && n.unfounded():
		return nil // there is nothing to protect yet, and nobody to sign
	case c == nil:
		return fmt.Errorf("%w: it is of no cluster", ErrAttestation)
	case known != nil && !bytes.Equal(known.Id, c.Id):
		return fmt.Errorf("%w: it is of another cluster", ErrAttestation)
	case known != nil:
		c = known // the keys that this node trusts, whatever the snapshot has
	}
	var digest [32]byte
	n.sum.Sum(digest[:0])
	return VerifyAttestation(c, digest, n.attested)
}

// unfounded reports whether there is nothing but what comes before founding: the
// nodes' registrations.
func (n *restored) unfounded() bool {
	ok := true
	n.db.rows.Ascend(func(o *object) bool {
		ok = registry[o.id[0]].before
		return ok
	})
	return ok && n.state.frontier.Size() == 0
}

// SnapshotIndex reads the beginning of a snapshot: the Raft index of the newest
// command that it covers.
func SnapshotIndex(r io.Reader) (uint64, error) {
	in, close, err := openSnapshot(r)
	if err != nil {
		return 0, err
	}
	defer close()
	item, _, err := readItem(in, maxHeader, nil)
	if err != nil {
		return 0, err
	}
	if item.GetHeader() == nil {
		return 0, fmt.Errorf("%w: header out of place", ErrUnreadable)
	}
	return item.GetHeader().Index, nil
}

// SnapshotCluster reads the beginning of a snapshot: the cluster that it is of, or nil
// if it was not founded yet.
func SnapshotCluster(r io.Reader) (*fsmpb.Cluster, error) {
	in, close, err := openSnapshot(r)
	if err != nil {
		return nil, err
	}
	defer close()
	if _, _, err := readItem(in, maxHeader, nil); err != nil {
		return nil, err
	}
	item, _, err := readItem(in, maxSnapshotItem, nil) // the rows are in order of their kinds
	return item.GetCluster(), err
}

// CheckSnapshot reads a whole snapshot that another node sent and reports whether a
// node whose state is current may take it over as its state at Raft index index.
// Restore would find the same, but by then Raft has thrown away what the node had.
func CheckSnapshot(r io.Reader, current *State, index uint64) error {
	n, err := readSnapshot(r)
	if err != nil {
		return err
	}
	if n.state.index != index {
		// Whoever sends it could make the node skip the commands between the two.
		return fmt.Errorf("%w: it is said to reach Raft index %d, and reaches %d", ErrAttestation, index, n.state.index)
	}
	return n.verify(current)
}
