package level

import "github.com/conclavekms/conclave/fsm/form"

// Limits are the bounds within which apply accepts a record. They must be the same on all
// nodes, whichever release each one runs. So they depend on the level of the state and
// never change once a release has written that level; a new level gets a row of its own.
type Limits struct {
	Reads, Changes, Uses int // of a record
	Body                 int // of its audit record, in bytes
	Policy               int // of a policy's document, in bytes, as in package policy
	// Entity bounds an entity or another object of IAM, in bytes, and List the lists in it.
	// AWS's highest quotas are far below.
	Entity, List int
	// The shortest and longest waiting period before a key's deletion, in days,
	// as in AWS KMS.
	MinWaiting, MaxWaiting int32
	// Unsettled bounds the batches that are remembered for one node. An honest node never
	// reaches it, as it has only a few batches in flight.
	Unsettled int
}

// first are the limits of level 1.
var first = Limits{
	// A user in ten groups, with ten managed policies each, depends on some 130 objects.
	Reads: 256, Changes: 16, Uses: 4, Body: 65_563,
	Policy: 32768, Entity: 256 << 10, List: 256, MinWaiting: 7, MaxWaiting: 30, Unsettled: 1024,
}

// limitsOf has the limits of each level that this release knows. A state of any other
// level is refused.
var limitsOf = [Newest + 1]Limits{1: first, 2: first}

// LimitsAt returns the limits of a state's level, which this release must know.
func LimitsAt(level uint32) *Limits { return &limitsOf[level] }

// Entities returns the limits of objects of IAM.
func (l *Limits) Entities() form.Limits {
	return form.Limits{Policy: l.Policy, Object: l.Entity, List: l.List}
}
