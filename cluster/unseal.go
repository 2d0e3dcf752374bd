package cluster

import "github.com/conclavekms/conclave/cluster/internal/peerunseal"

// The types of [Node.PeerUnseal].
type (
	// Unsealer is the engine's part of peer-assisted unsealing.
	Unsealer = peerunseal.Unsealer
	// UnsealAsker is a node that asks to be unsealed, as far as the cluster has checked it.
	UnsealAsker = peerunseal.Asker
	// UnsealRefusal is the reason why a node is not helped.
	UnsealRefusal = peerunseal.Refusal
)
