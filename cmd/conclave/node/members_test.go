package node

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/conclavekms/conclave/cluster"
)

// deadTest is a cluster whose members answer or not, at a time that the test sets.
type deadTest struct {
	t       *testing.T
	now     time.Time
	down    map[string]bool
	health  cluster.Health
	leads   bool
	err     error
	removed []string
	d       *deadNodes
}

// newDeadTest returns a cluster with the given number of voters, v1 and so on, and a replica.
func newDeadTest(t *testing.T, voters int) *deadTest {
	f := &deadTest{t: t, now: time.Unix(1_800_000_000, 0), down: make(map[string]bool), leads: true, health: cluster.Health{Index: 1}}
	for i := range voters {
		f.health.Members = append(f.health.Members, standing("v"+string(rune('1'+i)), true))
	}
	f.health.Members = append(f.health.Members, standing("replica", false))
	f.d = &deadNodes{
		after: 72 * time.Hour, now: func() time.Time { return f.now }, may: func() bool { return f.leads }, silent: make(map[string]time.Time),
		look: func(context.Context) cluster.Health {
			h := cluster.Health{Index: 1, Members: slices.Clone(f.health.Members)}
			for i := range h.Members {
				h.Members[i].Answered = !f.down[h.Members[i].Node]
			}
			return h
		},
		remove: func(_ context.Context, node string, silent time.Duration) error {
			if silent < f.d.after {
				t.Errorf("%s was silent for only %v", node, silent)
			}
			if f.err == nil {
				f.health.Members = slices.DeleteFunc(f.health.Members, func(s cluster.Standing) bool { return s.Node == node })
			}
			f.removed = append(f.removed, node)
			return f.err
		},
	}
	return f
}

func standing(node string, voter bool) cluster.Standing {
	return cluster.Standing{Node: node, Voter: voter, Unsealed: true, Fit: true, Configuration: 1}
}

// pass lets time pass, while the node looks as often as it does.
func (f *deadTest) pass(time time.Duration) {
	for range time / deadTick {
		f.now = f.now.Add(deadTick)
		before := len(f.removed)
		_, _ = f.d.step(f.t.Context())
		if len(f.removed) > before+1 {
			f.t.Errorf("several nodes were removed at once: %v", f.removed)
		}
	}
}

func (f *deadTest) want(when string, removed ...string) {
	f.t.Helper()
	if !slices.Equal(f.removed, removed) {
		f.t.Errorf("%s: %v were removed, want %v", when, f.removed, removed)
	}
}

func TestDeadNodesAreRemoved(t *testing.T) {
	f := newDeadTest(t, 5)
	f.pass(time.Hour)
	f.down["v4"], f.down["replica"] = true, true
	f.pass(72 * time.Hour)
	f.want("just before the time")
	f.pass(2 * deadTick)
	f.want("after it", "v4", "replica")
	f.down["v5"] = true
	f.pass(80 * time.Hour)
	f.want("the second one", "v4", "replica", "v5")
	f.down["v3"] = true
	f.pass(200 * time.Hour)
	f.want("with three voters left", "v4", "replica", "v5")
}

// TestDeadNodesThatMayBeAlive: any answer counts, and nothing is known about a time at which
// the node did not look.
func TestDeadNodesThatMayBeAlive(t *testing.T) {
	f := newDeadTest(t, 5)
	f.down["v4"] = true
	f.pass(71 * time.Hour)
	f.down["v4"] = false
	f.pass(deadTick)
	f.down["v4"] = true
	f.pass(71 * time.Hour)
	f.want("it answered once")
	f.now = f.now.Add(100 * time.Hour) // this node was stopped
	f.pass(71 * time.Hour)
	f.want("this node was stopped")
	f.now = f.now.Add(-time.Hour)
	f.pass(71 * time.Hour)
	f.want("the clock went backwards")
	f.leads = false
	f.pass(10 * time.Hour)
	f.want("this node does not lead")
	f.leads = true // it has watched meanwhile
	f.pass(deadTick)
	f.want("it leads", "v4")
}

func TestDeadNodesAreTriedAgain(t *testing.T) {
	f := newDeadTest(t, 5)
	f.down["v4"], f.err = true, errors.New("another change is in progress")
	f.pass(73 * time.Hour)
	if n := len(f.removed); n < 3 || n > 7 { // each attempt is recorded
		t.Errorf("%d attempts in an hour", n)
	}
	f.err, f.removed = nil, nil
	f.pass(deadRetry)
	f.want("afterwards", "v4")
}

func TestRemoveDeadAfterIsLong(t *testing.T) {
	for after, ok := range map[time.Duration]bool{0: true, time.Minute: false, time.Hour: true} {
		c := Config{RemoveDeadAfter: after}
		if bad := strings.Contains(c.Validate().Error(), "remove dead nodes"); bad == ok {
			t.Errorf("%v: %v", after, c.Validate())
		}
	}
}
