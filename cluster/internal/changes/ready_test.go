package changes

import (
	"errors"
	"fmt"
	"testing"
)

// ready is a member that is ready at index 7.
func ready(node string, voter bool) Standing {
	return Standing{Node: node, Voter: voter, Answered: true, Unsealed: true, Fit: true, Configuration: 7}
}

// TestEveryReasonCounts: a node that lacks one thing gets no vote, and does not count.
func TestEveryReasonCounts(t *testing.T) {
	for i, spoil := range []func(s *Standing){
		func(s *Standing) { s.Answered = false },
		func(s *Standing) { s.Unsealed = false },
		func(s *Standing) { s.Fit = false },
		func(s *Standing) { s.Lag = MaxLag + 1 },
		func(s *Standing) { s.AuditMissing = 1 },
		func(s *Standing) { s.Configuration = 6 },
	} {
		s := ready("n", false)
		spoil(&s)
		h := Health{Index: 7, Members: []Standing{ready("a", true), s}}
		if err := h.mayPromote("n"); !errors.Is(err, ErrNotReady) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// TestMajorities: no change leaves fewer ready voters than a majority needs.
func TestMajorities(t *testing.T) {
	for _, v := range []struct {
		voters, ready        int
		promote, removeReady bool
		removeUnready        bool
		tolerance            int
	}{
		{1, 1, true, false, false, 0},
		{2, 2, true, true, false, 0},
		{2, 1, true, false, true, -1},
		{3, 3, true, true, false, 1},
		{3, 2, true, false, true, 0},
		{3, 1, false, false, false, -1},
		{4, 3, true, true, true, 0},
		{4, 2, true, false, true, -1},
		{5, 3, true, false, true, 0},
		{5, 2, false, false, false, -1},
	} {
		h := Health{Index: 7, Members: []Standing{ready("new", false)}}
		for i := range v.voters {
			s := ready(fmt.Sprint("ready", i), true)
			if i >= v.ready {
				s = Standing{Node: fmt.Sprint("down", i), Voter: true}
			}
			h.Members = append(h.Members, s)
		}
		if got := h.mayPromote("new") == nil; got != v.promote {
			t.Errorf("%d of %d ready: another may vote: %v, %v", v.ready, v.voters, got, h.mayPromote("new"))
		}
		if err := h.mayRemove("ready0"); (err == nil) != v.removeReady {
			t.Errorf("%d of %d ready: removing one of these: %v", v.ready, v.voters, err)
		}
		if last := fmt.Sprint("down", v.voters-1); v.ready < v.voters {
			if err := h.mayRemove(last); (err == nil) != v.removeUnready {
				t.Errorf("%d of %d ready: removing one of the others: %v", v.ready, v.voters, err)
			}
		}
		// One that moves counts as down.
		if err := h.mayMove("ready0"); (err == nil) != (v.ready-1 >= v.voters/2+1) {
			t.Errorf("%d of %d ready: moving one of these: %v", v.ready, v.voters, err)
		}
		if last := fmt.Sprint("down", v.voters-1); v.ready < v.voters {
			if err := h.mayMove(last); (err == nil) != (v.ready >= v.voters/2+1) {
				t.Errorf("%d of %d ready: moving one of the others: %v", v.ready, v.voters, err)
			}
		}
		if err := h.mayMove("new"); err != nil {
			t.Errorf("%d of %d ready: moving a node without a vote: %v", v.ready, v.voters, err)
		}
		if got := h.Tolerance(); got != v.tolerance {
			t.Errorf("%d of %d ready: %d may fail, want %d", v.ready, v.voters, got, v.tolerance)
		}
		if err := h.mayRemove("new"); err != nil {
			t.Errorf("%d of %d ready: removing a node without a vote: %v", v.ready, v.voters, err)
		}
	}
}

// TestDeadNodes: without an operator, a voter is removed only if it does not answer, if at least
// three are left, and if a majority of them is ready. What may fail does not become less.
func TestDeadNodes(t *testing.T) {
	for _, v := range []struct {
		voters, ready int
		remove        bool
	}{
		{1, 1, false}, {2, 1, false}, {3, 2, false}, {4, 3, true}, {4, 2, true}, {4, 1, false}, {5, 4, true}, {5, 3, true}, {5, 2, false}, {6, 5, true}, {6, 3, true}, {6, 2, false}, {7, 4, true}, {7, 3, false},
	} {
		h := Health{Index: 7, Members: []Standing{ready("replica", false), {Node: "dead replica"}, {Node: "sealed", Answered: true}}}
		for i := range v.voters {
			s := ready(fmt.Sprint("ready", i), true)
			if i >= v.ready {
				s = Standing{Node: fmt.Sprint("down", i), Voter: true}
			}
			h.Members = append(h.Members, s)
		}
		if v.ready < v.voters {
			last := fmt.Sprint("down", v.voters-1)
			err := h.MayRemoveDead(last)
			if (err == nil) != v.remove {
				t.Errorf("%d of %d ready: removing one of the others: %v", v.ready, v.voters, err)
			}
			if without := (Health{Index: 7, Members: h.Members[:len(h.Members)-1]}); err == nil && (without.Tolerance() < h.Tolerance() || without.Tolerance() < 0) {
				t.Errorf("%d of %d ready: %d may fail, and %d without one of the others", v.ready, v.voters, h.Tolerance(), without.Tolerance())
			}
		}
		for _, node := range []string{"ready0", "replica", "sealed", "nobody"} {
			if err := h.MayRemoveDead(node); !errors.Is(err, ErrRefused) {
				t.Errorf("%d of %d ready: removing %s: %v", v.ready, v.voters, node, err)
			}
		}
		if err := h.MayRemoveDead("dead replica"); err != nil {
			t.Errorf("%d of %d ready: removing a replica: %v", v.ready, v.voters, err)
		}
	}
}
