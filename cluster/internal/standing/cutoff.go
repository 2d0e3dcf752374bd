package standing

import (
	"sync"
	"time"
)

// CutOffFor is how long a node that sent a forgery is refused. Its identity may have been
// stolen.
const CutOffFor = time.Minute

// CutOffs are the nodes that are refused because of what they sent. What arrived over a
// connection without proof may not be from the node itself if that is unsealed. So
// connections with proof are refused only for what was sent over a connection with proof.
type CutOffs struct {
	mu    sync.Mutex
	until map[Sender]time.Time
}

// Sender is the node at the other end of a connection, and whether it has proved there that
// it is unsealed.
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

// Clear ends all refusals. It is for tests, which send forgeries on purpose.
func (c *CutOffs) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.until)
}
