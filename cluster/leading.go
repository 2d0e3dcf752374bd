package cluster

import "context"

// OnLeader registers f to run, each time this node has become leader and its
// state contains everything committed before, until ctx ends with the
// leadership. f must return then. It may be called at any time.
func (n *Node) OnLeader(f func(ctx context.Context)) { n.terms.OnLeader(f) }

// SetCanLead registers what tells whether this node is fit to lead: a sealed one
// hands over as soon as a fit one can take over.
func (n *Node) SetCanLead(f func() bool) { n.handover.SetCanLead(f) }

// TransferLeadership hands the leadership to the best placed other voter and
// returns when this node has stopped leading. One transfer runs at a time.
func (n *Node) TransferLeadership(ctx context.Context) error { return n.handover.Transfer(ctx) }

// IsLeader reports whether this node believes to lead. It proves nothing: what
// must be certain goes through the log.
func (n *Node) IsLeader() bool { return n.handover.Leads() }

// Leader is the node that leads and its peer address; empty when none is known.
func (n *Node) Leader() (id, addr string) { return n.handover.Leader() }

// Barrier returns once State contains everything that was committed when it was
// called. Callers at the same time share a barrier. It writes nothing to the log:
// strangers can cause barriers.
func (n *Node) Barrier(ctx context.Context) error { return n.barriers.Wait(ctx) }
