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

// MaxPayload bounds the request and the answer of Execute, in bytes.
const MaxPayload = 1 << 20

// ErrRemote is returned when the executor of the other node refused. It is followed by that
// node's message.
var ErrRemote = errors.New("refused by the other node")

// Execute runs the executor of the leader, after the leader has proved that it is unsealed.
// After fsm.ErrNoLeader nothing was done; after fsm.ErrOutcomeUnknown it may have been.
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

// ReadIndex returns an index from the leader; a state of that index contains what was
// committed before the call. The leader must first prove that it is unsealed, unless the
// caller itself is sealed and so grants access to no one on the strength of the answer.
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
