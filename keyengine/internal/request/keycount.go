package request

import (
	"sync"
	"time"

	"github.com/conclavekms/conclave/fsm"
)

// KeyCount knows about how many keys there are in each Region. To count them takes
// a while when there are many, so it is done at most once a second.
type KeyCount struct {
	mu sync.Mutex
	at time.Time
	n  map[string]int
}

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
