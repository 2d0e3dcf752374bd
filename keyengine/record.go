package keyengine

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
)

const eventCall = "AwsApiCall"

// newRecord builds the record of an evaluation: what happened, sealed, and what
// has to hold for it to have happened.
func (e *Engine) newRecord(ev *evaluation) (*fsmpb.Record, error) {
	rec, err := e.auditRecord(ev)
	if err != nil {
		return nil, err
	}
	plain, err := auditlog.EncodeRecord(rec)
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w", ev.op.Name, err)
	}
	body, generation, salt, commitment, err := e.vault.sealBody(ev.caller.RequestID, plain)
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w", ev.op.Name, err)
	}
	return &fsmpb.Record{
		RequestId: ev.caller.RequestID[:], Commitment: commitment[:], Body: body, Generation: generation, Salt: salt[:],
		Reads: ev.reads, NotBefore: ev.notBefore, NotAfter: ev.notAfter, Changes: ev.changes, Uses: ev.uses,
	}, nil
}

// auditRecord is the record in the clear. Nothing gets into it but what is named
// here, the members of the input that are tagged for it, and what the row of the
// operation adds.
func (e *Engine) auditRecord(ev *evaluation) (*auditpb.Record, error) {
	salt := make([]byte, 16)
	if _, err := rand.Read(salt); err != nil {
		return nil, err
	}
	c, caller := ev.cluster(), ev.caller
	rec := &auditpb.Record{
		Schema: auditlog.RecordSchema, Salt: salt, RequestId: caller.RequestID[:], EventTime: e.clock.Now().UnixNano(),
		EventName: ev.op.Name, EventType: eventCall, EventSource: sourceKMS,
		Identity: principalIdentity(caller.Identity.principal, caller.Identity.credential),
		SourceIp: caller.SourceIP, UserAgent: caller.UserAgent, Region: ev.region(), Transport: caller.Transport,
		RequestParameters: ev.op.plan.fields(ev.in), ReadOnly: ev.op.ReadOnly, Node: e.cfg.NodeID, RecipientAccountId: c.Account,
	}
	if caller.TLS != (TLS{}) {
		rec.Tls = &auditpb.Tls{Version: caller.TLS.Version, Cipher: caller.TLS.Cipher}
	}
	for _, r := range ev.resources {
		rec.Resources = append(rec.Resources, &auditpb.Resource{Type: r.kind, AccountId: c.Account, Arn: r.arn})
	}
	if ev.op.recordKey != "" && ev.source != nil {
		rec.RequestParameters = replace(rec.RequestParameters, text(ev.op.recordKey, ev.source.arn))
	}
	if len(ev.decisions) > 0 {
		list := &auditpb.TextList{}
		for _, d := range ev.decisions {
			list.Items = append(list.Items, d.String())
		}
		rec.Additional = append(rec.Additional, &auditpb.Field{Name: "authorization", Value: &auditpb.Field_List{List: list}})
	}
	for i, m := range ev.materials {
		name := "keyMaterialId"
		if i > 0 {
			name = "destinationKeyMaterialId"
		}
		rec.Additional = append(rec.Additional, text(name, hex.EncodeToString(m.MaterialId)))
	}
	if ev.attested != nil {
		rec.Additional = append(rec.Additional, attestedField(ev.attested))
	}
	if ev.grantID != "" {
		rec.Additional = append(rec.Additional, text("grantId", ev.grantID))
	}
	if ev.err != nil {
		rec.ErrorCode, rec.ErrorMessage = outcome(ev.err)
	} else if ev.op.respond != nil {
		ev.op.respond(ev.out, rec)
	}
	return rec, nil
}

// fields are the members of an input that a record shows.
func (p *plan) fields(in any) []*auditpb.Field {
	s := reflect.ValueOf(in).Elem()
	out := make([]*auditpb.Field, 0, len(p.members))
	for i := range p.members {
		m := &p.members[i]
		if !m.log {
			continue
		}
		f := s.Field(m.index)
		if f.IsNil() {
			if m.fallback != "" {
				out = append(out, m.fallbackField())
			}
			continue
		}
		field := &auditpb.Field{Name: m.name}
		switch m.kind {
		case textMember:
			field.Value = &auditpb.Field_Text{Text: f.Elem().String()}
		case numberMember:
			field.Value = &auditpb.Field_Number{Number: f.Elem().Int()}
		case flagMember:
			field.Value = &auditpb.Field_Flag{Flag: f.Elem().Bool()}
		case textListMember:
			field.Value = &auditpb.Field_List{List: &auditpb.TextList{Items: f.Interface().([]string)}}
		case textMapMember:
			field.Value = textMap(f.Interface().(map[string]string))
		case timeMember:
			field.Value = &auditpb.Field_Text{Text: recordTime(*f.Interface().(*time.Time))}
		case structMember:
			field.Value = textMap(m.inner.texts(f.Elem()))
		case structListMember:
			field.Value = &auditpb.Field_List{List: &auditpb.TextList{Items: m.inner.lines(f)}}
		}
		out = append(out, field)
	}
	return out
}

// replace puts a field in place of the one of its name, or adds it.
func replace(fields []*auditpb.Field, f *auditpb.Field) []*auditpb.Field {
	i := slices.IndexFunc(fields, func(g *auditpb.Field) bool { return g.Name == f.Name })
	if i < 0 {
		return append(fields, f)
	}
	fields[i] = f
	return fields
}

// fallbackField shows what an absent member means.
func (m *member) fallbackField() *auditpb.Field {
	f := &auditpb.Field{Name: m.name}
	switch m.kind {
	case flagMember:
		f.Value = &auditpb.Field_Flag{Flag: m.fallback == "true"}
	case numberMember:
		f.Value = &auditpb.Field_Number{Number: m.number}
	default:
		f.Value = &auditpb.Field_Text{Text: m.fallback}
	}
	return f
}

// texts shows a structure of texts, flags and maps of texts as one map.
func (p *plan) texts(s reflect.Value) map[string]string {
	out := make(map[string]string)
	for i := range p.members {
		m := &p.members[i]
		f := s.Field(m.index)
		if !m.log || f.IsNil() {
			continue
		}
		switch m.kind {
		case textMember:
			out[m.name] = f.Elem().String()
		case textMapMember:
			for k, v := range f.Interface().(map[string]string) {
				out[m.name+"."+k] = v
			}
		}
	}
	return out
}

// lines shows structures of texts, one line each.
func (p *plan) lines(list reflect.Value) []string {
	lines := make([]string, 0, list.Len())
	for i := range list.Len() {
		var parts []string
		for j := range p.members {
			m := &p.members[j]
			if f := list.Index(i).Field(m.index); m.log && m.kind == textMember && !f.IsNil() {
				parts = append(parts, m.name+"="+f.Elem().String())
			}
		}
		lines = append(lines, strings.Join(parts, " "))
	}
	return lines
}

func textMap(m map[string]string) *auditpb.Field_Map {
	pairs := make([]auditpb.TextPair, len(m))
	list := &auditpb.TextMap{Pairs: make([]*auditpb.TextPair, 0, len(m))}
	for k, v := range m {
		p := &pairs[len(list.Pairs)]
		p.Key, p.Value = k, v
		list.Pairs = append(list.Pairs, p)
	}
	slices.SortFunc(list.Pairs, func(a, b *auditpb.TextPair) int { return strings.Compare(a.Key, b.Key) })
	return &auditpb.Field_Map{Map: list}
}

// recordTime writes times inside of records as CloudTrail does for KMS.
func recordTime(t time.Time) string { return t.UTC().Format("Jan 2, 2006, 3:04:05 PM") }
