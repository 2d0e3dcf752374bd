package fsm

import (
	"github.com/conclavekms/conclave/fsm/form"
	"github.com/conclavekms/conclave/fsm/wire"
)

// limits are the bounds within which apply accepts a record. They must be the same on all
// nodes, whichever release each one runs. So they depend on the level of the state and
// never change once a release has written that level; a new level gets a row of its own.
type limits struct {
	reads, changes, uses int // of a record
	body                 int // of its audit record, in bytes
	policy               int // of a policy's document, in bytes, as in package policy
	// entity bounds an entity or another object of IAM, in bytes, and list the lists in it.
	// AWS's highest quotas are far below.
	entity, list int
	// The shortest and longest waiting period before a key's deletion, in days,
	// as in AWS KMS.
	minWaiting, maxWaiting int32
	// unsettled bounds the batches that are remembered for one node. An honest node never
	// reaches it, as it has only a few batches in flight.
	unsettled int
}

// limitsOf has the limits of each level that this binary knows. A state of any other
// level is refused.
var limitsOf = [wire.SchemaMax + 1]limits{
	1: {
		// A user in ten groups, with ten managed policies each, depends on some 130 objects.
		reads: 256, changes: 16, uses: 4, body: 65_563,
		policy: 32768, entity: 256 << 10, list: 256, minWaiting: 7, maxWaiting: 30, unsettled: 1024,
	},
}

// limitsAt returns the limits of a state's level.
func limitsAt(level uint32) *limits { return &limitsOf[level] }

// iam returns the limits of objects of IAM.
func (l *limits) iam() form.Limits {
	return form.Limits{Policy: l.policy, Object: l.entity, List: l.list}
}
