package standing

import (
	"sync"
	"time"
)

// CutOffFor is how long a node that sent a forgery is refused. It may be a
// stolen node's identity, and nothing that it says is needed.
const CutOffFor = time.Minute

// CutOffs are the nodes that are refused for what they sent. What was sent over a
// connection without proof says nothing of the node itself, if that is unsealed: so
// connections with proof are refused only for what was sent over such a one.
type CutOffs struct {
	mu    sync.Mutex
	until map[Sender]time.Time
}

// Sender is a node as the other end of a connection has it, with proof or without.
type Sender struct {
	Node   string
	Proven bool
}

// Add refuses a node from now on, and reports whether it was not refused already.
func (c *CutOffs) Add(from Sender, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh := !now.Before(c.until[from])
	if c.until == nil {
		c.until = make(map[Sender]time.Time)
	}
	c.until[Sender{Node: from.Node}] = now.Add(CutOffFor)
	c.until[from] = now.Add(CutOffFor)
	return fresh
}

// Has reports whether a sender is refused.
func (c *CutOffs) Has(from Sender, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Before(c.until[from])
}

// Clear lets everybody in again. Tests need it, who send forgeries on purpose.
func (c *CutOffs) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.until)
}
