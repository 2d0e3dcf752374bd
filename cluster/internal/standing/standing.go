// Package standing is what a node knows of the other voters: which of them answer, which
// prove that they are unsealed, and how far their logs and states are. From that follows
// whom it follows, whose votes and acknowledgements count, and whom it refuses.
package standing

import (
	"sync"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
)

// A node that is sealed cannot be told from a thief with its identity. It may vote
// and lead while no unsealed node can: somebody has to, for the log to be complete
// when the first one is unsealed. It hands over then, which a thief does not. So
// every node asks every other one for proof that it is unsealed, again and again,
// and follows none that has no proof while one that has it could lead.
//
// All below count in heartbeat timeouts, 500 ms by default.
const (
	// Every is how often a node asks the others.
	Every = 2
	// age is how long a proof, or any answer, counts: for some lost answers, or
	// a machine that is very busy would follow anybody.
	age = 20
	// yieldWithin is how long a leader without proof is followed while a node with
	// proof could win an election.
	yieldWithin = 10
	// catchUpWithin is the same while a node with proof is there but lacks entries,
	// which it may be getting just now.
	catchUpWithin = 240
	// unfollowed is how long a leader that did not yield is not followed.
	unfollowed = 240
)

// silentAfter is how many questions a node leaves without an answer before it counts
// as one that is not there.
const silentAfter = 3

// deposeEvery is how often a node without proof may make an unsealed leader or
// candidate step down by naming a newer term. An honest one needs it once, after it
// was alone for a while.
const deposeEvery = 10 * time.Minute

// standing is what this node knows of another voter.
type standing struct {
	answered time.Time // newest answer
	missed   int       // questions since then
	proof    time.Time // newest answer with a good proof
	canLead  bool
	last     uint64 // newest index in its log
	// The newest comparison of its state with this node's at the same index.
	compared time.Time
	agreed   uint64 // newest index at which they were equal
	differs  bool
	deposed  time.Time // when it last made this node step down, without proof
	// asking is closed when a question that several wait for is answered, which was
	// asked then.
	asking  chan struct{}
	asked   time.Time
	pending int // requests in its name from ends without proof, see pend
}

// Standings are those of the other voters, and what this node makes of its leader.
type Standings struct {
	unit time.Duration // a heartbeat timeout

	mu sync.Mutex
	of map[string]*standing
	// leader has had no proof since then, with one there that has.
	leader string
	since  time.Time
	// refused are the leaders that did not yield, until when.
	refused map[string]time.Time
}

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

// Take takes over a node's answer.
func (s *Standings) Take(node string, r *clusterpb.ClockResponse, proven bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.get(node)
	st.answered, st.missed, st.canLead, st.last = now, 0, r.CanLead, r.LastIndex
	if proven {
		st.proof = now
	}
}

// Forget takes back a node's proof.
func (s *Standings) Forget(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.get(node).proof = time.Time{}
}

// Prove takes over that a node proved itself over a connection.
func (s *Standings) Prove(node string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.get(node).proof = now
}

// Ask has a node asked something, unless it was a moment ago. While it is being asked
// other callers wait for that.
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

// asked reports whether a node was asked by asking a moment ago.
func (s *Standings) asked(st *standing) bool { return time.Since(st.asked) < s.unit }

// Unasked reports whether asking would ask a node now.
func (s *Standings) Unasked(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.get(node)
	return st.asking == nil && !s.asked(st)
}

// Begin counts requests in a node's name, from ends without proof, that Raft has not
// answered.
func (s *Standings) Begin(node string, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.get(node).pending += by
}

// Pending reports whether Raft may be busy with a request in a node's name from an end
// without proof.
func (s *Standings) Pending(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(node).pending > 0
}

// Silent takes over that a node did not answer.
func (s *Standings) Silent(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.get(node)
	if st.missed++; st.missed >= silentAfter {
		st.canLead = false
	}
}

// known reports whether it is known what a node is: from an answer, or because it
// does not answer.
func (s *Standings) known(node string, now time.Time) bool {
	st := s.of[node]
	return st != nil && (st.missed >= silentAfter || s.fresh(st.answered, now))
}

// fresh reports whether something that was heard then counts still; the zero time is
// that of what was never heard.
func (s *Standings) fresh(at, now time.Time) bool {
	return !at.IsZero() && now.Sub(at) < age*s.unit
}

// Compare takes over whether a node's state at an index is this node's, and reports
// whether that is news.
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

// Proven reports whether a node proved, a moment ago, that it is unsealed.
func (s *Standings) Proven(node string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.provenLocked(node, now)
}

// ProvenSince reports whether a node proved itself after that, and the proof counts.
func (s *Standings) ProvenSince(node string, since, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.provenLocked(node, now) && s.of[node].proof.After(since)
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

// Self is what a node adds to what it knows of others.
type Self struct {
	Node   string
	Fit    bool   // unsealed, and fit to lead
	Last   uint64 // newest index in its log
	Voters []string
}

// alternative finds an unsealed node that is fit to lead, other than that one, and
// reports whether one of them could win an election without its vote.
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

// Judge looks at the present leader, and reports whether it is not followed any
// more from now on.
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

// MayLead reports whether this node follows or votes for a node, whose leader, as
// far as this one knows, is the given one.
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
		return true // judge says when not any more
	case leader == me.Node && me.Fit, leader != "" && s.Proven(leader, now):
		return false
	}
	if !s.allKnown(node, me, now) {
		return false // an unsealed one may be among them
	}
	_, electable := s.alternative(node, me, now)
	return !electable
}

// allKnown reports whether it is known what all other voters but one are.
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

// Counts reports whether a node's votes, and its word that it has stored something,
// count here: always with proof, and without as long as those with proof, and with
// disks that answer, are no majority.
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

// UnsealedOther reports whether a voter other than this node and that one has proof.
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

// Agree reports whether a majority of voters, this one included, had the same state
// as this node at that index or later.
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

// Outvoted reports whether the others' states say that this node's is not the
// cluster's: most voters have another one, or of those that are unsealed at least as
// many as have this one. What a sealed node says of its state counts for the first
// alone, as a thief could say anything.
func (s *Standings) Outvoted(voters int, unsealed bool, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	differ, provenDiffer, provenSame := 0, 0, 1
	for _, st := range s.of {
		if !s.fresh(st.compared, now) {
			continue
		}
		proven := s.fresh(st.proof, now) // also of one that differs
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
