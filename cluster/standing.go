package cluster

import (
	"time"

	"github.com/conclavekms/conclave/cluster/internal/standing"
)

// cutOff refuses another node for a while, because it sent something that no honest node
// sends. The log, the metric and the audit log name the node once in that time.
func (n *Node) cutOff(from standing.Sender, reason string) {
	node := from.Node
	n.metrics.forgeries.WithLabelValues(node).Inc()
	if !n.cutOffs.Add(from, time.Now()) {
		return
	}
	n.log.Error("another node sent what only an unsealed node may send, but is not unsealed: it is refused. Its disk or identity may be stolen",
		"node", node, "reason", reason, "for", standing.CutOffFor)
	if n.cfg.OnForgery != nil {
		n.cfg.OnForgery(node, reason)
	}
}
