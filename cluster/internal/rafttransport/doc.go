// Package rafttransport carries Raft's messages between nodes and checks them, because
// hashicorp/raft believes any leader, term, id and answer, whatever node sends them.
// Whatever the package passes to Raft satisfies the following:
//
//   - Both ends of each connection have exchanged proofs (package peerproof). A node that
//     is known to be unsealed is heard only over connections with its proof, in requests
//     and in answers.
//   - A request is from the node that it names, asks for nothing that would stop every node
//     or remove nodes, and comes from a node that may be followed or voted for. A node that
//     sends a forgery is cut off.
//   - An answer makes this node step down, or counts as an acknowledgement or a vote, only
//     if the standing of the node that gave it allows this (package standing).
//   - Committed entries stay in the log, whatever a leader demands. A command that may be
//     committed stays until the leader is known to be unsealed.
//   - Nothing waits for another node for ever, so Raft can always be shut down.
//
// The transport accesses its own node through the interface Node.
package rafttransport

import (
	"context"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/cluster/internal/membership"
	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Node is the node that the transport belongs to. Its methods are called from many
// goroutines, including before Raft has started.
type Node interface {
	// Connect opens a connection for Raft to another node and verifies its certificate.
	Connect(ctx context.Context, node string) (*peerport.Conn, error)
	// NodeAt returns the node with the given address.
	NodeAt(addr string) (node string, ok bool)

	// Raft returns this node's Raft, or nil before it has started.
	Raft() *raft.Raft
	// IsMember reports whether a node is a member of the cluster.
	IsMember(node string) bool
	// Configuration returns the latest Raft configuration; empty before there is one.
	Configuration() raft.Configuration
	// Leader returns the leader as far as this node knows, or "".
	Leader() string

	// Cluster returns the cluster's record, or nil before the cluster is initialised.
	Cluster() *fsmpb.Cluster
	// Applied returns the index of the newest applied state.
	Applied() uint64
	// SnapshotEnd returns the index and the term of the last entry that the newest snapshot
	// covers; 0 if there is no snapshot.
	SnapshotEnd() (index, term uint64)
	// CheckEntry returns an error for an entry that the state machine could not apply.
	CheckEntry(encoded []byte) error

	// Unsealed reports whether this node is unsealed.
	Unsealed() bool
	// Sign signs with the origin key; see peerproof.Signer.
	Sign(domain string, digest [32]byte) (generation uint32, signature []byte, err error)
	// Self returns this node's part in its judgement of others.
	Self() standing.Self

	// AskForProof asks a node for proof after a connection without proof claimed to be from
	// it, and waits for the answer. Several such claims in a row share one question.
	AskForProof(node string)
	// AskAgain asks a node now for its standing, and waits for the answer.
	AskAgain(node string)
	// CutOff refuses a node for a while because it sent something that no honest node
	// sends.
	CutOff(from standing.Sender, reason string)
	// Fence takes this node out of the cluster.
	Fence(err error)
}

// Config configures a transport. Everything is required.
type Config struct {
	// ID is the id of this node.
	ID string
	// Advertise is the address at which other nodes reach this one.
	Advertise string
	// Timeout bounds one request.
	Timeout time.Duration
	// Standings decide which other nodes are believed, and CutOffs which are refused.
	Standings *standing.Standings
	CutOffs   *standing.CutOffs
	// History records the configurations in the log.
	History *membership.History
	// Unproven counts, by node, the requests that were refused for lack of proof.
	Unproven *prometheus.CounterVec
	Log      *slog.Logger
}
