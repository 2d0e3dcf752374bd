package ceremony

import (
	"context"
	"time"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

// MembersChange describes a change of the cluster's members, or of its leader, that an
// operator requests.
type MembersChange struct {
	// Name is the name of the call.
	Name string
	// Node is the node that is concerned, if one is named, and Address its new address.
	Node, Address string
}

// ChangeMembers records that an operator requests a change, makes it, and records the outcome
// before it returns. Nothing is done if the request cannot be recorded. If only the outcome
// cannot be, it is recorded later.
func (r *Ceremonies) ChangeMembers(ctx context.Context, op Operator, m MembersChange, change func(context.Context) error) error {
	c, _ := r.cfg.Replica.State().Cluster()
	if c == nil {
		return errNotInitialised
	}
	return r.recorded(ctx, op.Event(m.Name, c), m.fields(), change)
}

// RemoveDeadNode is ChangeMembers for a node that the leader removes by itself, after it was
// silent for that time.
func (r *Ceremonies) RemoveDeadNode(ctx context.Context, node string, silent time.Duration, change func(context.Context) error) error {
	ev := record.ServiceEvent("RemoveDeadNode", r.cfg.Clock.Now())
	ev.Kind = record.KindOperator
	return r.recorded(ctx, ev, append(MembersChange{Node: node}.fields(), auditfield.Number("silentSeconds", int(silent/time.Second))), change)
}

func (m MembersChange) fields() []*auditpb.Field {
	fields := []*auditpb.Field{auditfield.Text("nodeId", m.Node)}
	if m.Address != "" {
		fields = append(fields, auditfield.Text("peerAddress", m.Address))
	}
	return fields
}

// recorded makes a change between its two records.
func (r *Ceremonies) recorded(ctx context.Context, event record.Event, fields []*auditpb.Field, change func(context.Context) error) error {
	begun := event
	begun.Parameters = append([]*auditpb.Field{auditfield.Text("phase", "begin")}, fields...)
	if _, err := r.cfg.Events.Record(ctx, begun); err != nil {
		return err
	}
	ended := event
	ended.Err = change(ctx)
	// The second record of one request needs an id of its own.
	ended.RequestID, ended.At = [16]byte{}, r.cfg.Clock.Now()
	ended.Parameters = append([]*auditpb.Field{auditfield.Text("phase", "end")}, fields...)
	r.cfg.Events.Pending.Add(ended)
	r.cfg.Events.RecordPendingWithin(ctx, sealPatience/2)
	return ended.Err
}
