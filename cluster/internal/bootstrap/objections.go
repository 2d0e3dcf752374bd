package bootstrap

import (
	"errors"
	"fmt"

	"github.com/conclavekms/conclave/fsm"
)

var (
	// ErrWipedDisk: the cluster knows this node, whose disk is empty.
	ErrWipedDisk = errors.New("the data directory of a known node is empty: start the node with the one that it had")
	// ErrRolledBack: the cluster knows this node's disk to have held more.
	ErrRolledBack = errors.New("the data directory was rolled back to an older state: start the node with the newest one")
)

// object says why a node's view of the cluster contradicts this node's disk; nil if it does not.
func (j *Joiner) object(h helloResult, empty bool) error {
	switch {
	case !h.r.Registered:
		return nil
	case !empty && h.r.Incarnation == j.cfg.Incarnation, j.registered():
		// The answer came late, and what the node knows is of this life already. The
		// state machine compared the former ones' watermarks on its way here.
		return nil
	case empty:
		return fmt.Errorf("%w (node %s knows it)", ErrWipedDisk, h.node)
	case h.r.Watermark > j.cfg.Disk.last:
		return fmt.Errorf("%w (node %s knows it up to index %d, and it has %d)", ErrRolledBack, h.node, h.r.Watermark, j.cfg.Disk.last)
	}
	return nil
}

// registered reports whether this incarnation is the newest one of the node.
func (j *Joiner) registered() bool {
	r, _ := j.cfg.State().Node(j.cfg.Node)
	return r != nil && r.Incarnation == j.cfg.Incarnation
}

// Compare looks at an applied state, until this incarnation is registered, for what
// earlier ones said of this disk: other nodes that could have told may all be gone.
// watermark is that of the state. Only the apply goroutine may call Compare.
func (j *Joiner) Compare(s *fsm.State, watermark func(node string) (uint64, bool)) error {
	if j.known {
		return nil
	}
	r, _ := s.Node(j.cfg.Node)
	if r == nil {
		return nil
	}
	if r.Incarnation >= j.cfg.Incarnation {
		j.known = true
		return nil
	}
	if mark, _ := watermark(j.cfg.Node); mark > j.cfg.Disk.last {
		return fmt.Errorf("%w (it was known up to index %d, and it has %d)", ErrRolledBack, mark, j.cfg.Disk.last)
	}
	return nil
}

// objectionHello is how long a node whose disk another one objects to waits for an
// unsealed node's word, in Config.Patience.
const objectionHello = 5

// objections are what others say against a node's disk. A thief with a node's
// identity may say anything; an unsealed node that knows what the cluster does has
// the last word. Without one, the node believes whoever objects.
type objections struct {
	proven, other error
	cleared       bool
}

func (o *objections) hear(h helloResult, err error) {
	switch {
	case h.proven && err != nil:
		o.proven = err
	case h.proven:
		o.cleared = true
	case err != nil && o.other == nil:
		o.other = fmt.Errorf("%w. No unsealed node was heard that could confirm or deny it: "+
			"if the identity of %s may be stolen, keep that node from the network and start again", err, h.node)
	}
}

// final is an objection that stands.
func (o *objections) final() error { return o.proven }

// open is one that does so far.
func (o *objections) open() error {
	if o.cleared {
		return nil
	}
	return o.other
}
