package membership

import (
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// History has the newest configurations in a node's log and snapshots. Raft does not tell the
// index of a configuration.
type History struct {
	mu   sync.Mutex
	list []entry // by index
}

type entry struct {
	index uint64
	conf  raft.Configuration
}

// kept is how many configurations are kept, so that one that is removed from the log again
// leaves the one before it. Raft has at most one that is not committed.
const kept = 8

// Note records a configuration that is stored on the disk.
func (h *History) Note(index uint64, c raft.Configuration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, found := slices.BinarySearchFunc(h.list, index, func(e entry, i uint64) int {
		switch {
		case e.index < i:
			return -1
		case e.index > i:
			return 1
		}
		return 0
	})
	if found {
		h.list[i].conf = c
		return
	}
	h.list = slices.Insert(h.list, i, entry{index, c})
	if n := len(h.list); n > kept {
		h.list = slices.Delete(h.list, 0, n-kept)
	}
}

// Truncate forgets the configurations from an index on, whose entries were removed.
func (h *History) Truncate(first uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = slices.DeleteFunc(h.list, func(e entry) bool { return e.index >= first })
}

// Latest returns the newest configuration and its index; 0 for none.
func (h *History) Latest() (uint64, raft.Configuration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.list) == 0 {
		return 0, raft.Configuration{}
	}
	e := h.list[len(h.list)-1]
	return e.index, e.conf
}
