// Package rafttransport carries Raft between nodes, and stands between it and what they
// send. hashicorp/raft believes a leader, a term, an id and an answer whoever sends them;
// what has come through here may be believed:
//
//   - Both ends of each connection said what they can prove (package peerproof). A node
//     that is known to be unsealed is heard only over connections with its proof, in
//     requests and in answers.
//   - A request is its sender's own, asks nothing that would stop every node or turn
//     nodes out, and comes from a node that may be followed or voted for. Who sent a
//     forgery is cut off.
//   - An answer makes this node step down, and counts for what is stored and for votes,
//     only if the node that gave it may do so (package standing).
//   - What is committed stays in the log, whatever a leader says, and so does a command
//     that may be, until the leader is known to be unsealed.
//   - Nothing waits for ever for another node, so Raft can always be shut down.
//
// What the node itself knows and decides, it is asked for as a Node.
package rafttransport

import (
	"context"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/conclavekms/conclave/cluster/internal/peerport"
	"github.com/conclavekms/conclave/cluster/internal/standing"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Node is the node that a transport belongs to. Its methods are called from many
// goroutines, before Raft has started too.
type Node interface {
	// Connect opens a connection for Raft to another node, whose certificate it checked.
	Connect(ctx context.Context, node string) (*peerport.Conn, error)
	// NodeAt is the node that has that address.
	NodeAt(addr string) (node string, ok bool)

	// Raft is this node's Raft; nil before it has started.
	Raft() *raft.Raft
	// Configuration is the latest Raft configuration; empty before there is one.
	Configuration() raft.Configuration
	// Leader is the node that leads, as far as this one knows; "" for none.
	Leader() string

	// Cluster is the cluster's record; nil before the cluster is initialised.
	Cluster() *fsmpb.Cluster
	// Applied is the index of the newest applied state.
	Applied() uint64
	// CheckEntry refuses what the state machine could not apply.
	CheckEntry(encoded []byte) error

	// Unsealed reports whether this node is.
	Unsealed() bool
	// Sign signs as an unsealed node; see peerproof.Signer.
	Sign(domain string, digest [32]byte) (generation uint32, signature []byte, err error)
	// Self is this node's part in its judgement of others.
	Self() standing.Self

	// AskForProof asks a node in whose name somebody came without proof what it is, and
	// waits for its answer. It is not asked for each who does.
	AskForProof(node string)
	// AskAgain asks a node now what it is, and waits for its answer.
	AskAgain(node string)
	// CutOff refuses a node for a while, for a reason that no honest node gives.
	CutOff(from standing.Sender, reason string)
	// Fence takes this node out of the cluster.
	Fence(err error)
}

// Config describes a transport. Everything is required.
type Config struct {
	// ID is this node.
	ID string
	// Advertise is where other nodes reach it.
	Advertise string
	// Timeout bounds one request.
	Timeout time.Duration
	// Standings say who of the other nodes is believed, and CutOffs who is refused.
	Standings *standing.Standings
	CutOffs   *standing.CutOffs
	// Unproven counts, by node, what was refused for want of proof.
	Unproven *prometheus.CounterVec
	Log      *slog.Logger
}
