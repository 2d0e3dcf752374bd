package keyengine

import (
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// refusalPeriod is the minimum interval between two reports about the same node in the log
// and the audit log. The metric counts every record.
const refusalPeriod = time.Minute

// refused reports records that the state machine refused because they violate a rule. Such
// a record comes from a node that has the keyring and has a bug or was taken over. Every
// unsealed node records it, as the node concerned may not. refused is called by OnApply
// only, and does not block.
func (e *Engine) refused(list []fsm.Refusal) {
	now := e.clock.Now()
	for _, r := range list {
		e.metrics.refused.WithLabelValues(r.Node).Inc()
		if at, ok := e.refusals[r.Node]; ok && now.Sub(at).Abs() < refusalPeriod {
			continue
		}
		e.refusals[r.Node] = now
		id := record.UUID(iam.RequestID(r.RequestID))
		e.log.Error("refused a record that breaks a rule: the unsealed node that proposed it has a bug or was taken over",
			"node", r.Node, "rule", r.Rule, "request_id", id)
		if e.vault.Sealed() {
			continue
		}
		e.events.Pending.Add(record.ServiceEvent("RefuseRecord", now, auditfield.Text("node", r.Node), auditfield.Text("rule", r.Rule), auditfield.Text("requestId", id)))
	}
}
