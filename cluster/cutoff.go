package cluster

import (
	"sync"
	"time"
)

const (
	// cutOffFor is how long a node that sent a forgery is refused. It may be a
	// stolen node's identity, and nothing that it says is needed.
	cutOffFor = time.Minute
)

// cutOffs are the nodes that are refused for what they sent. What was sent over a
// connection without proof says nothing of the node itself, if that is unsealed: so
// connections with proof are refused only for what was sent over such a one.
type cutOffs struct {
	mu    sync.Mutex
	until map[sender]time.Time
}

// sender is a node as the other end of a connection has it, with proof or without.
type sender struct {
	node   string
	proven bool
}

// add refuses a node from now on, and reports whether it was not refused already.
func (c *cutOffs) add(from sender, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh := !now.Before(c.until[from])
	if c.until == nil {
		c.until = make(map[sender]time.Time)
	}
	c.until[sender{node: from.node}] = now.Add(cutOffFor)
	c.until[from] = now.Add(cutOffFor)
	return fresh
}

// has reports whether a sender is refused.
func (c *cutOffs) has(from sender, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Before(c.until[from])
}

// cutOff refuses another node for a while, because of something that no honest
// node sends. The log, the metric and the audit log name it, once a period.
func (n *Node) cutOff(from sender, reason string) {
	node := from.node
	n.metrics.forgeries.WithLabelValues(node).Inc()
	if !n.cutOffs.add(from, time.Now()) {
		return
	}
	n.log.Error("another node sent what only an unsealed node can, and is not one: it is refused. Its disk or identity may be stolen",
		"node", node, "reason", reason, "for", cutOffFor)
	if n.cfg.OnForgery != nil {
		n.cfg.OnForgery(node, reason)
	}
}
