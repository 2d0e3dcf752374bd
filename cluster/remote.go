package cluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/cluster/internal/peers"
)

// MaxPayload bounds what ExecuteOnLeader carries, each way.
const MaxPayload = peers.MaxPayload

// SetExecutor registers what runs on the leader for ExecuteOnLeader. from is the
// node that asks, as its certificate says.
func (n *Node) SetExecutor(f func(ctx context.Context, from string, payload []byte) ([]byte, error)) {
	n.executor.Store(&f)
}

// ExecuteOnLeader runs the executor on the node that leads, which may be this
// one. ErrNoLeader says that nothing ran; after ErrOutcomeUnknown it may have.
// It is never repeated here. An error of the executor on another node is
// ErrRemote with its message.
func (n *Node) ExecuteOnLeader(ctx context.Context, payload []byte) ([]byte, error) {
	if err := n.usable(); err != nil {
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

// executeHere runs the executor on this node, the leader.
func (n *Node) executeHere(ctx context.Context, from string, payload []byte) ([]byte, error) {
	f := n.executor.Load()
	if f == nil || !n.IsLeader() || n.usable() != nil {
		return nil, ErrNotLeader
	}
	out, err := (*f)(ctx, from, payload)
	if err == nil && len(out) > MaxPayload {
		return nil, fmt.Errorf("%w: an answer of %d bytes", ErrRecord, len(out))
	}
	return out, err
}
