package record

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm/fsmpb"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// Build builds the record of an event: its audit record, encrypted with o, and the read
// set, limits and changes of the event. The cluster is passed as c because the state does
// not have it yet when the event is its initialisation; level is the feature level of the
// state. Build sets those fields of ev that have a default.
func Build(o *vault.Opened, node string, now time.Time, c *fsmpb.Cluster, level uint32, ev *Event) (*fsmpb.Record, error) {
	if ev.RequestID == ([16]byte{}) {
		_, _ = rand.Read(ev.RequestID[:]) // never fails: crypto/rand ends the process instead
	}
	if ev.Region == "" {
		ev.Region = c.GetRegion()
	}
	if ev.At.IsZero() {
		ev.At = now
	}
	// This is one allocation. It is separate from ev, as the log may keep it for longer.
	var b struct {
		record     fsmpb.Record
		id, salt   [16]byte
		commitment auditlog.Hash
	}
	b.id = ev.RequestID
	plain, err := auditlog.EncodeRecord(auditRecord(node, c, level, b.id[:], ev))
	if err != nil {
		return nil, fmt.Errorf("record of %s: %w", ev.Name, err)
	}
	if b.record.Body, b.record.Generation, b.salt, b.commitment, err = o.SealBody(now, b.id, plain); err != nil {
		return nil, fmt.Errorf("record of %s: %w", ev.Name, err)
	}
	b.record.RequestId, b.record.Commitment, b.record.Salt = b.id[:], b.commitment[:], b.salt[:]
	b.record.Reads, b.record.NotBefore, b.record.NotAfter = ev.Reads, ev.NotBefore, ev.NotAfter
	b.record.Changes, b.record.Uses = ev.Changes, ev.Uses
	return &b.record, nil
}

// schema2Level is the feature level from which records have schema 2. Nothing checks bodies of
// records when the log is applied, so a release that does not know schema 2 would keep them
// and give them to its peers unchanged. But it cannot show them: its readers would find
// records that are said to be impossible to open, as if somebody had damaged the log. So
// schema 2 is not written while such a release may still be part of the cluster.
const schema2Level = 2

// auditRecord returns the audit record of an event in the clear. It contains only the
// fields that are set here.
func auditRecord(node string, c *fsmpb.Cluster, level uint32, id []byte, ev *Event) *auditpb.Record {
	var b struct {
		record auditpb.Record
		salt   [16]byte
	}
	_, _ = rand.Read(b.salt[:])
	rec := &b.record
	rec.Schema, rec.Salt, rec.RequestId = auditlog.RecordSchema, b.salt[:], id
	rec.EventTime, rec.EventName, rec.EventType, rec.EventSource = ev.At.UnixNano(), ev.Name, ev.Kind, sourceConclave
	if ev.Kind == KindCall || ev.Kind == KindService {
		rec.EventSource = sourceKMS
		if ev.Service != "" && ev.Service != "kms" {
			rec.EventSource = ev.Service + ".amazonaws.com"
		}
	}
	rec.Identity, rec.SourceIp, rec.UserAgent = ev.Identity, ev.SourceIP, ev.UserAgent
	rec.Transport, rec.Tls = ev.Transport, ev.TLS
	if level < schema2Level {
		rec.Schema = auditlog.OldRecordSchema
		if t := ev.TLS; t != nil && (t.Host != "" || t.KeyExchange != "") {
			rec.Tls = &auditpb.Tls{Version: t.Version, Cipher: t.Cipher}
		}
	}
	rec.Region, rec.RecipientAccountId, rec.Node = ev.Region, cmp.Or(ev.Account, c.GetAccount()), node
	rec.RequestParameters, rec.ResponseElements, rec.ReadOnly = ev.Parameters, ev.Response, ev.ReadOnly
	rec.Additional, rec.ServiceEventDetails, rec.Resources = ev.Additional, ev.Details, ev.Resources
	rec.ErrorCode, rec.ErrorMessage = Outcome(ev.Err)
	return rec
}
