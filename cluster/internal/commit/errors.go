package commit

import (
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/fsm"
)

// Errors of a proposal. Only after fsm.ErrOutcomeUnknown is it unknown whether it took
// effect.
var (
	// ErrNotLeader is returned by calls that only the leader serves, on other nodes.
	ErrNotLeader = errors.New("not the leader")
	// ErrShutdown is returned while the node is stopping. Nothing was submitted.
	ErrShutdown = fmt.Errorf("%w: node is shutting down", fsm.ErrNodeStopped)
	// ErrRecord is returned for a record that is too large or malformed and can never be
	// proposed.
	ErrRecord = errors.New("record cannot be proposed")
	// ErrSealed is returned for what only an unsealed node can do.
	ErrSealed = errors.New("node is sealed")
	// ErrIncarnation means that a newer incarnation of this node is registered.
	ErrIncarnation = errors.New("a newer incarnation of this node took over")
)
