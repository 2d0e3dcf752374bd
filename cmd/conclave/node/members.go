package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/conclavekms/conclave/cluster"
	"github.com/conclavekms/conclave/fsm/level"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// changeTimeout bounds a change of the members. A client that goes away does not end it.
const changeTimeout = 20 * time.Second

// change makes an operator's change of the members, between its two audit records.
func (c operations) change(ctx context.Context, op ceremony.Operator, m ceremony.MembersChange, do func(context.Context) error) error {
	if !c.n.cluster.IsLeader() {
		return c.told(cluster.ErrNotLeader)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()
	return c.n.engine.ChangeMembers(ctx, op, m, func(ctx context.Context) error {
		err := do(ctx)
		c.n.log.Info("an operator changes the members", "operator", op.Name, "call", m.Name, "peer", m.Node, "err", err)
		return c.told(err)
	})
}

// told returns what an operator is told of an error.
func (c operations) told(err error) error {
	switch {
	case errors.Is(err, cluster.ErrNotLeader):
		leader, _ := c.n.cluster.Leader()
		if leader == "" {
			leader = "no known node"
		}
		return &kmsapi.Error{Code: kmsapi.ErrUnavailable.Code, Message: fmt.Sprintf("Only the leader does this, and %s leads.", leader)}
	case errors.Is(err, cluster.ErrNotReady), errors.Is(err, cluster.ErrNoTransfer):
		return &kmsapi.Error{Code: kmsapi.ErrInvalidState.Code, Message: err.Error()}
	case errors.Is(err, cluster.ErrRefused):
		return &kmsapi.Error{Code: kmsapi.ErrValidation.Code, Message: err.Error()}
	}
	return err
}

// AddNode implements grpcapi.Ceremony.
func (c operations) AddNode(ctx context.Context, op ceremony.Operator, node, address string) error {
	return c.change(ctx, op, ceremony.MembersChange{Name: "AddNode", Node: node, Address: address}, func(ctx context.Context) error {
		return c.n.cluster.Changes().Add(ctx, node, address)
	})
}

// PromoteNode implements grpcapi.Ceremony.
func (c operations) PromoteNode(ctx context.Context, op ceremony.Operator, node string) error {
	return c.change(ctx, op, ceremony.MembersChange{Name: "PromoteNode", Node: node}, func(ctx context.Context) error {
		return c.n.cluster.Changes().Promote(ctx, node)
	})
}

// RemoveNode implements grpcapi.Ceremony.
func (c operations) RemoveNode(ctx context.Context, op ceremony.Operator, node string) error {
	return c.change(ctx, op, ceremony.MembersChange{Name: "RemoveNode", Node: node}, func(ctx context.Context) error {
		return c.n.cluster.Changes().Remove(ctx, node)
	})
}

// SetNodeAddress implements grpcapi.Ceremony.
func (c operations) SetNodeAddress(ctx context.Context, op ceremony.Operator, node, address string) error {
	return c.change(ctx, op, ceremony.MembersChange{Name: "SetNodeAddress", Node: node, Address: address}, func(ctx context.Context) error {
		return c.n.cluster.Changes().Move(ctx, node, address)
	})
}

// TransferLeadership implements grpcapi.Ceremony.
func (c operations) TransferLeadership(ctx context.Context, op ceremony.Operator, to string) error {
	return c.change(ctx, op, ceremony.MembersChange{Name: "TransferLeadership", Node: to}, func(ctx context.Context) error {
		return c.n.cluster.Changes().TransferLeadership(ctx, to)
	})
}

const (
	// deadTick is how often a node looks which members answer. If it did not for deadGap,
	// because it was stopped for example, it knows nothing about that time.
	deadTick = time.Minute
	deadGap  = 5 * deadTick
	// deadRetry is how long it waits after a removal that failed.
	deadRetry = 10 * time.Minute
	// minDead is the shortest time after which a node may count as dead.
	minDead = time.Hour
)

// deadNodes removes members that have not answered for long, while this node leads. It watches
// them on every node, so that a new leader does not begin anew. What it knows is in memory only:
// after a restart it begins anew.
type deadNodes struct {
	after  time.Duration
	now    func() time.Time
	look   func(context.Context) cluster.Health
	may    func() bool // whether this node leads, and could remove a member at all
	remove func(ctx context.Context, node string, silent time.Duration) error

	last   time.Time            // when it looked last
	next   time.Time            // no attempt is made before that
	silent map[string]time.Time // since when members do not answer
}

// watchDead removes dead members until the node stops.
func (n *Node) watchDead(now func() time.Time) {
	d := &deadNodes{
		after: n.cfg.RemoveDeadAfter, now: now, look: n.cluster.Changes().Health, silent: make(map[string]time.Time),
		may: func() bool {
			return n.cluster.IsLeader() && !n.engine.Sealed() && level.Allows(n.cluster.State().Level(), cluster.ChangesSince) == nil
		},
		remove: func(ctx context.Context, node string, silent time.Duration) error {
			return n.engine.RemoveDeadNode(ctx, node, silent, func(ctx context.Context) error {
				return operations{n}.told(n.cluster.Changes().RemoveDead(ctx, node))
			})
		},
	}
	tick := time.NewTicker(deadTick)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-n.life.Done():
			return
		}
		ctx, cancel := context.WithTimeout(n.life, changeTimeout)
		node, err := d.step(ctx)
		cancel()
		if node != "" {
			n.log.Warn("removing a node that has not answered for long", "peer", node, "after", d.after, "err", err)
		}
	}
}

// step looks once. It removes at most one node, which it returns: then the members are looked at
// again before the next one.
func (d *deadNodes) step(ctx context.Context) (node string, err error) {
	h, now := d.look(ctx), d.now()
	if gap := now.Sub(d.last); gap < 0 || gap > deadGap {
		clear(d.silent)
	}
	d.last = now
	members := make(map[string]bool)
	for _, s := range h.Members {
		members[s.Node] = true
		if s.Answered {
			delete(d.silent, s.Node)
		} else if _, ok := d.silent[s.Node]; !ok {
			d.silent[s.Node] = now
		}
	}
	maps.DeleteFunc(d.silent, func(node string, _ time.Time) bool { return !members[node] })
	if !d.may() || now.Before(d.next) {
		return "", nil
	}
	for _, s := range h.Members {
		since, ok := d.silent[s.Node]
		if !ok || now.Sub(since) < d.after || h.MayRemoveDead(s.Node) != nil {
			continue
		}
		if err = d.remove(ctx, s.Node, now.Sub(since)); err != nil {
			d.next = now.Add(deadRetry)
		}
		return s.Node, err
	}
	return "", nil
}
