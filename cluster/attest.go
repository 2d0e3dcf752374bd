package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

const (
	// attestWait bounds how long a sealed node waits for others to attest its state:
	// they read all of theirs for it.
	attestWait = time.Minute
	// attestLag is how long a node waits to reach the index that it is asked for.
	attestLag = 5 * time.Second
)

// attest gets the attestation for a snapshot of s: by this node if it is unsealed,
// else by another that is. The others are asked now, while they have that state,
// and their answers taken when the snapshot is written.
func (n *Node) attest(s *fsm.State) func(digest [32]byte) (*fsmpb.Attestation, error) {
	if n.unsealed() {
		return n.signState
	}
	ctx, cancel := context.WithTimeout(n.ctx, attestWait)
	var peers []string
	for _, id := range n.voters() {
		if id != n.cfg.NodeID {
			peers = append(peers, id)
		}
	}
	hash := s.Hash()
	c, _ := s.Cluster()
	answers := make(chan *clusterpb.AttestResponse, len(peers))
	var asked sync.WaitGroup
	for _, id := range peers {
		asked.Add(1)
		n.goroutine(func() {
			defer asked.Done()
			client, err := n.peers.client(id)
			if err != nil {
				return
			}
			r, err := client.Attest(ctx, &clusterpb.AttestRequest{Group: wire.Group, Index: s.Index(), StateHash: hash[:]})
			if err != nil {
				n.log.Debug("asking for an attestation of the state", "node", id, "index", s.Index(), "err", err)
				return
			}
			answers <- r
		})
	}
	n.goroutine(func() {
		asked.Wait()
		cancel()
		close(answers)
	})
	return func(digest [32]byte) (*fsmpb.Attestation, error) {
		defer cancel()
		err := fsm.ErrNoAttestation
		for r := range answers {
			if !slices.Equal(r.Digest, digest[:]) {
				err = fmt.Errorf("%w: another node's digest of the state at index %d differs", fsm.ErrDiverged, s.Index())
				continue
			}
			if err = fsm.VerifyAttestation(c, digest, r.Attestation); err == nil {
				return r.Attestation, nil
			}
		}
		return nil, err
	}
}

// signState attests a state of this node's own.
func (n *Node) signState(digest [32]byte) (*fsmpb.Attestation, error) {
	return fsm.Attest(digest, n.sign)
}

// attestations bounds what other nodes may ask for: one at a time, and a node that
// was served waits for a while, as each reads the whole state.
type attestations struct {
	mu   sync.Mutex
	busy bool
	last map[string]time.Time
}

var (
	errAttestBusy = errors.New("another state is being attested")
	errAttestSoon = errors.New("asked again too soon")
)

func (a *attestations) begin(node string, now time.Time, pause time.Duration) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.busy {
		return errAttestBusy
	}
	if last, ok := a.last[node]; ok && now.Sub(last) < pause {
		return errAttestSoon
	}
	if a.last == nil {
		a.last = make(map[string]time.Time)
	}
	a.busy, a.last[node] = true, now
	return nil
}

func (a *attestations) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy = false
}

// Attest implements the Peer service.
func (s *peerServer) Attest(ctx context.Context, r *clusterpb.AttestRequest) (*clusterpb.AttestResponse, error) {
	node, err := s.member(ctx)
	if err != nil {
		return nil, err
	}
	n := s.n
	if !n.unsealed() {
		return nil, status.Error(codes.FailedPrecondition, "this node is sealed")
	}
	wctx, cancel := context.WithTimeout(ctx, attestLag)
	defer cancel()
	if err := n.WaitApplied(wctx, r.Index); err != nil {
		return nil, status.Error(codes.Unavailable, "this node has not reached that index")
	}
	state := n.machine.fsm.StateAt(r.Index)
	if state == nil {
		return nil, status.Error(codes.NotFound, "this node does not keep that state any more")
	}
	if hash := state.Hash(); !slices.Equal(hash[:], r.StateHash) {
		n.log.Error("another node's state differs from this node's", "node", node, "index", r.Index)
		return nil, status.Error(codes.FailedPrecondition, "the states differ")
	}
	// As often as nodes make snapshots, roughly.
	if err := n.attestations.begin(node, time.Now(), n.cfg.Timeouts.Snapshot/2); err != nil {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	defer n.attestations.end()
	digest := state.Digest()
	a, err := n.signState(digest)
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, "this node is sealed")
	}
	return &clusterpb.AttestResponse{Digest: digest[:], Attestation: a}, nil
}
