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

// ErrUnopenable comes with the line of a record that cannot be opened.
var ErrUnopenable = errors.New("record of the audit log cannot be opened")

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

// ReadAudit opens the audit log at a record, for the account's root user only.
// That it was opened is itself in the log before the reader is given. Errors:
// ErrAccessDenied, ErrUnrecognizedClient, ErrUnavailable.
func (e *Engine) ReadAudit(ctx context.Context, c *iam.Caller, from uint64) (*AuditReader, error) {
	ask := record.Event{ReadOnly: true, Parameters: []*auditpb.Field{auditfield.Text("from", strconv.FormatUint(from, 10))}}
	if err := e.byRoot(ctx, c, "ReadAudit", "read the audit log", ask, nil); err != nil {
		return nil, err
	}
	return &AuditReader{e: e, caller: c, next: from}, nil
}

// Next returns the next record: its index and one line of JSON, without the line
// break. At the end of the log it returns io.EOF, or waits if Follow is set. A
// record that cannot be opened hides nothing behind it: it has a line that says so,
// and ErrUnopenable beside it. Next fails when the node is sealed, when the caller's
// credential is no longer good, and when this node lacks the history asked for.
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
		r.e.log.Error("a record of the audit log cannot be opened", "index", entry.Index, "err", err)
		r.e.metrics.unopenable.Inc()
		return entry.Index, auditlog.RenderUnopenable(entry), ErrUnopenable
	}
	return entry.Index, line, nil
}

// render opens an entry and writes its record as a line of JSON.
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

// fill reads on from the log, or returns io.EOF, or waits.
func (r *AuditReader) fill(ctx context.Context) error {
	// What the caller may read from here on is what it may read now.
	o, err := r.e.vault.Current()
	if err != nil {
		return err
	}
	now := &request.Evaluation{Ctx: ctx, Services: r.e.services, State: r.e.replica.State(), Caller: r.caller}
	if err := request.AdmitOn(now, o); err != nil {
		return err
	}
	changed := r.e.cfg.Audit.Changed() // before looking, so as to miss nothing
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
