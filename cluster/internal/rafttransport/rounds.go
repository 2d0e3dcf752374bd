package rafttransport

import (
	"sync"

	"github.com/hashicorp/raft"
)

// rounds knows which nodes confirmed a term of this node in answer to requests that were
// sent after a given moment.
type rounds struct {
	mu sync.Mutex
	// now is a logical clock, advanced by every request and every Mark.
	now  uint64
	last map[raft.ServerID]round
}

// round is the newest request that a node has confirmed.
type round struct{ sent, term uint64 }

// tick returns the next time of the logical clock.
func (r *rounds) tick() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now++
	return r.now
}

// confirmed records that the node was in the given term when it answered a request.
func (r *rounds) confirmed(node raft.ServerID, sent, term uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = make(map[raft.ServerID]round)
	}
	if sent > r.last[node].sent {
		r.last[node] = round{sent, term}
	}
}

// Mark returns a moment for Confirmed.
func (t *Transport) Mark() uint64 { return t.rounds.tick() }

// Confirmed reports whether a node answered an AppendEntries request that was sent after
// mark, and was then still in the given term. Had the node voted for a leader of a newer
// term before mark, it would not have been.
//
// Raft's VerifyLeader does not prove as much: it also counts answers to requests that were
// sent before it was called.
func (t *Transport) Confirmed(node raft.ServerID, mark, term uint64) bool {
	t.rounds.mu.Lock()
	defer t.rounds.mu.Unlock()
	last := t.rounds.last[node]
	return last.sent > mark && last.term == term
}
