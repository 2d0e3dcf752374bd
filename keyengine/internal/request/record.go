package request

import (
	"encoding/hex"
	"slices"

	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/policy"
)

// newRecord builds the record of an evaluation.
func (ev *Attempt) newRecord() (*fsmpb.Record, error) {
	o, err := ev.Vault.Current()
	if err != nil {
		return nil, err
	}
	var e record.Event
	ev.describe(&e)
	return record.Build(o, ev.NodeID, ev.Clock.Now(), ev.Cluster(), ev.State.Level(), &e)
}

// describe sets e to the outcome of an evaluation. The audit record has only what is set
// here: of the input, the members that are tagged for it, and of the output, what the
// operation's row adds.
func (ev *Attempt) describe(e *record.Event) {
	// This is one allocation, with room for what most records have.
	var b struct {
		identity   auditpb.Identity
		tls        auditpb.Tls
		resource   [1]auditpb.Resource
		resources  [1]*auditpb.Resource
		additional [2]*auditpb.Field
	}
	c, caller := ev.Cluster(), ev.Caller
	e.Name, e.Kind, e.Region, e.RequestID = ev.Op.Name, record.KindCall, ev.Region(), caller.RequestID
	e.Service, e.Account = string(ev.Op.Service), ev.Principal().Account
	e.SourceIP, e.UserAgent, e.Transport, e.Err = caller.SourceIP, caller.UserAgent, caller.Transport, ev.Err
	e.Parameters, e.ReadOnly = ev.Op.recorded.Fields(ev.Input), ev.Op.ReadOnly
	e.Reads, e.NotBefore, e.NotAfter, e.Changes, e.Uses = ev.Reads, ev.NotBefore, ev.NotAfter, ev.Changes, ev.allUses()
	e.Identity = &b.identity
	ev.who.Record(e.Identity, caller.Identity.Credential())
	if caller.TLS != (iam.TLS{}) {
		e.TLS = &b.tls
		caller.TLS.Fill(e.TLS)
	}
	e.Resources, e.Additional = b.resources[:0], b.additional[:0]
	free := b.resource[:]
	for _, r := range ev.resources {
		res := take(&free)
		res.Type, res.AccountId, res.Arn = r.kind, accountIn(r.ARN, c.Account), r.ARN
		e.Resources = append(e.Resources, res)
	}
	if ev.Op.RecordKey != "" && ev.Source != nil {
		e.Parameters = replace(e.Parameters, auditfield.Text(ev.Op.RecordKey, ev.Source.ARN))
	}
	ev.additional(e)
	if ev.Err == nil && ev.Op.respond != nil {
		e.Response = ev.Op.respond(ev.Out, e.Resources)
	}
}

// additional adds what CloudTrail's members have no place for.
func (ev *Attempt) additional(e *record.Event) {
	add := func(f *auditpb.Field) { e.Additional = append(e.Additional, f) }
	if len(ev.decisions) > 0 {
		list := make([]string, len(ev.decisions))
		for i, d := range ev.decisions {
			list[i] = d.String()
		}
		add(auditfield.TextList("authorization", list))
	}
	for i, m := range ev.materials {
		name := "keyMaterialId"
		if i > 0 {
			name = "destinationKeyMaterialId"
		}
		add(auditfield.Text(name, hexOf(m.MaterialId)))
	}
	if ev.Recipient != nil {
		add(ev.Recipient)
	}
	if ev.Caller.SourceArn != "" {
		add(auditfield.Text("sourceArn", ev.Caller.SourceArn))
	}
	if ev.GrantID != "" {
		add(auditfield.Text("grantId", ev.GrantID))
	}
}

// replace replaces the field with the same name, or appends f.
func replace(fields []*auditpb.Field, f *auditpb.Field) []*auditpb.Field {
	i := slices.IndexFunc(fields, func(g *auditpb.Field) bool { return g.Name == f.Name })
	if i < 0 {
		return append(fields, f)
	}
	fields[i] = f
	return fields
}

// hexOf is hex.EncodeToString for up to 32 bytes, with a single allocation.
func hexOf(id []byte) string {
	var b [64]byte
	return string(hex.AppendEncode(b[:0], id))
}

// accountIn returns the account in an ARN, or another one if it has none.
func accountIn(arn, other string) string {
	if a, err := policy.ParseARN(arn); err == nil && a.Account != "" {
		return a.Account
	}
	return other
}
