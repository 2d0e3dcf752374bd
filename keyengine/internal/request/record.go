package request

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
)

const kindCall = "AwsApiCall"

// newRecord builds the record of an evaluation: the encrypted audit record, the read set,
// the time limits and the changes.
func (ev *Attempt) newRecord() (*fsmpb.Record, error) {
	rec, err := ev.auditRecord()
	if err != nil {
		return nil, err
	}
	plain, err := auditlog.EncodeRecord(rec)
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w", ev.Op.Name, err)
	}
	d := ev.draft
	r := &d.record
	if r.Body, r.Generation, d.salt, d.commitment, err = ev.Vault.SealBody(ev.Caller.RequestID, plain); err != nil {
		return nil, fmt.Errorf("record of %s: %w", ev.Op.Name, err)
	}
	r.RequestId, r.Commitment, r.Salt = ev.Caller.RequestID[:], d.commitment[:], d.salt[:]
	r.Reads, r.NotBefore, r.NotAfter, r.Changes, r.Uses = ev.Reads, ev.NotBefore, ev.NotAfter, ev.Changes, ev.uses
	return r, nil
}

// auditRecord builds the audit record in the clear. It contains only the fields set here,
// the members of the input that are tagged for it, and what the operation's row adds.
func (ev *Attempt) auditRecord() (*auditpb.Record, error) {
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
	c, caller, rec := ev.Cluster(), ev.Caller, &room.record
	rec.Schema, rec.Salt, rec.RequestId = auditlog.RecordSchema, room.salt[:], caller.RequestID[:]
	rec.EventTime, rec.EventName, rec.EventType, rec.EventSource = ev.Clock.Now().UnixNano(), ev.Op.Name, kindCall, record.SourceKMS
	rec.SourceIp, rec.UserAgent, rec.Transport = caller.SourceIP, caller.UserAgent, caller.Transport
	rec.Region, rec.RecipientAccountId, rec.Node = ev.Region(), c.Account, ev.NodeID
	rec.RequestParameters, rec.ReadOnly = ev.Op.recorded.Fields(ev.in), ev.Op.ReadOnly
	rec.Identity = &room.identity
	record.FillIdentity(rec.Identity, caller.Identity.Principal(), caller.Identity.Credential())
	if caller.TLS != (iam.TLS{}) {
		rec.Tls = &room.tls
		rec.Tls.Version, rec.Tls.Cipher = caller.TLS.Version, caller.TLS.Cipher
	}
	rec.Resources, rec.Additional = room.resources[:0], room.additional[:0]
	free := room.resource[:]
	for _, r := range ev.resources {
		res := take(&free)
		res.Type, res.AccountId, res.Arn = r.kind, c.Account, r.ARN
		rec.Resources = append(rec.Resources, res)
	}
	if ev.Op.RecordKey != "" && ev.Source != nil {
		rec.RequestParameters = replace(rec.RequestParameters, auditfield.Text(ev.Op.RecordKey, ev.Source.ARN))
	}
	if len(ev.decisions) > 0 {
		list := make([]string, len(ev.decisions))
		for i, d := range ev.decisions {
			list[i] = d.String()
		}
		rec.Additional = append(rec.Additional, auditfield.TextList("authorization", list))
	}
	for i, m := range ev.materials {
		name := "keyMaterialId"
		if i > 0 {
			name = "destinationKeyMaterialId"
		}
		rec.Additional = append(rec.Additional, auditfield.Text(name, hexOf(m.MaterialId)))
	}
	if ev.Recipient != nil {
		rec.Additional = append(rec.Additional, ev.Recipient)
	}
	if caller.SourceArn != "" {
		rec.Additional = append(rec.Additional, auditfield.Text("sourceArn", caller.SourceArn))
	}
	if ev.GrantID != "" {
		rec.Additional = append(rec.Additional, auditfield.Text("grantId", ev.GrantID))
	}
	if ev.Err != nil {
		rec.ErrorCode, rec.ErrorMessage = record.Outcome(ev.Err)
	} else if ev.Op.respond != nil {
		ev.Op.respond(ev.Out, rec)
	}
	return rec, nil
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
