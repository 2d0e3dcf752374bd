package commit

import (
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/fsm"
)

// What can become of a proposal. Only fsm.ErrOutcomeUnknown leaves open whether something
// happened.
var (
	// ErrNotLeader: the call is for the leader, and this node is not it.
	ErrNotLeader = errors.New("not the leader")
	// ErrShutdown: the node is stopping, and nothing was submitted.
	ErrShutdown = fmt.Errorf("%w: node is shutting down", fsm.ErrNodeStopped)
	// ErrRecord: the record can never be proposed: too large or malformed.
	ErrRecord = errors.New("record cannot be proposed")
	// ErrSealed: only an unsealed node can do it.
	ErrSealed = errors.New("node is sealed")
	// ErrIncarnation: a newer start of this node is registered.
	ErrIncarnation = errors.New("a newer incarnation of this node took over")
)
