package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// answering is which of these nodes have a disk that answers within wait.
func (n *Node) answering(ctx context.Context, infos map[string]*clusterpb.ClockResponse, wait time.Duration) map[string]*clusterpb.ClockResponse {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var mu sync.Mutex
	var asked sync.WaitGroup
	good := make(map[string]*clusterpb.ClockResponse)
	for id, info := range infos {
		client, err := n.peers.Client(id)
		if err != nil {
			continue
		}
		asked.Go(func() {
			if _, err := client.Probe(ctx, &clusterpb.ProbeRequest{Group: wire.Group}); err == nil {
				mu.Lock()
				defer mu.Unlock()
				good[id] = info
			}
		})
	}
	asked.Wait() // each returns, with ctx at the latest
	return good
}
