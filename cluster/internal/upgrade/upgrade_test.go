package upgrade

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/level"
)

// TestObstacles: every member counts, and each obstacle names the node and what to do.
func TestObstacles(t *testing.T) {
	now := level.Range{Oldest: 1, Newest: 2}
	self := Member{Node: "a", Release: "0.2.0", Known: now}
	hello := func(release string, newest uint32) *clusterpb.HelloResponse {
		return &clusterpb.HelloResponse{Version: release, SchemaMin: 1, SchemaMax: newest}
	}
	for name, c := range map[string]struct {
		b    *clusterpb.HelloResponse // nil if it does not answer
		as   raft.ServerSuffrage
		want []string
	}{
		"an older voter":          {hello("0.1.0", 1), raft.Voter, []string{"node b runs release 0.1.0, which knows schemas 1 to 1"}},
		"an older read replica":   {hello("0.1.0", 1), raft.Nonvoter, []string{"node b runs release 0.1.0, which knows schemas 1 to 1"}},
		"no answer":               {nil, raft.Voter, []string{"node b did not answer"}},
		"a voter that is sealed":  {hello("0.2.0", 2), raft.Voter, []string{"node b has to be unsealed once with its new release"}},
		"a replica that is ready": {hello("0.2.0", 2), raft.Nonvoter, nil},
		"one that knows nothing":  {hello("", 0), raft.Nonvoter, []string{"node b runs release , which knows schemas 1 to 0"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := Make(t.Context(), Config{
				Self: self, State: fsm.New(fsm.Config{}).Current(), Servers: []raft.Server{{ID: "a", Suffrage: raft.Nonvoter}, {ID: "b", Suffrage: c.as}},
				Ask: func(_ context.Context, node string) (*clusterpb.HelloResponse, error) {
					if c.b == nil || node != "b" {
						return nil, errors.New("no answer")
					}
					return c.b, nil
				},
			})
			if got := p.Obstacles(); p.Level != 1 || p.To != 2 || !slices.Equal(got, c.want) {
				t.Errorf("from %d to %d: %q, want %q", p.Level, p.To, got, c.want)
			}
		})
	}
	p := Make(t.Context(), Config{Self: self, State: fsm.New(fsm.Config{}).Current()})
	if len(p.Obstacles()) != 1 {
		t.Errorf("without members: %q", p.Obstacles())
	}
	self.Known.Newest = 1
	p = Make(t.Context(), Config{Self: self, State: fsm.New(fsm.Config{}).Current(), Servers: []raft.Server{{ID: "a"}}})
	if p.To != 1 || len(p.Obstacles()) != 0 {
		t.Errorf("a release that knows no further level: to %d, %q", p.To, p.Obstacles())
	}
}
