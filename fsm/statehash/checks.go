package statehash

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// Every is how many Raft indexes lie between the points at which nodes remember their
// state hash for comparison.
const Every = 1000

// kept is how many hashes are kept, which bounds how far behind a comparison may be.
const kept = 8

// ErrDiverged means that this node's state differs from the leader's.
var ErrDiverged = errors.New("state differs from the leader's")

// Checks are the state hashes at the newest of the indexes at which nodes compare them.
// The zero value has none.
type Checks struct{ of []check } // newest last

type check struct {
	index uint64
	hash  Sum
}

// Note keeps the state hash after the entry at an index, if nodes compare it there.
func (c *Checks) Note(index uint64, hash Sum) {
	if index%Every == 0 {
		c.of = append(c.of, check{index, hash})
		c.of = slices.Delete(c.of, 0, max(0, len(c.of)-kept))
	}
}

// Compare compares the leader's state hash with this node's. Its error wraps ErrDiverged.
// It is nil if there is nothing to compare: for no hash, or one of an index of which this
// node has none.
func (c *Checks) Compare(leader *fsmpb.StateCheck) error {
	for _, own := range c.of {
		if leader != nil && own.index == leader.Index && !bytes.Equal(own.hash[:], leader.Hash) {
			return fmt.Errorf("%w: at Raft index %d", ErrDiverged, leader.Index)
		}
	}
	return nil
}

// Latest returns the newest hash, for the leader to propose; nil for none.
func (c *Checks) Latest() *fsmpb.StateCheck {
	if len(c.of) == 0 {
		return nil
	}
	return c.of[len(c.of)-1].proto()
}

func (c check) proto() *fsmpb.StateCheck { return &fsmpb.StateCheck{Index: c.index, Hash: c.hash[:]} }

// Proto returns all hashes, for a snapshot. The result is not affected by later changes.
func (c *Checks) Proto() *fsmpb.StateChecks {
	m := &fsmpb.StateChecks{}
	for _, one := range c.of {
		m.Checks = append(m.Checks, one.proto())
	}
	return m
}

// Add adds the hashes of a snapshot. Its error wraps [wire.ErrUnreadable].
func (c *Checks) Add(m *fsmpb.StateChecks) error {
	for _, one := range m.Checks {
		if len(one.Hash) != len(Sum{}) {
			return fmt.Errorf("%w: state hash", wire.ErrUnreadable)
		}
		c.of = append(c.of, check{one.Index, Sum(one.Hash)})
	}
	return nil
}
