package cluster

import "sync"

// intake is where callers leave their proposals for the origin. It wakes the
// origin once there are as many as the origin has use for, not for each.
type intake struct {
	arrived chan struct{} // something is to be taken

	mu     sync.Mutex
	closed bool
	list   []*proposal
	bytes  int
	spare  []*proposal // list and spare take turns
	// enough proposals, or that many bytes of them, wake the origin.
	enough, enoughBytes int
}

func newIntake() *intake {
	return &intake{arrived: make(chan struct{}, 1), enough: 1}
}

// put reports whether p was taken in: the origin will answer it.
func (in *intake) put(p *proposal) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return false
	}
	in.list = append(in.list, p)
	in.bytes += p.size
	if len(in.list) >= in.enough || in.bytes >= in.enoughBytes || p.exclusive {
		signal(in.arrived)
	}
	return true
}

// take returns what has arrived, which is valid until the next call. The next
// proposal wakes the origin, unless it expects more before.
func (in *intake) take() []*proposal {
	in.mu.Lock()
	defer in.mu.Unlock()
	clear(in.spare)
	list := in.list
	in.list, in.spare = in.spare[:0], list
	in.bytes = 0
	in.enough, in.enoughBytes = 1, 0
	return list
}

// expect says how much is worth a wake-up until the next take. What arrived since
// the last one has woken the origin already.
func (in *intake) expect(n, bytes int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.enough, in.enoughBytes = n, bytes
}

// close takes no more; what it took before is left to the next take.
func (in *intake) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
}
