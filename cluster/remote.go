package cluster

import (
	"context"
	"errors"
	"fmt"

	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cluster/clusterpb"
)

const (
	// MaxPayload bounds what ExecuteOnLeader and Relay carry, each way.
	MaxPayload = 1 << 20
	maxKind    = 64
)

// SetExecutor registers what runs on the leader for ExecuteOnLeader.
func (n *Node) SetExecutor(f func(ctx context.Context, payload []byte) ([]byte, error)) {
	n.executor.Store(&f)
}

// SetRelayHandler registers what runs for Relay.
func (n *Node) SetRelayHandler(f func(ctx context.Context, fromNode, kind string, payload []byte) ([]byte, error)) {
	n.relay.Store(&f)
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
		out, err := n.executeHere(ctx, payload)
		if errors.Is(err, ErrNotLeader) {
			return nil, ErrNoLeader
		}
		return out, err
	}
	client, err := n.peers.reach(ctx, leader)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	r, err := client.Execute(ctx, &clusterpb.ExecuteRequest{Payload: payload})
	switch {
	case err == nil && r.NotLeader:
		return nil, ErrNoLeader
	case err == nil:
		return r.Payload, nil
	case status.Code(err) == codes.FailedPrecondition:
		return nil, fmt.Errorf("%w: %s", ErrRemote, status.Convert(err).Message())
	case status.Code(err) == codes.PermissionDenied, status.Code(err) == codes.InvalidArgument:
		return nil, fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
}

// executeHere runs the executor on this node, the leader.
func (n *Node) executeHere(ctx context.Context, payload []byte) ([]byte, error) {
	f := n.executor.Load()
	if f == nil || !n.IsLeader() || n.usable() != nil {
		return nil, ErrNotLeader
	}
	return (*f)(ctx, payload)
}

// Relay runs the relay handler on that node. After ErrUnreachable it may have
// run or not; an error of the handler is ErrRemote with its message.
func (n *Node) Relay(ctx context.Context, nodeID, kind string, payload []byte) ([]byte, error) {
	if err := n.usable(); err != nil {
		return nil, err
	}
	if len(kind) > maxKind || len(payload) > MaxPayload {
		return nil, fmt.Errorf("%w: too long", ErrRecord)
	}
	if nodeID == n.cfg.NodeID {
		return n.relayHere(ctx, nodeID, kind, payload)
	}
	if !n.isMember(nodeID) {
		return nil, fmt.Errorf("%w: node %q is %w", ErrUnreachable, nodeID, errNotMember)
	}
	client, err := n.reachSoon(ctx, nodeID)
	if err != nil {
		return nil, err
	}
	r, err := client.Relay(ctx, &clusterpb.RelayRequest{Kind: kind, Payload: payload})
	switch {
	case err == nil:
		return r.Payload, nil
	case status.Code(err) == codes.FailedPrecondition:
		return nil, fmt.Errorf("%w: %s", ErrRemote, status.Convert(err).Message())
	}
	return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, nodeID, err)
}

// relayReach is how long Relay tries to reach a node. One that has just come back
// is worth a moment: its connection may still be waiting to be tried again.
const relayReach = 1500 * time.Millisecond

func (n *Node) reachSoon(ctx context.Context, nodeID string) (clusterpb.PeerClient, error) {
	ctx, cancel := context.WithTimeout(ctx, relayReach)
	defer cancel()
	for {
		client, err := n.peers.reach(ctx, nodeID)
		if err == nil {
			return client, nil
		}
		n.peers.reset(nodeID)
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
		case <-time.After(minBackoff):
		}
	}
}

func (n *Node) relayHere(ctx context.Context, from, kind string, payload []byte) ([]byte, error) {
	f := n.relay.Load()
	if f == nil {
		return nil, errors.New("this node takes no relayed requests yet")
	}
	return (*f)(ctx, from, kind, payload)
}
