// Package standing records what a node knows about the other voters: which of them answer,
// which prove that they are unsealed, and how far their logs and states are. From this it
// decides which leader the node follows, whose votes and acknowledgements count, and which
// nodes it refuses.
package standing

import (
	"sync"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
)

// A sealed node cannot be distinguished from a thief with its identity. It may vote and
// lead as long as no unsealed node can: some node has to, so that the log is complete when
// the first node is unsealed. Then it hands over, which a thief does not. So every node
// regularly asks every other one for proof that it is unsealed, and follows no leader
// without proof while a node with proof could lead.
//
// All values below are in heartbeat timeouts, 500 ms by default.
const (
	// Every is how often a node asks the others.
	Every = 2
	// age is how long a proof or any other answer counts. It allows for some lost answers,
	// since otherwise a node on a very busy machine would follow any leader.
	age = 20
	// yieldWithin is how long a leader without proof is followed while a node with proof
	// could win an election.
	yieldWithin = 10
	// catchUpWithin is the same for the case that a node with proof exists but lacks
	// entries, which it may be about to receive.
	catchUpWithin = 240
	// unfollowed is how long a leader that did not yield is not followed.
	unfollowed = 240
)

// silentAfter is the number of unanswered questions after which a node counts as down.
const silentAfter = 3

// deposeEvery is how often a node without proof may make an unsealed leader or candidate
// step down by naming a newer term. An honest node needs this once, after it was
// partitioned from the others for a while.
const deposeEvery = 10 * time.Minute

// standing is what this node knows about another voter.
type standing struct {
	answered time.Time // time of the newest answer
	missed   int       // unanswered questions since then
	proof    time.Time // time of the newest answer with a valid proof
	canLead  bool
	last     uint64 // newest index in its log
	// The newest comparison of its state with this node's at the same index.
	compared time.Time
	agreed   uint64 // newest index at which the states were equal
	differs  bool
	deposed  time.Time // when it last made this node step down without proof
	// asking is closed when the question that was asked at the time asked has been
	// answered. Several callers may wait for it.
	asking  chan struct{}
	asked   time.Time
	pending int // requests in its name over connections without proof; see Begin
}

// Standings records the standings of the other voters and of the current leader.
type Standings struct {
	unit time.Duration // a heartbeat timeout

	mu sync.Mutex
	of map[string]*standing
	// leader has had no proof since that time, although another node had.
	leader string
	since  time.Time
	// refused are the leaders that did not yield, with the time until which they are
	// refused.
	refused map[string]time.Time
}

// New returns Standings without any answers. unit is the heartbeat timeout.
func New(unit time.Duration) *Standings {
	return &Standings{unit: unit, of: make(map[string]*standing), refused: make(map[string]time.Time)}
}

func (s *Standings) get(node string) *standing {
	st := s.of[node]
	if st == nil {
		st = &standing{}
		s.of[node] = st
	}
	return st
}

// Take records the answer of a node, and whether it had a valid proof.
func (s *Standings) Take(node string, r *clusterpb.ClockResponse, proven bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.get(node)
	st.answered, st.missed, st.canLead, st.last = now, 0, r.CanLead, r.LastIndex
	if proven {
		st.proof = now
	}
}

// Forget discards a node's proof.
func (s *Standings) Forget(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.get(node).proof = time.Time{}
}

// Prove records that a node proved over a connection that it is unsealed.
func (s *Standings) Prove(node string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.get(node).proof = now
}

// Ask calls ask to put a question to a node, unless that was done a moment ago. While the
// question is being asked, other callers wait for it.
func (s *Standings) Ask(node string, ask func()) {
	s.mu.Lock()
	st := s.get(node)
	done, soon := st.asking, s.asked(st)
	if done == nil && !soon {
		st.asking, st.asked = make(chan struct{}), time.Now()
	}
	s.mu.Unlock()
	switch {
	case done != nil:
		<-done
	case !soon:
		ask()
		s.mu.Lock()
		defer s.mu.Unlock()
		close(st.asking)
		st.asking = nil
	}
}

// asked reports whether Ask asked the node a moment ago.
func (s *Standings) asked(st *standing) bool { return time.Since(st.asked) < s.unit }

// Unasked reports whether Ask would ask the node now.
func (s *Standings) Unasked(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.get(node)
	return st.asking == nil && !s.asked(st)
}

// Begin adds by to the number of requests in a node's name, from connections without proof,
// that Raft has not answered.
func (s *Standings) Begin(node string, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.get(node).pending += by
}

// Pending reports whether Raft may be processing a request in a node's name from a
// connection without proof.
func (s *Standings) Pending(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(node).pending > 0
}

// Silent records that a node did not answer.
func (s *Standings) Silent(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.get(node)
	if st.missed++; st.missed >= silentAfter {
		st.canLead = false
	}
}

// known reports whether the standing of a node is known: it answered, or it counts as down.
func (s *Standings) known(node string, now time.Time) bool {
	st := s.of[node]
	return st != nil && (st.missed >= silentAfter || s.fresh(st.answered, now))
}

// fresh reports whether something recorded at that time still counts. The zero time means
// never.
func (s *Standings) fresh(at, now time.Time) bool {
	return !at.IsZero() && now.Sub(at) < age*s.unit
}

// Compare records whether a node's state at an index is the same as this node's, and
// reports whether that has changed.
func (s *Standings) Compare(node string, index uint64, same bool, now time.Time) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.get(node)
	changed = st.differs == same
	st.compared, st.differs = now, !same
	if same {
		st.agreed = max(st.agreed, index)
	}
	return changed
}

// Proven reports whether a node has proved recently that it is unsealed.
func (s *Standings) Proven(node string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.provenLocked(node, now)
}

// ProvenSince reports whether a node has proved after since that it is unsealed, and the
// proof still counts.
func (s *Standings) ProvenSince(node string, since, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.provenLocked(node, now) && s.of[node].proof.After(since)
}

// ProvedAt returns when a node last proved that it is unsealed. The time is zero if it never
// did, or if it has answered without proof since.
func (s *Standings) ProvedAt(node string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.of[node]; st != nil {
		return st.proof
	}
	return time.Time{}
}

func (s *Standings) provenLocked(node string, now time.Time) bool {
	st := s.of[node]
	return st != nil && !st.differs && s.fresh(st.proof, now)
}

// fit reports whether a voter, which may be this node, is unsealed and fit to lead.
func (s *Standings) fit(node string, me Self, now time.Time) bool {
	if node == me.Node {
		return me.Fit
	}
	return s.provenLocked(node, now) && s.of[node].canLead
}

// MayDepose reports whether a node without proof may make this one step down now.
func (s *Standings) MayDepose(node string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.get(node)
	if !st.deposed.IsZero() && now.Sub(st.deposed) < deposeEvery {
		return false
	}
	st.deposed = now
	return true
}

// Self is a node's own part in its judgement of the others.
type Self struct {
	Node   string
	Fit    bool   // unsealed and fit to lead
	Last   uint64 // newest index in its log
	Voters []string
}

// alternative reports whether an unsealed node other than but is fit to lead, and whether
// one could win an election without the vote of but.
func (s *Standings) alternative(but string, me Self, now time.Time) (exists, electable bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := map[string]uint64{me.Node: me.Last}
	for node, st := range s.of {
		if s.fresh(st.answered, now) {
			last[node] = st.last
		}
	}
	for _, node := range me.Voters {
		if node == but || !s.fit(node, me, now) {
			continue
		}
		exists = true
		votes := 0
		for _, v := range me.Voters {
			if l, ok := last[v]; ok && v != but && l <= last[node] {
				votes++
			}
		}
		electable = electable || votes > len(me.Voters)/2
	}
	return exists, electable
}

// Judge evaluates the current leader. It returns true when this node stops following it.
func (s *Standings) Judge(leader string, me Self, now time.Time) bool {
	proven := leader == "" || leader == me.Node || s.Proven(leader, now)
	exists, electable := s.alternative(leader, me, now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if proven {
		delete(s.refused, leader)
	}
	if proven || !exists {
		s.leader = ""
		return false
	}
	if s.leader != leader {
		s.leader, s.since = leader, now
	}
	for node, until := range s.refused {
		if !now.Before(until) {
			delete(s.refused, node)
		}
	}
	patience := catchUpWithin * s.unit
	if electable {
		patience = yieldWithin * s.unit
	}
	if now.Sub(s.since) < patience {
		return false
	}
	_, was := s.refused[leader]
	s.refused[leader] = now.Add(unfollowed * s.unit)
	return !was
}

// MayLead reports whether this node follows a node or votes for it. leader is the current
// leader as far as this node knows.
func (s *Standings) MayLead(node, leader string, me Self, now time.Time) bool {
	if s.Proven(node, now) {
		return true
	}
	s.mu.Lock()
	until, refused := s.refused[node]
	s.mu.Unlock()
	switch {
	case refused && now.Before(until):
		return false
	case leader == node:
		return true // Judge decides when it no longer is
	case leader == me.Node && me.Fit, leader != "" && s.Proven(leader, now):
		return false
	}
	if !s.allKnown(node, me, now) {
		return false // an unsealed node may be among them
	}
	_, electable := s.alternative(node, me, now)
	return !electable
}

// allKnown reports whether the standings of all other voters except one are known.
func (s *Standings) allKnown(but string, me Self, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range me.Voters {
		if v != but && v != me.Node && !s.known(v, now) {
			return false
		}
	}
	return true
}

// Counts reports whether a node's votes and acknowledgements count. With proof they always
// do. Without proof they do only as long as the nodes that have proof and are fit to lead
// are not a majority.
func (s *Standings) Counts(node string, me Self, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.provenLocked(node, now) {
		return true
	}
	fit := 0
	for _, v := range me.Voters {
		if s.fit(v, me, now) {
			fit++
		}
	}
	return fit <= len(me.Voters)/2
}

// UnsealedOther reports whether a voter other than this node and but has proof.
func (s *Standings) UnsealedOther(but string, me Self, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range me.Voters {
		if v != but && v != me.Node && s.provenLocked(v, now) {
			return true
		}
	}
	return false
}

// Agree reports whether a majority of voters, this one included, had the same state as this
// node at that index or later.
func (s *Standings) Agree(index uint64, voters int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 1
	for _, st := range s.of {
		if !st.differs && st.agreed >= index {
			n++
		}
	}
	return n > voters/2
}

// Outvoted reports whether the states of the others show that this node's state is wrong.
// It is if most voters have a different one, or if this node is unsealed and at least as
// many unsealed nodes have a different state as have the same one. The states that sealed
// nodes report count for the first condition only, because a thief could report anything.
func (s *Standings) Outvoted(voters int, unsealed bool, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	differ, provenDiffer, provenSame := 0, 0, 1
	for _, st := range s.of {
		if !s.fresh(st.compared, now) {
			continue
		}
		proven := s.fresh(st.proof, now) // counts even if the state differs
		switch {
		case st.differs && proven:
			differ++
			provenDiffer++
		case st.differs:
			differ++
		case proven:
			provenSame++
		}
	}
	return differ > voters/2 || unsealed && provenDiffer >= provenSame
}
