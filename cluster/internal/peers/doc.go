// Package peers is how nodes ask each other: the service that a node serves to the others
// over gRPC, and the connections over which it asks theirs. Raft does not go this way.
//
//   - Each end of a connection knows by the other's certificate which node that is, and
//     each method decides for itself whether it may ask. A node asks in its own name only.
//   - What could change anything has a MAC that only an unsealed node can make, or is
//     sent only after the other end proved, for a nonce, that it is unsealed. Who claims
//     what is not so is cut off.
//   - What one node has going on here is bounded.
//   - A request that names another Raft group is refused before anything is done for it.
//
// What the node itself knows and does, the service asks for as a Node.
package peers

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/commit"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm"
)

// Node is the node that a service belongs to.
type Node interface {
	// IsMember reports whether a node belongs to the cluster.
	IsMember(node string) bool
	// CutOff refuses a node for a while, for a reason that no honest node gives.
	CutOff(from standing.Sender, reason string)

	// Hello answers a node that starts, which may be no member.
	Hello(ctx context.Context, r *clusterpb.HelloRequest) (*clusterpb.HelloResponse, error)
	// Clock is what the node says of itself to another that asks; noGrowth is what that
	// one says if it leads. Its proof is added here.
	Clock(from string, noGrowth bool) *clusterpb.ClockResponse
	// CheckSubmission checks what vouches for a batch or a registration. The error is
	// ErrForged when the claim is false, and another one when this node cannot tell.
	CheckSubmission(kind string, encoded []byte, generation uint32, mac []byte) error
	// Submit takes a submission that was checked.
	Submit(s *commit.Submission)
	// Execute does what Clients.Execute is for, with commit.ErrNotLeader if this node
	// does not lead.
	Execute(ctx context.Context, from string, payload []byte) ([]byte, error)
	// ReadIndex is that of Clients, on the leader.
	ReadIndex(ctx context.Context) (uint64, error)
	// Probe returns when the disk has answered.
	Probe(ctx context.Context) error
	// ReadAudit returns audit entries from an index on, within the limits.
	ReadAudit(from uint64, max, maxBytes int) ([]auditlog.Entry, error)

	// State is the newest applied state; WaitApplied returns once it is of an index, and
	// StateAt is the one of an index, nil if it is not kept.
	State() *fsm.State
	WaitApplied(ctx context.Context, index uint64) error
	StateAt(index uint64) *fsm.State
	// Unsealed reports whether this node is, and Sign signs as an unsealed node.
	Unsealed() bool
	Sign(domain string, digest [32]byte) (generation uint32, signature []byte, err error)
}

// ServerConfig describes a service. Everything is required but Dropped.
type ServerConfig struct {
	// CutOffs are the nodes that are refused for what they sent.
	CutOffs *standing.CutOffs
	// AttestEvery is how long a node waits between two states that it wants attested:
	// about as long as between its snapshots.
	AttestEvery time.Duration
	// Dropped is asked for each answer to a submission; true loses it. It is for tests.
	Dropped func(node string, answer *clusterpb.SubmitResponse) bool
	Log     *slog.Logger
}

// ErrForged is what no honest node sends.
var ErrForged = errors.New("not from an unsealed node of this cluster")
