package keyengine

import (
	"time"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// refusalPeriod is how often the log and the audit log name a node for its records
// that broke a rule. The metric counts each.
const refusalPeriod = time.Minute

// refused makes known that the state machine refused records: a node that is trusted
// with the keyring made what no such node makes. All nodes that are unsealed record
// it, as the one that it is about may not. It is called from OnApply alone, and does
// not block.
func (e *Engine) refused(list []fsm.Refusal) {
	now := e.clock.Now()
	for _, r := range list {
		e.metrics.refused.WithLabelValues(r.Node).Inc()
		if at, ok := e.refusals[r.Node]; ok && now.Sub(at).Abs() < refusalPeriod {
			continue
		}
		e.refusals[r.Node] = now
		id := record.UUID(iam.RequestID(r.RequestID))
		e.log.Error("an unsealed node proposed a record that breaks a rule, and it is refused: the node has a fault, or is in wrong hands",
			"node", r.Node, "rule", r.Rule, "request_id", id)
		if e.vault.Sealed() {
			continue
		}
		e.events.Pending.Add(record.ServiceEvent("RefuseRecord", now, auditfield.Text("node", r.Node), auditfield.Text("rule", r.Rule), auditfield.Text("requestId", id)))
	}
}
