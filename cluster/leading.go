package cluster

import "context"

// OnLeader registers f to run each time this node has become leader and its state contains
// everything committed before. The context ends with the leadership, and f must then
// return. OnLeader may be called at any time.
func (n *Node) OnLeader(f func(ctx context.Context)) { n.terms.OnLeader(f) }

// SetCanLead registers the function that reports whether this node is fit to lead. A leader
// that is not, because it is sealed for instance, hands over as soon as a fit node can take
// over.
func (n *Node) SetCanLead(f func() bool) { n.handover.SetCanLead(f) }

// IsLeader reports whether this node believes that it leads. It proves nothing; whatever
// must be certain goes through the log.
func (n *Node) IsLeader() bool { return n.handover.Leads() }

// Leader returns the id and the peer address of the leader, or empty strings if none is
// known.
func (n *Node) Leader() (id, addr string) { return n.handover.Leader() }

// Barrier returns once State contains everything that was committed when Barrier was
// called. Concurrent callers share a barrier. It writes nothing to the log, because
// unauthenticated clients can cause barriers.
func (n *Node) Barrier(ctx context.Context) error { return n.barriers.Wait(ctx) }
