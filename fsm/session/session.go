// Package session is what apply remembers of each node's batches, so that a batch that is
// submitted again gets the answer it had and is not applied twice.
//
// All of it is a part of the replicated state: nodes that applied the same entries have
// the same sessions.
package session

import (
	"maps"
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// Sessions are the sessions of all nodes. They are not safe for concurrent use.
type Sessions struct{ of map[string]*session }

// session is that of one incarnation of a node.
type session struct {
	incarnation  uint64
	settledBelow uint64
	watermark    uint64
	batches      map[uint64]Answer
}

// Answer is what was decided about a batch.
type Answer struct {
	Index    uint64 // of the Raft entry that applied the batch
	Verdicts []byte // one for each record; not written to
	// First is the size of the audit log before the batch; nil at feature level 1.
	First *uint64
}

// Standing is what is known of a batch before it is applied.
type Standing uint8

const (
	// New: the batch was not applied yet.
	New Standing = iota + 1
	// Repeated: the batch was applied before.
	Repeated
	// Fenced: the batch must not be applied. The node's incarnation is not the registered
	// one, or the node said before that it had the answer to this batch.
	Fenced
)

// None returns the sessions of no nodes.
func None() Sessions { return Sessions{make(map[string]*session)} }

// Register begins a node's incarnation. It reports false, and changes nothing, if that is
// not newer than the one there is.
func (s Sessions) Register(n *fsmpb.RegisterNode) bool {
	watermark := n.Watermark
	if was := s.of[n.Node]; was != nil {
		if n.Incarnation <= was.incarnation {
			return false
		}
		watermark = max(watermark, was.watermark)
	}
	s.of[n.Node] = &session{incarnation: n.Incarnation, watermark: watermark, batches: make(map[uint64]Answer)}
	return true
}

// Watermark returns the newest Raft index that the node's disk is known to hold, and
// whether the node is known at all.
func (s Sessions) Watermark(node string) (uint64, bool) {
	n := s.of[node]
	if n == nil {
		return 0, false
	}
	return n.watermark, true
}

// Find returns the standing of a batch and, for one that is repeated, the answer that was
// given. It takes note of the watermark that the batch carries.
func (s Sessions) Find(b *wire.Batch) (Standing, Answer) {
	n := s.of[string(b.Node)]
	if n == nil || n.incarnation != b.Incarnation {
		return Fenced, Answer{}
	}
	n.watermark = max(n.watermark, b.Watermark)
	if was, ok := n.batches[b.Seq]; ok {
		return Repeated, was
	}
	if b.Seq < n.settledBelow {
		return Fenced, Answer{}
	}
	return New, Answer{}
}

// Applied remembers the answer to a batch, whose standing was New, and forgets what the
// node has settled by it. At most window answers are kept, the newest ones.
func (s Sessions) Applied(b *wire.Batch, a Answer, window int) {
	n := s.of[string(b.Node)]
	n.batches[b.Seq] = a
	n.settle(b.SettledBelow, window)
}

// settle forgets the batches whose answers the node has, and the oldest ones if
// more than window remain.
func (s *session) settle(below uint64, window int) {
	if below > s.settledBelow {
		s.settledBelow = below
		for seq := range s.batches {
			if seq < below {
				delete(s.batches, seq)
			}
		}
	}
	for len(s.batches) > window {
		oldest := ^uint64(0)
		for seq := range s.batches {
			oldest = min(oldest, seq)
		}
		delete(s.batches, oldest)
		s.settledBelow = max(s.settledBelow, oldest+1)
	}
}

// Proto returns the sessions for a snapshot, by node. The result is not affected by later
// changes.
func (s Sessions) Proto() []*fsmpb.Session {
	all := make([]*fsmpb.Session, 0, len(s.of))
	for _, node := range slices.Sorted(maps.Keys(s.of)) {
		n := s.of[node]
		p := &fsmpb.Session{
			Node: node, Incarnation: n.incarnation, SettledBelow: n.settledBelow, Watermark: n.watermark,
		}
		for _, seq := range slices.Sorted(maps.Keys(n.batches)) {
			a := n.batches[seq]
			p.Batches = append(p.Batches, &fsmpb.AppliedBatch{Seq: seq, Index: a.Index, Verdicts: a.Verdicts, FirstRecord: a.First})
		}
		all = append(all, p)
	}
	return all
}

// Add adds a session of a snapshot.
func (s Sessions) Add(p *fsmpb.Session) {
	n := &session{
		incarnation: p.Incarnation, settledBelow: p.SettledBelow, watermark: p.Watermark,
		batches: make(map[uint64]Answer, len(p.Batches)),
	}
	for _, b := range p.Batches {
		n.batches[b.Seq] = Answer{Index: b.Index, Verdicts: b.Verdicts, First: b.FirstRecord}
	}
	s.of[p.Node] = n
}
