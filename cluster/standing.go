package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm"
)

// A node that is sealed cannot be told from a thief with its identity. It may vote
// and lead while no unsealed node can: somebody has to, for the log to be complete
// when the first one is unsealed. It hands over then, which a thief does not. So
// every node asks every other one for proof that it is unsealed, again and again,
// and follows none that has no proof while one that has it could lead.
//
// All below count in heartbeat timeouts, 500 ms by default.
const (
	// standingEvery is how often a node asks the others.
	standingEvery = 2
	// standingAge is how long a proof, or any answer, counts: for some lost answers, or
	// a machine that is very busy would follow anybody.
	standingAge = 20
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

// standings are those of the other voters, and what this node makes of its leader.
type standings struct {
	unit time.Duration // a heartbeat timeout

	mu sync.Mutex
	of map[string]*standing
	// leader has had no proof since then, with one there that has.
	leader string
	since  time.Time
	// refused are the leaders that did not yield, until when.
	refused map[string]time.Time
}

func newStandings(unit time.Duration) *standings {
	return &standings{unit: unit, of: make(map[string]*standing), refused: make(map[string]time.Time)}
}

func (s *standings) get(node string) *standing {
	st := s.of[node]
	if st == nil {
		st = &standing{}
		s.of[node] = st
	}
	return st
}

// take takes over a node's answer.
func (s *standings) take(node string, r *clusterpb.ClockResponse, proven bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.get(node)
	st.answered, st.missed, st.canLead, st.last = now, 0, r.CanLead, r.LastIndex
	if proven {
		st.proof = now
	}
}

// forget takes back a node's proof.
func (s *standings) forget(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.get(node).proof = time.Time{}
}

// prove takes over that a node proved itself over a connection.
func (s *standings) prove(node string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.get(node).proof = now
}

// asking has a node asked something, unless it was a moment ago. While it is being asked
// other callers wait for that.
func (s *standings) asking(node string, ask func()) {
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
func (s *standings) asked(st *standing) bool { return time.Since(st.asked) < s.unit }

// unasked reports whether asking would ask a node now.
func (s *standings) unasked(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.get(node)
	return st.asking == nil && !s.asked(st)
}

// pend counts requests in a node's name, from ends without proof, that Raft has not
// answered.
func (s *standings) pend(node string, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.get(node).pending += by
}

// pending reports whether Raft may be busy with a request in a node's name from an end
// without proof.
func (s *standings) pending(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.get(node).pending > 0
}

// silent takes over that a node did not answer.
func (s *standings) silent(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.get(node)
	if st.missed++; st.missed >= silentAfter {
		st.canLead = false
	}
}

// known reports whether it is known what a node is: from an answer, or because it
// does not answer.
func (s *standings) known(node string, now time.Time) bool {
	st := s.of[node]
	return st != nil && (st.missed >= silentAfter || s.fresh(st.answered, now))
}

// fresh reports whether something that was heard then counts still; the zero time is
// that of what was never heard.
func (s *standings) fresh(at, now time.Time) bool {
	return !at.IsZero() && now.Sub(at) < standingAge*s.unit
}

// compare takes over whether a node's state at an index is this node's, and reports
// whether that is news.
func (s *standings) compare(node string, index uint64, same bool, now time.Time) (changed bool) {
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

// proven reports whether a node proved, a moment ago, that it is unsealed.
func (s *standings) proven(node string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.provenLocked(node, now)
}

// provenSince reports whether a node proved itself after that, and the proof counts.
func (s *standings) provenSince(node string, since, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.provenLocked(node, now) && s.of[node].proof.After(since)
}

func (s *standings) provenLocked(node string, now time.Time) bool {
	st := s.of[node]
	return st != nil && !st.differs && s.fresh(st.proof, now)
}

// fit reports whether a voter, which may be this node, is unsealed and fit to lead.
func (s *standings) fit(node string, me self, now time.Time) bool {
	if node == me.node {
		return me.fit
	}
	return s.provenLocked(node, now) && s.of[node].canLead
}

// mayDepose reports whether a node without proof may make this one step down now.
func (s *standings) mayDepose(node string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.get(node)
	if !st.deposed.IsZero() && now.Sub(st.deposed) < deposeEvery {
		return false
	}
	st.deposed = now
	return true
}

// self is what a node adds to what it knows of others.
type self struct {
	node   string
	fit    bool // unsealed, and fit to lead
	last   uint64
	voters []string
}

// alternative finds an unsealed node that is fit to lead, other than that one, and
// reports whether one of them could win an election without its vote.
func (s *standings) alternative(but string, me self, now time.Time) (exists, electable bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := map[string]uint64{me.node: me.last}
	for node, st := range s.of {
		if s.fresh(st.answered, now) {
			last[node] = st.last
		}
	}
	for _, node := range me.voters {
		if node == but || !s.fit(node, me, now) {
			continue
		}
		exists = true
		votes := 0
		for _, v := range me.voters {
			if l, ok := last[v]; ok && v != but && l <= last[node] {
				votes++
			}
		}
		electable = electable || votes > len(me.voters)/2
	}
	return exists, electable
}

// judge looks at the present leader, and reports whether it is not followed any
// more from now on.
func (s *standings) judge(leader string, me self, now time.Time) bool {
	proven := leader == "" || leader == me.node || s.proven(leader, now)
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

// mayLead reports whether this node follows or votes for a node, whose leader, as
// far as this one knows, is the given one.
func (s *standings) mayLead(node, leader string, me self, now time.Time) bool {
	if s.proven(node, now) {
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
	case leader == me.node && me.fit, leader != "" && s.proven(leader, now):
		return false
	}
	if !s.allKnown(node, me, now) {
		return false // an unsealed one may be among them
	}
	_, electable := s.alternative(node, me, now)
	return !electable
}

// allKnown reports whether it is known what all other voters but one are.
func (s *standings) allKnown(but string, me self, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range me.voters {
		if v != but && v != me.node && !s.known(v, now) {
			return false
		}
	}
	return true
}

// counts reports whether a node's votes, and its word that it has stored something,
// count here: always with proof, and without as long as those with proof, and with
// disks that answer, are no majority.
func (s *standings) counts(node string, me self, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.provenLocked(node, now) {
		return true
	}
	fit := 0
	for _, v := range me.voters {
		if s.fit(v, me, now) {
			fit++
		}
	}
	return fit <= len(me.voters)/2
}

// unsealedOther reports whether a voter other than this node and that one has proof.
func (s *standings) unsealedOther(but string, me self, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range me.voters {
		if v != but && v != me.node && s.provenLocked(v, now) {
			return true
		}
	}
	return false
}

// agree reports whether a majority of voters, this one included, had the same state
// as this node at that index or later.
func (s *standings) agree(index uint64, voters int) bool {
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

// outvoted reports whether the others' states say that this node's is not the
// cluster's: most voters have another one, or of those that are unsealed at least as
// many as have this one. What a sealed node says of its state counts for the first
// alone, as a thief could say anything.
func (s *standings) outvoted(voters int, unsealed bool, now time.Time) bool {
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

// self is this node's part in its judgement of others.
func (n *Node) self() self {
	me := self{node: n.cfg.NodeID, fit: n.unsealed() && n.canLead(), voters: n.voters()}
	if r := n.raft.Load(); r != nil {
		me.last = r.LastIndex()
	}
	return me
}

var errUnproven = errors.New("not known to be unsealed, while a node that is could lead")

// mayLead refuses to follow or to vote for a node without proof.
func (n *Node) mayLead(from string) error {
	if !n.founded() || n.standings.proven(from, time.Now()) {
		return nil
	}
	leader, _ := n.Leader()
	if n.standings.mayLead(from, leader, n.self(), time.Now()) {
		return nil
	}
	n.metrics.unproven.WithLabelValues(from).Inc()
	return fmt.Errorf("%s is %w", from, errUnproven)
}

// watchStandings asks the other voters while this node does not lead; a leader asks
// them for its own needs more often than that.
func (n *Node) watchStandings() {
	every := standingEvery * n.cfg.Timeouts.Heartbeat
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		n.lookAtStandings(every)
		select {
		case <-tick.C:
		case <-n.ctx.Done():
			return
		}
	}
}

// lookAtStandings asks the others once, for as long as wait, and judges the leader.
func (n *Node) lookAtStandings(wait time.Duration) {
	if n.faulted.Load() != nil {
		return
	}
	leader, _ := n.Leader()
	if leader != n.cfg.NodeID {
		ctx, cancel := context.WithTimeout(n.ctx, wait)
		defer cancel()
		n.askVoters(ctx)
	}
	if n.founded() && n.standings.judge(leader, n.self(), time.Now()) {
		n.log.Warn("the leader does not prove that it is unsealed, and another node that is could lead: it is not followed any more. "+
			"If it does not step aside, its identity may be stolen", "leader", leader)
	}
}

// compareStates compares this node's state with another's, which says to have that
// hash at that index. The other one may be ahead by a moment.
func (n *Node) compareStates(ctx context.Context, node string, index uint64, hash []byte) {
	if !n.founded() || index == 0 || len(hash) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeouts.Heartbeat)
	defer cancel()
	if n.WaitApplied(ctx, index) != nil {
		return
	}
	s := n.machine.fsm.StateAt(index)
	if s == nil {
		return
	}
	own := s.Hash()
	same := bytes.Equal(own[:], hash)
	if n.standings.compare(node, index, same, time.Now()) {
		if same {
			n.log.Info("another node's state is this node's again", "node", node, "index", index)
		} else {
			n.log.Error("another node's state differs from this node's", "node", node, "index", index)
		}
	}
	if !same && n.standings.outvoted(len(n.voters()), n.unsealed(), time.Now()) {
		n.fault(fmt.Errorf("%w: at Raft index %d, like most nodes that can tell", fsm.ErrDiverged, index))
	}
}
