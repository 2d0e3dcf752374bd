package keyengine

import (
	"cmp"
	"context"
	"errors"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/ceremony"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/ops"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// ErrNoSeeds is returned by Plant unless Config.Seeds is set.
var ErrNoSeeds = errors.New("keys with known material are for development only")

// errNothing ends a commit when the key exists already.
var errNothing = errors.New("there is nothing to be changed")

// Plant creates the key that a seed describes and reports whether it did. An existing key
// with the same id is left alone. Plant is for development only: it needs Config.Seeds,
// since the material of a planted key is known to the person who chose it.
func (e *Engine) Plant(ctx context.Context, op ceremony.Operator, s ops.Seed) (bool, error) {
	defer clear(s.Material)
	if !e.cfg.Seeds {
		return false, ErrNoSeeds
	}
	_, err := e.events.CommitEvent(ctx, func(state *fsm.State) (event record.Event, err error) {
		ev := &request.Evaluation{Ctx: ctx, Services: e.services, State: state}
		if ev.Cluster() == nil {
			return event, kmsapi.Errorf(ceremony.ErrNotInitialised, "The cluster is not initialised.")
		}
		t, err := ops.PlantKey(ev, &s)
		if err != nil || t == nil {
			return event, cmp.Or(err, errNothing)
		}
		event = op.Event("PlantKey", ev.Cluster())
		event.Region = t.ID.Region
		event.Parameters = []*auditpb.Field{auditfield.Text("keyId", t.ARN), auditfield.Text("keySpec", t.Key.Spec), auditfield.Text("keyUsage", t.Key.Usage)}
		event.Resources = []*auditpb.Resource{{Type: "AWS::KMS::Key", AccountId: ev.Cluster().Account, Arn: t.ARN}}
		event.Reads, event.Changes = ev.Reads, ev.Changes
		return event, nil
	})
	if err == errNothing {
		return false, nil
	}
	return err == nil, err
}
