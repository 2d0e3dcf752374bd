package keyengine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/policy"
)

const (
	readAuditEntries = 256
	readAuditBytes   = 1 << 20
)

// AuditReader reads the audit log in the clear. It is not safe for concurrent
// use.
type AuditReader struct {
	// Follow makes Next wait for records at the end of the log instead of
	// returning io.EOF. Set it before the first Next.
	Follow bool

	e       *Engine
	caller  *Caller
	next    uint64
	entries []auditlog.Entry
}

// ReadAudit opens the audit log at a record, for the account's root user only.
// That it was opened is itself in the log before the reader is given. Errors:
// ErrAccessDenied, ErrUnrecognizedClient, ErrUnavailable.
func (e *Engine) ReadAudit(ctx context.Context, c *Caller, from uint64) (*AuditReader, error) {
	if err := e.limits.allow(c); err != nil {
		return nil, err
	}
	for range maxTries {
		ev := &eval{ctx: ctx, engine: e, state: e.replica.State(), caller: c}
		if err := ev.admit(); err != nil {
			return nil, err
		}
		denied := mayReadAudit(ev)
		d, err := e.commitEvent(ctx, event{
			name: "ReadAudit", kind: eventConclave, requestID: c.RequestID, readOnly: true, err: denied,
			identity: principalIdentity(c.Identity.principal, c.Identity.credential),
			sourceIP: c.SourceIP, userAgent: c.UserAgent, transport: c.Transport, tls: c.TLS,
			parameters: []*auditpb.Field{text("from", strconv.FormatUint(from, 10))},
			reads:      ev.reads,
		})
		switch {
		case err != nil:
			return nil, err
		case d.Verdict == fsm.Conflict:
			if err := e.replica.WaitApplied(ctx, d.Index); err != nil {
				return nil, e.unavailable(err)
			}
			continue
		case d.Verdict != fsm.Accepted:
			return nil, fmt.Errorf("record of ReadAudit found %v", d.Verdict)
		case d.Late:
			return nil, errHeldUp
		case denied != nil:
			e.limits.refused(c, denied)
			return nil, denied
		}
		return &AuditReader{e: e, caller: c, next: from}, nil
	}
	return nil, fault(ErrUnavailable, "The caller's credential keeps changing. Try again.")
}

// mayReadAudit decides: the log tells of every principal, so only the account
// itself may read it.
func mayReadAudit(ev *eval) error {
	p, c := ev.caller.Identity.principal, ev.cluster()
	if c != nil && p.Kind == policy.KindRoot && p.Account == c.Account && p.Partition == c.Partition {
		return nil
	}
	return fault(ErrAccessDenied, "User: %s is not authorized to read the audit log: only the account's root user is", p)
}

// Next returns the next record: its index and one line of JSON, without the line
// break. At the end of the log it returns io.EOF, or waits if Follow is set. It
// fails when the node is sealed, when the caller's credential is no longer good,
// when this node lacks the history asked for, and with ErrInternal when a record
// is not what the log committed to; the call after that goes on behind it.
func (r *AuditReader) Next(ctx context.Context) (index uint64, line []byte, err error) {
	for len(r.entries) == 0 {
		if err := r.fill(ctx); err != nil {
			return 0, nil, err
		}
	}
	entry := r.entries[0]
	line, err = r.e.render(entry)
	if errors.Is(err, errSealed) {
		return 0, nil, err
	}
	r.entries, r.next = r.entries[1:], entry.Index+1
	if err != nil {
		r.e.log.Error("a record of the audit log cannot be read", "index", entry.Index, "err", err)
		return entry.Index, nil, fault(ErrInternal, "Record %d of the audit log cannot be read: it is not what the log committed to.", entry.Index)
	}
	return entry.Index, line, nil
}

// render opens an entry and writes its record as a line of JSON.
func (e *Engine) render(entry auditlog.Entry) ([]byte, error) {
	plain, err := e.vault.openBody(entry)
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
	o, err := r.e.vault.current()
	if err != nil {
		return err
	}
	now := &eval{ctx: ctx, engine: r.e, state: r.e.replica.State(), caller: r.caller}
	if err := now.admitOn(o); err != nil {
		return err
	}
	changed := r.e.cfg.Audit.Changed() // before looking, so as to miss nothing
	r.entries, err = r.e.cfg.Audit.Read(r.next, readAuditEntries, readAuditBytes)
	if errors.Is(err, auditlog.ErrMissing) {
		return fault(ErrUnavailable, "This node does not have record %d of the audit log yet. Try again later, or ask another node.", r.next)
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
	case <-o.ended:
		return errSealed
	case <-ctx.Done():
		return ctx.Err()
	}
}
