package changes

import (
	"fmt"
	"strings"
)

// MaxLag is how many entries a node may lack, or not have applied, to count as caught up.
const MaxLag = 512

// Standing is what a member answered when it was asked.
type Standing struct {
	Node     string
	Voter    bool
	Answered bool
	// Unsealed means that the node proved it. The rest counts only if it did: anyone with a
	// copy of the node's files could say it.
	Unsealed bool
	// Fit reports whether the node has a disk that answers and has room.
	Fit bool
	// Lag is how many entries the log or the state of the node lacks.
	Lag uint64
	// AuditMissing is how many audit entries the node lacks.
	AuditMissing uint64
	// Configuration is the index of the newest configuration that the node has; 0 for a
	// release that does not say.
	Configuration uint64
}

// Unready returns why the node could not take part in a majority; empty if it could. index is
// that of the newest configuration.
func (s Standing) Unready(index uint64) string {
	switch {
	case !s.Answered:
		return "it does not answer"
	case !s.Unsealed:
		return "it is sealed"
	case !s.Fit:
		return "its disk is slow or full"
	case s.Lag > MaxLag:
		return fmt.Sprintf("it is %d entries behind", s.Lag)
	case s.AuditMissing > 0:
		return fmt.Sprintf("it lacks %d audit records", s.AuditMissing)
	case s.Configuration < index:
		return "it does not have the newest configuration yet"
	}
	return ""
}

// Health is what all members answered.
type Health struct {
	// Index is that of the newest configuration of the node that asked.
	Index   uint64
	Members []Standing
}

// Of returns the standing of a member.
func (h Health) Of(node string) (s Standing, ok bool) {
	for _, s := range h.Members {
		if s.Node == node {
			return s, true
		}
	}
	return Standing{}, false
}

// Voters returns how many voters there are, and how many of them are ready.
func (h Health) Voters() (all, ready int) {
	for _, s := range h.Members {
		if s.Voter {
			all++
			if s.Unready(h.Index) == "" {
				ready++
			}
		}
	}
	return all, ready
}

// Tolerance returns how many of the voters that are ready may fail before there is no
// majority; below 0 if there is none already.
func (h Health) Tolerance() int {
	all, ready := h.Voters()
	return ready - (all/2 + 1)
}

// mayPromote returns an error if the node must not become a voter now. It must be ready
// itself, and the ready voters, it included, must be a majority of the voters with it.
func (h Health) mayPromote(node string) error {
	s, ok := h.Of(node)
	if !ok {
		return fmt.Errorf("%w: %s is not a member", ErrRefused, node)
	}
	if why := s.Unready(h.Index); why != "" {
		return fmt.Errorf("%w: %s is not ready: %s", ErrNotReady, node, why)
	}
	all, ready := h.Voters()
	return h.enough(all+1, ready+1, "with "+node)
}

// mayRemove returns an error if the voters that remain would have no ready majority.
func (h Health) mayRemove(node string) error {
	s, ok := h.Of(node)
	if !ok || !s.Voter {
		return nil
	}
	all, ready := h.Voters()
	if all == 1 {
		return fmt.Errorf("%w: %s is the only voter", ErrRefused, node)
	}
	if s.Unready(h.Index) == "" {
		ready--
	}
	return h.enough(all-1, ready, "without "+node)
}

// minVoters is how many voters are left at least when nobody decides about it.
const minVoters = 3

// MayRemoveDead returns an error if a node must not be removed without somebody who decides
// it. It must not answer, and if it votes, as many of the others must be able to fail afterwards
// as before, and enough of them must be left.
func (h Health) MayRemoveDead(node string) error {
	s, ok := h.Of(node)
	switch {
	case !ok:
		return fmt.Errorf("%w: %s is not a member", ErrRefused, node)
	case s.Answered:
		return fmt.Errorf("%w: %s answers", ErrRefused, node)
	case !s.Voter:
		return nil
	}
	all, ready := h.Voters()
	if all-1 < minVoters {
		return fmt.Errorf("%w: without %s there would be %d voters, and at least %d are left unless an operator decides otherwise", ErrNotReady, node, all-1, minVoters)
	}
	return h.enough(all-1, ready, "without "+node) // it is not one of those that are ready
}

// mayMove returns an error if the voters would have no ready majority while the node is not
// reached at its new address.
func (h Health) mayMove(node string) error {
	s, ok := h.Of(node)
	if !ok || !s.Voter {
		return nil
	}
	all, ready := h.Voters()
	if s.Unready(h.Index) == "" {
		ready--
	}
	return h.enough(all, ready, "until "+node+" is reached at its new address")
}

// enough returns an error if too few of the voters would be ready.
func (h Health) enough(all, ready int, when string) error {
	if need := all/2 + 1; ready < need {
		return fmt.Errorf("%w: %s there would be %d voters, of which %d must be ready and %d are%s", ErrNotReady, when, all, need, ready, h.reasons())
	}
	return nil
}

// reasons says why voters are not ready.
func (h Health) reasons() string {
	var list []string
	for _, s := range h.Members {
		if why := s.Unready(h.Index); s.Voter && why != "" {
			list = append(list, s.Node+": "+why)
		}
	}
	if len(list) == 0 {
		return ""
	}
	return " (" + strings.Join(list, "; ") + ")"
}
