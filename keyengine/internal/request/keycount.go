package request

import (
	"sync"
	"time"

	"github.com/conclavekms/conclave/fsm"
)

// KeyCount counts the keys in each Region. The count may be a second old, because counting
// takes a while when there are many keys.
type KeyCount struct {
	mu sync.Mutex
	at time.Time
	n  map[string]int
}

// AtLeast reports whether a Region has at least limit keys.
func (c *KeyCount) AtLeast(s *fsm.State, now time.Time, region string, limit int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if age := now.Sub(c.at); age < 0 || age >= time.Second {
		c.at, c.n = now, make(map[string]int)
		for k := range s.AllKeys() {
			c.n[k.Region]++
		}
	}
	return c.n[region] >= limit
}
