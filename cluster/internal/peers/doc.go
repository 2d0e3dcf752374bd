// Package peers is the gRPC service that each node serves to the others, and its clients.
// Raft has its own transport.
//
//   - The certificates tell each end of a connection which node is at the other end. Each
//     method decides for itself whether that node may call it, and a node can act in its
//     own name only.
//   - A request that could change anything carries a MAC that only an unsealed node can
//     make, or is sent only after the other end has proved, for a nonce, that it is
//     unsealed. A node that sends a forgery is cut off.
//   - The resources that one other node can use are bounded.
//   - A request that names another Raft group is refused before anything is done for it.
//
// The service accesses its own node through the interface Node.
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

// Node is the node that the service belongs to.
type Node interface {
	// IsMember reports whether a node is a member of the cluster.
	IsMember(node string) bool
	// CutOff refuses a node for a while because it sent something that no honest node
	// sends.
	CutOff(from standing.Sender, reason string)

	// Hello answers a starting node, which need not be a member.
	Hello(ctx context.Context, r *clusterpb.HelloRequest) (*clusterpb.HelloResponse, error)
	// Clock returns this node's answer to another node's Clock request, to which the server
	// adds the proof. noGrowth is set if the other node leads and refuses growth.
	Clock(from string, noGrowth bool) *clusterpb.ClockResponse
	// Removed handles the notice that this node was removed by the configuration of that
	// index, and Verify verifies that an unsealed node signed it.
	Removed(index uint64)
	Verify(generation uint32, domain string, digest [32]byte, sig []byte) bool
	// CheckSubmission checks the MAC of a batch or a registration. The error is ErrForged
	// if it is wrong, and another one if this node cannot check it.
	CheckSubmission(kind string, encoded []byte, generation uint32, mac []byte) error
	// Submit takes a submission that has been checked.
	Submit(s *commit.Submission)
	// Execute runs the executor of this node for Clients.Execute. It returns
	// commit.ErrNotLeader if this node does not lead.
	Execute(ctx context.Context, from string, payload []byte) ([]byte, error)
	// ReadIndex is the leader's side of Clients.ReadIndex.
	ReadIndex(ctx context.Context) (uint64, error)
	// Probe returns once the disk has answered.
	Probe(ctx context.Context) error
	// ReadAudit returns audit entries from an index on, within the given limits.
	ReadAudit(from uint64, max, maxBytes int) ([]auditlog.Entry, error)

	// AskUnseal, ChallengeUnseal and DeliverUnseal are those of package peerunseal.
	AskUnseal(ctx context.Context, from string, session [32]byte) (refusal string, err error)
	ChallengeUnseal(from string, nonce []byte) (*clusterpb.ChallengeUnsealResponse, error)
	DeliverUnseal(ctx context.Context, from string, nonce, part []byte) error

	// State returns the newest applied state. WaitApplied returns once the index has been
	// applied. StateAt returns the state of an index, or nil if it is not kept.
	State() *fsm.State
	WaitApplied(ctx context.Context, index uint64) error
	StateAt(index uint64) *fsm.State
	// Unsealed reports whether this node is unsealed, and Sign signs with the origin key.
	Unsealed() bool
	Sign(domain string, digest [32]byte) (generation uint32, signature []byte, err error)
}

// ServerConfig configures the service. Everything is required except Dropped.
type ServerConfig struct {
	// ID is the id of this node.
	ID string
	// CutOffs are the nodes that are refused because of what they sent.
	CutOffs *standing.CutOffs
	// AttestEvery is how long another node has to wait between two attestations, which is
	// about the interval between its snapshots.
	AttestEvery time.Duration
	// Dropped is for tests. It is called for each answer to a submission; if it returns
	// true the answer is dropped.
	Dropped func(node string, answer *clusterpb.SubmitResponse) bool
	Log     *slog.Logger
}

// ErrForged is returned for a request that no honest node sends.
var ErrForged = errors.New("not from an unsealed node of this cluster")
