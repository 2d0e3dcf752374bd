// Package level says what the schemas of entries and snapshots mean, which are numbers.
//
// The feature level of a cluster is the newest schema that may be written in it, and is a
// part of the state. It begins at 1. A release can read and write a range of schemas, so
// that nodes of two successive releases can run together at the level of the older one.
// Once all run the newer one, operators raise the level, and from then on the older
// release can read the log no more.
//
// A form is anything that an entry can contain: a field, or a value of an enum. Each has
// a level, from which on it may be written; fsm.proto has the levels. The reader may rely
// on this: no node that follows the rules writes a form above the cluster's level, and
// apply refuses one that another node wrote.
package level

import (
	"fmt"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// The oldest and the newest schema that this release reads. It writes that of the
// cluster's level.
const (
	Oldest = 1
	Newest = 2
)

// SharedReads is the level from which on the records of a batch may share items of their
// read sets.
const SharedReads = 2

// Range is the range of schemas that a release can read and write.
type Range struct{ Oldest, Newest uint32 }

// Known is the range of this release.
var Known = Range{Oldest, Newest}

// RangeOf returns the range that a node registered.
func RangeOf(n *fsmpb.RegisterNode) Range { return Range{n.GetSchemaMin(), n.GetSchemaMax()} }

// Has reports whether the range contains a schema.
func (r Range) Has(schema uint32) bool { return r.Oldest <= schema && schema <= r.Newest }

// String returns the range in words, such as "schemas 1 to 2".
func (r Range) String() string { return fmt.Sprintf("schemas %d to %d", r.Oldest, r.Newest) }

// Check returns an error that says what to do, unless the range contains a schema.
func (r Range) Check(schema uint32) error {
	switch {
	case schema > r.Newest:
		return fmt.Errorf("schema %d, and this release knows %v: a newer release wrote it, start that one", schema, r)
	case schema < r.Oldest:
		return fmt.Errorf("schema %d, and this release knows %v: upgrade by one release at a time, and finalize each", schema, r)
	}
	return nil
}
