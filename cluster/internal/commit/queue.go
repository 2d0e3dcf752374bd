package commit

import (
	"sync"

	"github.com/conclavekms/conclave/cluster/internal/signal"
)

// queue is where callers leave their proposals for the Proposer. It wakes the Proposer once
// there are as many as the Proposer can use, and not for each of them.
type queue struct {
	arrived chan struct{} // there are proposals to take

	mu     sync.Mutex
	closed bool
	list   []*proposal
	bytes  int
	spare  []*proposal // list and spare are used alternately
	// The Proposer is woken by enough proposals, or by enoughBytes of them.
	enough, enoughBytes int
}

func newQueue() *queue {
	return &queue{arrived: make(chan struct{}, 1), enough: 1}
}

// put reports whether p was accepted. If it was, the Proposer will answer it.
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

// take returns the proposals that have arrived. The slice is valid until the next call. The
// next proposal wakes the Proposer, unless expect is called before.
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

// expect sets how many proposals, or bytes of them, wake the Proposer before the next take.
// Proposals that arrived since the last take have woken it already.
func (q *queue) expect(n, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.enough, q.enoughBytes = n, bytes
}

// close makes put refuse proposals. Those accepted before are returned by the next take.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
}
