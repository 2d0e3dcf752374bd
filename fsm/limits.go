package fsm

import "github.com/conclavekms/conclave/fsm/wire"

// limits are the bounds within which apply takes a record. Every node has to draw them at
// the same place, whichever release it runs: so they belong to the level of the state, are
// never changed once a release has written it, and a new level gets a row of its own.
type limits struct {
	reads, changes, uses int // of a record
	body                 int // of its audit record, in bytes
	policy               int // of a key policy, in bytes, as package policy has it
	// A key waits for its deletion between these two, as AWS has it; in days.
	minWaiting, maxWaiting int32
	// unsettled bounds the batches that are remembered for one node. A node has only a few
	// in flight, so a window this wide is never reached by an honest one.
	unsettled int
}

// limitsOf has the limits of each level that this binary knows. No state has another.
var limitsOf = [wire.SchemaMax + 1]limits{
	1: {
		reads: 128, changes: 16, uses: 4, body: 65_563,
		policy: 32768, minWaiting: 7, maxWaiting: 30, unsettled: 1024,
	},
}

// limitsAt are those of a level that a state has.
func limitsAt(level uint32) *limits { return &limitsOf[level] }
