package keyengine

import (
	"context"
	"errors"
	"io"
	"strconv"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/internal/vault"
)

// readAuditEntries is how many records are read at once.
const readAuditEntries = 256

// ErrUnopenable is returned, together with a line of JSON, for a record that cannot be
// decrypted.
var ErrUnopenable = errors.New("record of the audit log cannot be decrypted")

// AuditReader reads the audit log in the clear. It is not safe for concurrent
// use.
type AuditReader struct {
	// Follow makes Next wait for records at the end of the log instead of
	// returning io.EOF. Set it before the first Next.
	Follow bool

	e      *Engine
	caller *iam.Caller
	next   uint64
	items  []auditfeed.Item
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
	for len(r.items) == 0 {
		if err := r.fill(ctx); err != nil {
			return 0, nil, err
		}
	}
	if r.e.vault.Sealed() {
		return 0, nil, vault.ErrSealed // though these records were decrypted before
	}
	it := r.items[0]
	r.items, r.next = r.items[1:], it.Entry.Index+1
	if line, err = it.Line(); it.Err == nil && err == nil {
		return it.Entry.Index, line, nil
	}
	r.e.log.Error("cannot decrypt a record of the audit log", "index", it.Entry.Index, "err", errors.Join(it.Err, err))
	r.e.metrics.unopenable.Inc()
	return it.Entry.Index, auditlog.RenderUnopenable(it.Entry), ErrUnopenable
}

// fill reads the next records from the log. At the end of the log it waits for more if
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
	changed := r.e.feed.Changed() // before reading, so that no change is missed
	r.items, err = r.e.feed.Read(r.next, readAuditEntries)
	switch {
	case errors.Is(err, vault.ErrSealed):
		return err
	case err != nil:
		return request.AuditError(err)
	}
	if len(r.items) > 0 {
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
