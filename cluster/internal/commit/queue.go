package commit

import (
	"sync"

	"github.com/conclavekms/conclave/cluster/internal/signal"
)

// queue is where callers leave their proposals for the Proposer. It wakes the
// Proposer once there are as many as the Proposer has use for, not for each.
type queue struct {
	arrived chan struct{} // something is to be taken

	mu     sync.Mutex
	closed bool
	list   []*proposal
	bytes  int
	spare  []*proposal // list and spare take turns
	// enough proposals, or that many bytes of them, wake the Proposer.
	enough, enoughBytes int
}

func newQueue() *queue {
	return &queue{arrived: make(chan struct{}, 1), enough: 1}
}

// put reports whether p was taken in: the Proposer will answer it.
func (q *queue) put(p *proposal) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.list = append(q.list, p)
	q.bytes += p.size
	if len(q.list) >= q.enough || q.bytes >= q.enoughBytes || p.exclusive {
		signal.Send(q.arrived)
	}
	return true
}

// take returns what has arrived, which is valid until the next call. The next
// proposal wakes the Proposer, unless it expects more before.
func (q *queue) take() []*proposal {
	q.mu.Lock()
	defer q.mu.Unlock()
	clear(q.spare)
	list := q.list
	q.list, q.spare = q.spare[:0], list
	q.bytes = 0
	q.enough, q.enoughBytes = 1, 0
	return list
}

// expect says how much is worth a wake-up until the next take. What arrived since
// the last one has woken the Proposer already.
func (q *queue) expect(n, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.enough, q.enoughBytes = n, bytes
}

// close takes no more; what it took before is left to the next take.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
}
