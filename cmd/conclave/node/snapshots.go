package node

import (
	"github.com/conclavekms/conclave/cmd/conclave/internal/depot"
	"github.com/conclavekms/conclave/keyengine/backup/scheduled"
)

// defaultKeep is how many scheduled backups are kept if nothing else limits them.
const defaultKeep = 30

// startSnapshots starts to make backups, if the configuration says so. The metrics are there
// in any case.
func (n *Node) startSnapshots() error {
	metrics := scheduled.NewMetrics(n.registry)
	p := n.cfg.Snapshots
	if p.Every == 0 {
		return nil
	}
	if p.Keep == 0 && p.KeepFor == 0 {
		p.Keep = defaultKeep
	}
	store, err := depot.Parse(n.cfg.SnapshotStore)
	if err != nil {
		return err
	}
	n.snapshots = scheduled.New(scheduled.Config{
		Policy: p, Store: store, Cluster: n.cluster, Saver: n.engine.Backups, Sealed: n.engine.Sealed, Log: n.log, Metrics: metrics,
	})
	n.serving.Go(func() { n.snapshots.Run(n.life) })
	return nil
}
