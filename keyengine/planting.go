package keyengine

import (
	"context"
	"errors"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
)

// ErrNoSeeds: this engine plants nothing.
var ErrNoSeeds = errors.New("keys with known material are for development only")

// Plant makes a key as a seed has it, unless there is one of that id, which stays
// as it is. It reports whether it made one. Only an engine whose configuration
// says so does it: whoever chooses a key's material knows it.
func (e *Engine) Plant(ctx context.Context, op Operator, s Seed) (bool, error) {
	defer clear(s.Material)
	if !e.cfg.Seeds {
		return false, ErrNoSeeds
	}
	ev := &eval{ctx: ctx, Services: e.services, state: e.replica.State()}
	if c, _ := ev.state.Cluster(); c == nil {
		return false, errNotInitialised
	}
	t, err := plantKey(ev, &s)
	if err != nil || t == nil {
		return false, err
	}
	event := op.event("PlantKey", ev.cluster())
	event.region = t.id.Region
	event.parameters = []*auditpb.Field{auditfield.Text("keyId", t.arn), auditfield.Text("keySpec", t.key.Spec), auditfield.Text("keyUsage", t.key.Usage)}
	event.resources = []*auditpb.Resource{{Type: "AWS::KMS::Key", AccountId: ev.cluster().Account, Arn: t.arn}}
	event.reads, event.changes = ev.reads, ev.changes
	d, err := e.events.commit(ctx, event)
	return err == nil, accepted(event.name, d, err)
}
