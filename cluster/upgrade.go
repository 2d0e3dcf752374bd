package cluster

import (
	"context"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/cluster/internal/upgrade"
	"github.com/conclavekms/conclave/fsm/wire"
)

// UpgradePlan says which releases the members run, and what raising the feature level
// would do.
type UpgradePlan = upgrade.Plan

// UpgradePlan asks every member which release it runs. After a [Node.Barrier] the plan has
// all members whose addition was committed before it.
func (n *Node) UpgradePlan(ctx context.Context) UpgradePlan {
	s := n.State()
	return upgrade.Make(ctx, upgrade.Config{
		Self:  upgrade.Member{Node: n.cfg.NodeID, Release: n.cfg.Release, Known: n.cfg.Hooks.Known, Level: s.Level()},
		State: s, Servers: n.members.Configuration().Servers,
		Ask: func(ctx context.Context, node string) (*clusterpb.HelloResponse, error) {
			client, err := n.peers.Reach(ctx, node)
			if err != nil {
				return nil, err
			}
			return client.Hello(ctx, &clusterpb.HelloRequest{
				Group: wire.Group, Node: n.cfg.NodeID, SchemaMin: n.cfg.Hooks.Known.Oldest, SchemaMax: n.cfg.Hooks.Known.Newest, Version: n.cfg.Release,
			})
		},
	})
}
