package cluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/cluster/internal/peers"
)

// MaxPayload bounds the request and the answer of ExecuteOnLeader, in bytes.
const MaxPayload = peers.MaxPayload

// SetExecutor registers the function that runs on the leader for ExecuteOnLeader. from is
// the id of the requesting node, from its certificate.
func (n *Node) SetExecutor(f func(ctx context.Context, from string, payload []byte) ([]byte, error)) {
	n.executor.Store(&f)
}

// ExecuteOnLeader runs the executor on the leader, which may be this node. After
// ErrNoLeader nothing has run; after ErrOutcomeUnknown it may have. ExecuteOnLeader never
// repeats a request. An error of the executor on another node is returned as ErrRemote with
// its message.
func (n *Node) ExecuteOnLeader(ctx context.Context, payload []byte) ([]byte, error) {
	if err := n.life.Usable(); err != nil {
		return nil, err
	}
	if len(payload) > MaxPayload {
		return nil, fmt.Errorf("%w: %d bytes", ErrRecord, len(payload))
	}
	leader, _ := n.Leader()
	switch leader {
	case "":
		return nil, ErrNoLeader
	case n.cfg.NodeID:
		out, err := n.executeHere(ctx, n.cfg.NodeID, payload)
		if errors.Is(err, ErrNotLeader) {
			return nil, ErrNoLeader
		}
		return out, err
	}
	return n.peers.Execute(ctx, leader, payload)
}

// executeHere runs the executor on this node if it leads.
func (n *Node) executeHere(ctx context.Context, from string, payload []byte) ([]byte, error) {
	f := n.executor.Load()
	if f == nil || !n.IsLeader() || n.life.Usable() != nil {
		return nil, ErrNotLeader
	}
	out, err := (*f)(ctx, from, payload)
	if err == nil && len(out) > MaxPayload {
		return nil, fmt.Errorf("%w: an answer of %d bytes", ErrRecord, len(out))
	}
	return out, err
}
