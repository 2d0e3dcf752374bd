package request

import (
	"iter"
	"sync"
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// Counter counts objects by where they are. The count may be a second old, because counting
// takes a while when there are many objects.
type Counter struct {
	all func(*fsm.State) iter.Seq[Place]
	mu  sync.Mutex
	at  time.Time
	n   map[Place]int
}

// Place is where an object is: in an account, and a key also in a Region.
type Place struct {
	Account fsm.Account
	Region  string
}

// NewKeyCount returns a counter of the keys of each account in each Region.
func NewKeyCount() *Counter {
	return &Counter{all: func(s *fsm.State) iter.Seq[Place] {
		return func(yield func(Place) bool) {
			for k := range s.AllKeys() {
				if !yield(Place{fsm.Account(k.Account), k.Region}) {
					return
				}
			}
		}
	}}
}

// NewUserCount returns a counter of the users of each account.
func NewUserCount() *Counter {
	return &Counter{all: func(s *fsm.State) iter.Seq[Place] {
		return func(yield func(Place) bool) {
			for u := range fsm.Objects[*fsmpb.User](s, nil, "") {
				if !yield(Place{Account: fsm.Account(u.Account)}) {
					return
				}
			}
		}
	}}
}

// AtLeast reports whether there are at least limit objects in a place.
func (c *Counter) AtLeast(s *fsm.State, now time.Time, where Place, limit int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if age := now.Sub(c.at); age < 0 || age >= time.Second {
		c.at, c.n = now, make(map[Place]int)
		for at := range c.all(s) {
			c.n[at]++
		}
	}
	return c.n[where] >= limit
}
