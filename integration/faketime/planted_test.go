package faketime

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine"
)

// edited is a node's view of the log that changes the records that it proposes.
type edited struct {
	keyengine.Replica
	edit func(*fsmpb.Record)
}

// Propose implements keyengine.Replica.
func (x edited) Propose(ctx context.Context, r *fsmpb.Record) (fsm.Decision, error) {
	r = proto.CloneOf(r)
	x.edit(r)
	return x.Replica.Propose(ctx, r)
}

func (w *world) edit(f func(*fsmpb.Record)) {
	for _, n := range w.nodes {
		n.replica = func(r keyengine.Replica) keyengine.Replica { return edited{r, f} }
	}
}

// again has what is due proposed a second time, as if it had been decided on what is
// there by then.
func (w *world) again() {
	w.onDue(func(ctx context.Context, n *worldNode, next keyengine.Replica, r *fsmpb.Record) (fsm.Decision, error) {
		d, err := next.Propose(ctx, r)
		if err != nil || d.Verdict != fsm.Accepted {
			return d, err
		}
		if err := next.WaitApplied(ctx, d.Index); err != nil {
			return d, err
		}
		r = proto.CloneOf(r)
		for _, read := range r.Reads {
			read.Version = next.State().VersionOf(read.Kind, read.Id)
		}
		return next.Propose(ctx, r)
	})
}

// TestDueFindsBugs plants bugs that would have things happen early, twice or not
// at all, and makes sure that each shows.
func TestDueFindsBugs(t *testing.T) {
	for _, c := range []struct {
		name  string
		plant func(*world)
		run   func(*estate) time.Time
	}{
		// fsm holds deletion against its date by itself; all else rests on this.
		{"no time from which on", func(w *world) {
			w.edit(func(r *fsmpb.Record) { r.NotBefore = 0 })
		}, func(e *estate) time.Time { return e.turnLeader(time.Hour) }},
		{"decided twice", (*world).again, func(e *estate) time.Time { return e.due }},
		// What nodes with right clocks vouch for without a look is what nodes with the
		// same wrong clock vouch for.
		{"clocks vouched for without a look", nil, func(e *estate) time.Time {
			return e.turnAll(2 * time.Hour)
		}},
		{"uses without a time up to which", func(w *world) {
			// Nobody destroys the material for a while, and a node is behind.
			w.onDue(slowly)
			n := w.nodes[0]
			hooked := n.replica
			n.replica = func(r keyengine.Replica) keyengine.Replica {
				return edited{late{hooked(r), n}, func(r *fsmpb.Record) { r.NotAfter = 0 }}
			}
		}, func(e *estate) time.Time { return e.due }},
		{"what is due is not done", func(w *world) {
			w.onDue(func(context.Context, *worldNode, keyengine.Replica, *fsmpb.Record) (fsm.Decision, error) {
				return fsm.Decision{Verdict: fsm.Conflict}, nil
			})
		}, func(e *estate) time.Time { return e.due }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			// Who leads at the time is chance, and some leaders are replaced before
			// they come to do what is wrong.
			var found error
			for try := 0; try < 3 && found == nil; try++ {
				inTimeWith(t, c.plant, func(w *world) {
					w.planted = true
					e := w.settle()
					e.probe()
					found = e.check(c.run(e))
				})
			}
			if found == nil {
				t.Error("nothing was found")
			}
			t.Logf("%.300v", found)
		})
	}
}

// late is a node that has states two seconds late, and so evaluates on what was.
type late struct {
	keyengine.Replica
	n *worldNode
}

// State implements keyengine.Replica.
func (l late) State() *fsm.State { return l.n.lagging(l.Replica.State()) }

// TestRacingImportsFindsBugs: a key that does not remember the tokens that it took
// takes one again.
func TestRacingImportsFindsBugs(t *testing.T) {
	t.Parallel()
	inTimeWith(t, func(w *world) {
		w.edit(func(r *fsmpb.Record) {
			for _, c := range r.Changes {
				if k := c.GetPutKey(); k != nil {
					k.UsedTokens = nil
				}
			}
		})
	}, func(w *world) {
		err := w.raceImports()
		if err == nil {
			t.Error("nothing was found")
		}
		t.Log(err)
	})
}
