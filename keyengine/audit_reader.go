package keyengine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	readAuditEntries = 256
	readAuditBytes   = 1 << 20
)

// ErrUnopenable is returned, together with a line of JSON, for a record that cannot be
// decrypted.
var ErrUnopenable = errors.New("record of the audit log cannot be decrypted")

// AuditReader reads the audit log in the clear. It is not safe for concurrent
// use.
type AuditReader struct {
	// Follow makes Next wait for records at the end of the log instead of
	// returning io.EOF. Set it before the first Next.
	Follow bool

	e       *Engine
	caller  *iam.Caller
	next    uint64
	entries []auditlog.Entry
}

// ReadAudit opens the audit log at the record with index from. The caller needs the
// permission conclave:ReadAudit and must belong to the account that the cluster was
// initialised with, as the log has the records of all accounts. The read is itself recorded
// in the log before the reader is returned. Errors: ErrAccessDenied, ErrUnrecognizedClient, ErrUnavailable.
func (e *Engine) ReadAudit(ctx context.Context, c *iam.Caller, from uint64) (*AuditReader, error) {
	ask := record.Event{ReadOnly: true, Parameters: []*auditpb.Field{auditfield.Text("from", strconv.FormatUint(from, 10))}}
	err := e.requested(ctx, c, "ReadAudit", ask, func(ev *request.Evaluation, _ *record.Event) error {
		return mustAdminister(ev, "conclave:ReadAudit")
	})
	if err != nil {
		return nil, err
	}
	return &AuditReader{e: e, caller: c, next: from}, nil
}

// Next returns the index of the next record and its line of JSON, without the line break.
// At the end of the log it returns io.EOF, or waits if Follow is set. A record that cannot
// be decrypted does not stop the reader: Next returns a line that says so, with
// ErrUnopenable, and the next call goes on behind it. Next fails when the node is sealed,
// when the caller's credential is no longer good, and when this node does not have the
// requested part of the log.
func (r *AuditReader) Next(ctx context.Context) (index uint64, line []byte, err error) {
	for len(r.entries) == 0 {
		if err := r.fill(ctx); err != nil {
			return 0, nil, err
		}
	}
	entry := r.entries[0]
	line, err = r.e.render(entry)
	if errors.Is(err, vault.ErrSealed) {
		return 0, nil, err
	}
	r.entries, r.next = r.entries[1:], entry.Index+1
	if err != nil {
		r.e.log.Error("cannot decrypt a record of the audit log", "index", entry.Index, "err", err)
		r.e.metrics.unopenable.Inc()
		return entry.Index, auditlog.RenderUnopenable(entry), ErrUnopenable
	}
	return entry.Index, line, nil
}

// render decrypts an entry and returns its record as a line of JSON.
func (e *Engine) render(entry auditlog.Entry) ([]byte, error) {
	plain, err := e.vault.OpenBody(entry)
	if err != nil {
		return nil, err
	}
	rec, err := auditlog.DecodeRecord(plain)
	if err != nil {
		return nil, err
	}
	return auditlog.RenderJSON(entry, rec)
}

// fill reads the next entries from the log. At the end of the log it waits for more if
// Follow is set, and returns io.EOF otherwise.
func (r *AuditReader) fill(ctx context.Context) error {
	// The caller's credential may have been withdrawn since the last read.
	o, err := r.e.vault.Current()
	if err != nil {
		return err
	}
	now := &request.Evaluation{Ctx: ctx, Services: r.e.services, State: r.e.replica.State(), Caller: r.caller}
	if err := request.AdmitOn(now, o); err != nil {
		return err
	}
	changed := r.e.cfg.Audit.Changed() // before reading, so that no change is missed
	r.entries, err = r.e.cfg.Audit.Read(r.next, readAuditEntries, readAuditBytes)
	if errors.Is(err, auditlog.ErrMissing) {
		return kmsapi.Errorf(kmsapi.ErrUnavailable, "This node does not have record %d of the audit log yet. Try again later, or ask another node.", r.next)
	}
	if err != nil {
		return fmt.Errorf("reading the audit log: %w", err)
	}
	if len(r.entries) > 0 {
		return nil
	}
	if !r.Follow {
		return io.EOF
	}
	select {
	case <-changed:
		return nil
	case <-o.Ended():
		return vault.ErrSealed
	case <-ctx.Done():
		return ctx.Err()
	}
}
