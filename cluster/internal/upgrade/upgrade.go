// Package upgrade finds out which releases the nodes of a cluster run, and whether the
// cluster's feature level can be raised.
//
// Every member is asked itself, as only that shows what it runs now: gossip and what nodes
// registered may be older. What they registered counts too, since apply goes by it.
package upgrade

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/level"
)

// askTimeout bounds one question, including the attempt to connect.
const askTimeout = 5 * time.Second

// Member is what a member of the cluster says about its release.
type Member struct {
	Node  string
	Voter bool
	// Release is the release that it runs, and Known are the schemas that this release
	// knows. They are empty if it did not answer, for which Err is the reason.
	Release string
	Known   level.Range
	Err     error
	// Level is the feature level that it has applied.
	Level uint32
	// Registered are the schemas that it registered when it was last unsealed; empty if it
	// never was.
	Registered level.Range
}

// Plan says what raising the level would do.
type Plan struct {
	// Level is the level of the cluster, and To the one that this node's release can raise
	// it to. They are the same if there is nothing to do.
	Level, To uint32
	Members   []Member
}

// Config says how a Plan is made.
type Config struct {
	Self  Member // this node, without what it registered
	State *fsm.State
	// Servers are all members, and Ask asks one of the others.
	Servers []raft.Server
	Ask     func(ctx context.Context, node string) (*clusterpb.HelloResponse, error)
}

// Make asks all members and returns the plan. It takes as long as the slowest of them.
func Make(ctx context.Context, c Config) Plan {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	p := Plan{Level: c.State.Level(), Members: make([]Member, len(c.Servers))}
	p.To = max(p.Level, c.Self.Known.Newest)
	var all sync.WaitGroup
	for i, s := range c.Servers {
		all.Go(func() {
			m := Member{Node: string(s.ID)}
			if m.Node == c.Self.Node {
				m = c.Self
			} else if r, err := c.Ask(ctx, m.Node); err != nil {
				m.Err = err
			} else {
				m.Release, m.Level = r.Version, max(r.Level, level.Oldest) // the release before 0.2 does not say its level
				m.Known = level.Range{Oldest: r.SchemaMin, Newest: r.SchemaMax}
			}
			m.Voter = s.Suffrage == raft.Voter
			if r, _ := c.State.Node(m.Node); r != nil {
				m.Registered = level.RangeOf(r)
			}
			p.Members[i] = m
		})
	}
	all.Wait()
	return p
}

// Obstacle says why this member keeps the level from being raised; "" if it does not.
func (p *Plan) Obstacle(m Member) string {
	switch {
	case p.To == p.Level:
		return ""
	case m.Err != nil:
		return fmt.Sprintf("node %s did not answer", m.Node)
	case !m.Known.Has(p.To):
		return fmt.Sprintf("node %s runs release %s, which knows %v", m.Node, m.Release, m.Known)
	case m.Voter && !m.Registered.Has(p.To):
		return fmt.Sprintf("node %s has to be unsealed once with its new release", m.Node)
	}
	return ""
}

// Obstacles returns what keeps the level from being raised.
func (p *Plan) Obstacles() (list []string) {
	for _, m := range p.Members {
		if o := p.Obstacle(m); o != "" {
			list = append(list, o)
		}
	}
	if len(p.Members) == 0 {
		list = append(list, "this node knows no members yet")
	}
	return list
}
