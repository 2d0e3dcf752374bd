package fsm

import (
	"slices"

	"github.com/conclavekms/conclave/fsm/fsmpb"
)

// session is what apply remembers of one node's batches, so that a batch that is
// submitted again gets the answer it had and is not applied twice.
type session struct {
	incarnation  uint64
	settledBelow uint64
	watermark    uint64
	batches      map[uint64]applied
}

type applied struct {
	index    uint64
	verdicts []Verdict
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

func (s *session) proto(node string) *fsmpb.Session {
	p := &fsmpb.Session{
		Node: node, Incarnation: s.incarnation, SettledBelow: s.settledBelow, Watermark: s.watermark,
	}
	for seq, b := range s.batches {
		p.Batches = append(p.Batches, &fsmpb.AppliedBatch{Seq: seq, Index: b.index, Verdicts: verdictBytes(b.verdicts)})
	}
	slices.SortFunc(p.Batches, func(a, b *fsmpb.AppliedBatch) int {
		if a.Seq < b.Seq {
			return -1
		}
		return 1
	})
	return p
}

func sessionOf(p *fsmpb.Session) *session {
	s := &session{
		incarnation: p.Incarnation, settledBelow: p.SettledBelow, watermark: p.Watermark,
		batches: make(map[uint64]applied, len(p.Batches)),
	}
	for _, b := range p.Batches {
		s.batches[b.Seq] = applied{index: b.Index, verdicts: Verdicts(b.Verdicts)}
	}
	return s
}

func verdictBytes(v []Verdict) []byte {
	b := make([]byte, len(v))
	for i := range v {
		b[i] = byte(v[i])
	}
	return b
}

// Verdicts converts the bytes that carry verdicts on the wire.
func Verdicts(b []byte) []Verdict {
	v := make([]Verdict, len(b))
	for i := range b {
		v[i] = Verdict(b[i])
	}
	return v
}
