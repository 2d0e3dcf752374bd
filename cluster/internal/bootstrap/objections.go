package bootstrap

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm"
)

var (
	// ErrWipedDisk means that the cluster knows this node, but its disk is empty.
	ErrWipedDisk = errors.New("the data directory of a known node is empty: start the node with the one that it had")
	// ErrRelease means that this release cannot read what the cluster writes.
	ErrRelease = errors.New("this release cannot take part in the cluster")
	// ErrRolledBack means that this node's disk has held newer data than it does now.
	ErrRolledBack = errors.New("the data directory was rolled back to an older state: start the node with the newest one")
)

// object returns an error if another node's view of the cluster contradicts this node's
// disk.
func (j *Joiner) object(h helloResult, empty bool) error {
	if err := j.cfg.Known.Check(max(h.r.Level, 1)); err != nil {
		return fmt.Errorf("%w: the cluster writes %w (node %s runs release %s)", ErrRelease, err, h.node, h.r.Version)
	}
	switch {
	case !h.r.Registered:
		return nil
	case !empty && h.r.Incarnation == j.cfg.Incarnation, j.registered():
		// The answer is late and refers to this incarnation already. The watermarks of
		// earlier incarnations were compared when the state machine applied the
		// registration.
		return nil
	case empty:
		return fmt.Errorf("%w (node %s has seen this node as a member). %s", ErrWipedDisk, h.node, j.mend())
	case h.r.Watermark > j.cfg.Disk.last:
		return fmt.Errorf("%w (node %s has seen it at index %d, and it is at index %d now). %s", ErrRolledBack, h.node, h.r.Watermark, j.cfg.Disk.last, j.mend())
	}
	return nil
}

// refuse refuses a node that says nothing of the schemas that it knows, if the cluster is
// above level 1: it runs the release before 0.2, which cannot read what the cluster writes
// and does not look at the level in the answer. All other nodes do, and stop by themselves.
func (j *Joiner) refuse(r *clusterpb.HelloRequest, at uint32) error {
	if r.SchemaMax != 0 || at == 1 {
		return nil
	}
	err := fmt.Errorf("%w: its release knows schema 1, and the cluster has feature level %d: start release %s on it", ErrRelease, at, j.cfg.Release)
	j.cfg.Log.Warn("refused a node that starts", "peer", r.Node, "err", err)
	return status.Error(codes.FailedPrecondition, err.Error())
}

// mend says how to go on after the disk was lost: under its old id the node must never
// return, as what it had acknowledged is gone.
func (j *Joiner) mend() string {
	return fmt.Sprintf("If that is lost, start a node with a new id, an empty data directory and --join, and run: conclave cluster replace %s NEW-ID=HOST:PORT", j.cfg.Node)
}

// registered reports whether this incarnation is the newest one of the node.
func (j *Joiner) registered() bool {
	r, _ := j.cfg.State().Node(j.cfg.Node)
	return r != nil && r.Incarnation == j.cfg.Incarnation
}

// Compare compares the disk with the watermarks that earlier incarnations of the node left
// in the applied state, until this incarnation is registered. It is needed because all
// nodes that could have objected may be gone. watermark returns the watermarks of the
// state. Compare may only be called on the apply goroutine.
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
		return fmt.Errorf("%w (it was seen at index %d, and it is at index %d now). %s", ErrRolledBack, mark, j.cfg.Disk.last, j.mend())
	}
	return nil
}

// objectionHello is how long a node waits for the answer of an unsealed node after another
// one objected to its disk, as a multiple of Config.Patience.
const objectionHello = 5

// objections are the objections of other nodes to this node's disk. A thief with a node's
// identity could object to anything, so an unsealed node that is up to date has the last
// word. Without one, any objection is believed.
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
		o.other = fmt.Errorf("%w. No unsealed node answered that could confirm or deny it: "+
			"if the identity of %s may have been stolen, disconnect that node from the network and start this one again", err, h.node)
	}
}

// final returns an objection of an unsealed node.
func (o *objections) final() error { return o.proven }

// open returns an objection that no unsealed node has confirmed or denied.
func (o *objections) open() error {
	if o.cleared {
		return nil
	}
	return o.other
}
