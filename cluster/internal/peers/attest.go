package peers

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
	"github.com/conclavekms/conclave/fsm/origin"
	"github.com/conclavekms/conclave/fsm/wire"
)

const (
	// attestWait bounds how long a sealed node waits for others to attest its state, for
	// which they read all of theirs.
	attestWait = time.Minute
	// attestLag is how long a node waits until it has applied the index that it is asked
	// about.
	attestLag = 5 * time.Second
)

// Attestation asks the other voters to attest a state, while they still have that state
// too. The returned function waits for their answers and must be called once.
func (p *Clients) Attestation(ctx context.Context, voters []string, s *fsm.State) func(digest [32]byte) (*fsmpb.Attestation, error) {
	ctx, cancel := context.WithTimeout(ctx, attestWait)
	hash := s.Hash()
	c, _ := s.Cluster()
	answers := make(chan *clusterpb.AttestResponse, len(voters))
	var asked sync.WaitGroup
	for _, id := range voters {
		if id == p.conf.ID {
			continue
		}
		asked.Add(1)
		p.conf.Go(func() {
			defer asked.Done()
			client, err := p.Client(id)
			if err != nil {
				return
			}
			r, err := client.Attest(ctx, &clusterpb.AttestRequest{Group: wire.Group, Index: s.Index(), StateHash: hash[:]})
			if err != nil {
				p.conf.Log.Debug("asking for an attestation of the state", "node", id, "index", s.Index(), "err", err)
				return
			}
			answers <- r
		})
	}
	p.conf.Go(func() {
		asked.Wait()
		cancel()
		close(answers)
	})
	return func(digest [32]byte) (*fsmpb.Attestation, error) {
		defer cancel()
		err := origin.ErrNoAttestation
		for r := range answers {
			if !slices.Equal(r.Digest, digest[:]) {
				err = fmt.Errorf("%w: another node's digest of the state at index %d differs", fsm.ErrDiverged, s.Index())
				continue
			}
			if err = origin.VerifyAttestation(c, digest, r.Attestation); err == nil {
				return r.Attestation, nil
			}
		}
		return nil, err
	}
}

// attestations limits the requests of other nodes: there is one at a time, and a node that
// was served must wait for a while, because each request reads the whole state.
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
func (s *server) Attest(ctx context.Context, r *clusterpb.AttestRequest) (*clusterpb.AttestResponse, error) {
	node, err := s.member(ctx)
	if err != nil {
		return nil, err
	}
	if !s.node.Unsealed() {
		return nil, status.Error(codes.FailedPrecondition, "this node is sealed")
	}
	wctx, cancel := context.WithTimeout(ctx, attestLag)
	defer cancel()
	if err := s.node.WaitApplied(wctx, r.Index); err != nil {
		return nil, status.Error(codes.Unavailable, "this node has not reached that index")
	}
	state := s.node.StateAt(r.Index)
	if state == nil {
		return nil, status.Error(codes.NotFound, "this node does not keep that state any more")
	}
	if hash := state.Hash(); !slices.Equal(hash[:], r.StateHash) {
		s.Log.Error("another node's state differs from this node's", "node", node, "index", r.Index)
		return nil, status.Error(codes.FailedPrecondition, "the states differ")
	}
	if err := s.attestations.begin(node, time.Now(), s.AttestEvery); err != nil {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	defer s.attestations.end()
	digest := state.Digest()
	a, err := origin.Attest(digest, s.node.Sign)
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, "this node is sealed")
	}
	return &clusterpb.AttestResponse{Digest: digest[:], Attestation: a}, nil
}
