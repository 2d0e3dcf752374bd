package keyengine

import (
	"crypto/rand"
	"fmt"
	"reflect"
	"slices"
	"strconv"
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
	d := ev.draft
	r := &d.record
	if r.Body, r.Generation, d.salt, d.commitment, err = e.vault.sealBody(ev.caller.RequestID, plain); err != nil {
		return nil, fmt.Errorf("record of %s: %w", ev.op.Name, err)
	}
	r.RequestId, r.Commitment, r.Salt = ev.caller.RequestID[:], d.commitment[:], d.salt[:]
	r.Reads, r.NotBefore, r.NotAfter, r.Changes, r.Uses = ev.reads, ev.notBefore, ev.notAfter, ev.changes, ev.uses
	return r, nil
}

// auditRecord is the record in the clear. Nothing gets into it but what is named
// here, the members of the input that are tagged for it, and what the row of the
// operation adds.
func (e *Engine) auditRecord(ev *evaluation) (*auditpb.Record, error) {
	var room struct {
		record     auditpb.Record
		identity   auditpb.Identity
		tls        auditpb.Tls
		salt       [16]byte
		resource   [1]auditpb.Resource
		resources  [1]*auditpb.Resource
		additional [2]*auditpb.Field
	}
	if _, err := rand.Read(room.salt[:]); err != nil {
		return nil, err
	}
	c, caller, rec := ev.cluster(), ev.caller, &room.record
	rec.Schema, rec.Salt, rec.RequestId = auditlog.RecordSchema, room.salt[:], caller.RequestID[:]
	rec.EventTime, rec.EventName, rec.EventType, rec.EventSource = e.clock.Now().UnixNano(), ev.op.Name, eventCall, sourceKMS
	rec.SourceIp, rec.UserAgent, rec.Transport = caller.SourceIP, caller.UserAgent, caller.Transport
	rec.Region, rec.RecipientAccountId, rec.Node = ev.region(), c.Account, e.cfg.NodeID
	rec.RequestParameters, rec.ReadOnly = ev.op.plan.fields(ev.in), ev.op.ReadOnly
	rec.Identity = &room.identity
	fillIdentity(rec.Identity, caller.Identity.principal, caller.Identity.credential)
	if caller.TLS != (TLS{}) {
		rec.Tls = &room.tls
		rec.Tls.Version, rec.Tls.Cipher = caller.TLS.Version, caller.TLS.Cipher
	}
	rec.Resources, rec.Additional = room.resources[:0], room.additional[:0]
	free := room.resource[:]
	for _, r := range ev.resources {
		res := take(&free)
		res.Type, res.AccountId, res.Arn = r.kind, c.Account, r.arn
		rec.Resources = append(rec.Resources, res)
	}
	if ev.op.recordKey != "" && ev.source != nil {
		rec.RequestParameters = replace(rec.RequestParameters, text(ev.op.recordKey, ev.source.arn))
	}
	if len(ev.decisions) > 0 {
		list := make([]string, len(ev.decisions))
		for i, d := range ev.decisions {
			list[i] = d.String()
		}
		rec.Additional = append(rec.Additional, textList("authorization", list))
	}
	for i, m := range ev.materials {
		name := "keyMaterialId"
		if i > 0 {
			name = "destinationKeyMaterialId"
		}
		rec.Additional = append(rec.Additional, text(name, hexOf(m.MaterialId)))
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
			if m.fallback != nil {
				out = append(out, m.fallback) // shared by all records: nobody writes to it
			}
			continue
		}
		out = append(out, m.field(f))
	}
	return out
}

// field shows a member that is there.
func (m *member) field(f reflect.Value) *auditpb.Field {
	switch m.kind {
	case textMember:
		return text(m.name, f.Elem().String())
	case numberMember:
		return number(m.name, int(f.Elem().Int()))
	case flagMember:
		return flag(m.name, f.Elem().Bool())
	case textListMember:
		return textList(m.name, f.Interface().([]string))
	case textMapMember:
		return textMap(m.name, f.Interface().(map[string]string))
	case timeMember:
		return text(m.name, recordTime(*f.Interface().(*time.Time)))
	case structMember:
		return textMap(m.name, m.inner.texts(f.Elem()))
	case structListMember:
		return textList(m.name, m.inner.lines(f))
	}
	return &auditpb.Field{Name: m.name} // blobs are never shown
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
func (m *member) fallbackField(fallback string) *auditpb.Field {
	switch m.kind {
	case flagMember:
		return flag(m.name, fallback == "true")
	case numberMember:
		n, err := strconv.ParseInt(fallback, 10, 32)
		if err != nil {
			return nil
		}
		return number(m.name, int(n))
	default:
		return text(m.name, fallback)
	}
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

// recordTime writes times inside of records as CloudTrail does for KMS.
func recordTime(t time.Time) string { return t.UTC().Format("Jan 2, 2006, 3:04:05 PM") }
