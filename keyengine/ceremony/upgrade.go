package ceremony

import (
	"context"
	"fmt"
	"strings"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// FinalizeUpgrade raises the cluster's feature level, after which the release before cannot
// take part any more. ask asks all members which releases they run, and returns the level
// that this release can raise to, and what keeps it from that. FinalizeUpgrade returns the
// level and whether it has raised it: it may be called again at any time, for example if the
// outcome of a call is not known. A refusal is recorded like a success.
func (r *Ceremonies) FinalizeUpgrade(ctx context.Context, op Operator, ask func(context.Context) (to uint32, obstacles []string)) (level uint32, raised bool, err error) {
	c, _ := r.cfg.Replica.State().Cluster()
	if c == nil {
		return 0, false, errNotInitialised
	}
	if _, err := r.cfg.Vault.Current(); err != nil {
		return 0, false, err // before the members are asked
	}
	// The barrier also makes this node know all members that were added before.
	s, err := r.cfg.Fresh(ctx)
	if err != nil {
		return 0, false, err
	}
	to, obstacles := ask(ctx)
	if to <= s.Level() {
		return s.Level(), false, nil
	}
	ev := op.Event("FinalizeUpgrade", c)
	ev.Parameters = []*auditpb.Field{auditfield.Text("fromLevel", fmt.Sprint(s.Level())), auditfield.Text("toLevel", fmt.Sprint(to))}
	if len(obstacles) > 0 {
		refused := kmsapi.Errorf(ErrNotUpgraded, "The feature level stays %d: %s.", s.Level(), strings.Join(obstacles, "; "))
		ev.Err = refused
		if _, err := r.cfg.Events.Record(ctx, ev); err != nil {
			return 0, false, err
		}
		return 0, false, refused
	}
	ev.Changes = []*fsmpb.Change{{Change: &fsmpb.Change_RaiseLevel{RaiseLevel: &fsmpb.RaiseLevel{Level: to}}}}
	d, err := r.cfg.Events.Propose(ctx, ev)
	if err != nil {
		return 0, false, err
	}
	if err := r.cfg.Replica.WaitApplied(ctx, d.Index); err != nil {
		return 0, false, err
	}
	if d.Verdict != fsm.Accepted {
		return 0, false, kmsapi.Errorf(ErrNotUpgraded, "The feature level stays %d: a node registered another release meanwhile. Try again.", s.Level())
	}
	r.cfg.Log.Info("the feature level was raised", "operator", op.Name, "level", to)
	return to, true, nil
}
