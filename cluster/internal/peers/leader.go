package peers

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/wire"
)

// MaxPayload bounds what Execute carries, each way.
const MaxPayload = 1 << 20

// ErrRemote is what the other node's executor refused; its message follows.
var ErrRemote = errors.New("refused by the other node")

// Execute has the leader, which proves first that it is unsealed, do what it is for. After
// fsm.ErrNoLeader nothing was done; after fsm.ErrOutcomeUnknown it may have been.
func (p *Clients) Execute(ctx context.Context, leader string, payload []byte) ([]byte, error) {
	client, err := p.Reach(ctx, leader)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", fsm.ErrNoLeader, err)
	}
	if err := p.Challenge(ctx, leader, client); err != nil {
		return nil, fmt.Errorf("%w: %w", fsm.ErrNoLeader, err)
	}
	r, err := client.Execute(ctx, &clusterpb.ExecuteRequest{Group: wire.Group, Payload: payload})
	switch {
	case err == nil && r.NotLeader:
		return nil, fsm.ErrNoLeader
	case err == nil:
		return r.Payload, nil
	case status.Code(err) == codes.FailedPrecondition:
		return nil, fmt.Errorf("%w: %s", ErrRemote, status.Convert(err).Message())
	case status.Code(err) == codes.PermissionDenied, status.Code(err) == codes.InvalidArgument:
		return nil, fmt.Errorf("%w: %w", fsm.ErrNoLeader, err)
	}
	return nil, fmt.Errorf("%w: %w", fsm.ErrOutcomeUnknown, err)
}

// ReadIndex is an index that a state must reach to have what was committed before. The
// leader proves first that it is unsealed, unless the caller is sealed: it lets nobody in
// by what it is told.
func (p *Clients) ReadIndex(ctx context.Context, leader string, sealed bool) (uint64, error) {
	client, err := p.Reach(ctx, leader)
	if err != nil {
		return 0, err
	}
	if !sealed {
		if err := p.Challenge(ctx, leader, client); err != nil {
			return 0, err
		}
	}
	r, err := client.ReadIndex(ctx, &clusterpb.ReadIndexRequest{Group: wire.Group})
	if err != nil {
		return 0, err
	}
	if r.NotLeader {
		return 0, commit.ErrNotLeader
	}
	return r.Index, nil
}
