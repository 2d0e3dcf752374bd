package node

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/conclavekms/conclave/cluster/diskspace"
	"github.com/conclavekms/conclave/transport"
)

func (n *Node) health() transport.Health {
	st := n.engine.SealStatus()
	leader, _ := n.cluster.Leader()
	space := n.cluster.Space()
	return transport.Health{
		Initialised: st.Initialised, Sealed: st.Sealed || n.Err() != nil,
		Leader: n.cluster.IsLeader(), InContact: leader != "",
		DiskFull: space >= diskspace.Full, Disk: space.String(),
	}
}

// State returns the state that the node reports on /healthz: active, standby, sealed,
// uninitialised, no leader or disk full.
func (n *Node) State() string { return n.health().State() }

// opsHandler serves metrics and health, without authentication. They reveal
// only states and numbers.
func (n *Node) opsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.registry, promhttp.HandlerOpts{}))
	return transport.HealthHandler(n.health, mux)
}
