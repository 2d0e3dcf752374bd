package keyengine

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/auditlog/auditpb"
	"github.com/conclavekms/conclave/auditlog/checkpoint"
	"github.com/conclavekms/conclave/auditlog/receipt"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditfeed"
	"github.com/conclavekms/conclave/keyengine/internal/auditfield"
	"github.com/conclavekms/conclave/keyengine/internal/auditindex"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

const (
	// receiptLookBack is how many records are read for a request id, if they are not indexed yet.
	receiptLookBack = 1 << 18
	// receiptWait is how long a receipt waits for a checkpoint that covers its record.
	receiptWait = 10 * time.Second
	// cosignWait is how long it then waits for a cosigned one, if there are witnesses.
	cosignWait = 3 * time.Second
)

// proofs show others what is in the audit log.
type proofs struct{ e *Engine }

// RecordReceipt returns the receipt of a record: a file that proves without the log that the
// record is in it; see package receipt. The record is named by its index or, if that is nil,
// by the id of the request. The caller needs the permission of ReadAudit. It waits until a
// checkpoint covers the record. Errors: those of ReadAudit, ErrNotFound, and ErrUnavailable if
// this node cannot look for a request's id yet.
func (p proofs) RecordReceipt(ctx context.Context, c *iam.Caller, index *uint64, id iam.RequestID) ([]byte, error) {
	ask := record.Event{ReadOnly: true, Parameters: []*auditpb.Field{auditfield.Text("requestId", hex.EncodeToString(id[:]))}}
	if index != nil {
		ask.Parameters = []*auditpb.Field{auditfield.Text("index", strconv.FormatUint(*index, 10))}
	}
	err := p.e.requested(ctx, c, "GetRecordReceipt", ask, func(ev *request.Evaluation, _ *record.Event) error {
		return mustAdminister(ev, "conclave:ReadAudit")
	})
	if err != nil {
		return nil, err
	}
	var entry *auditlog.Entry
	if index != nil {
		entry, err = p.entryAt(*index)
	} else {
		entry, err = p.entryOf(ctx, id, receiptLookBack)
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, receiptWait)
	defer cancel()
	signed, size, err := p.checkpointOver(ctx, entry.Index)
	if err != nil {
		return nil, err
	}
	proof, err := p.e.cfg.Audit.ProveInclusion(entry.Index, size)
	if err != nil {
		return nil, request.AuditError(err)
	}
	r := receipt.Receipt{Index: entry.Index, Leaf: entry.AppendLeaf(nil), Proof: proof, Checkpoint: signed}
	return r.Marshal(), nil
}

// checkpointOver waits for a checkpoint that covers a record and returns it with its size. It is
// one that the witnesses have cosigned, if they do so in time.
func (p proofs) checkpointOver(ctx context.Context, index uint64) (signed []byte, size uint64, err error) {
	tick := time.NewTicker(checkpointLook)
	defer tick.Stop()
	var since time.Time // when a checkpoint of this node has covered the record
	for {
		if signed, size, err = covering(p.e.Witnesses.Newest(), index); signed != nil || err != nil {
			return signed, size, err
		}
		if signed, size, err = covering(p.e.cfg.Audit.Checkpoint(), index); err != nil {
			return nil, 0, err
		}
		if signed != nil {
			if since.IsZero() {
				since = time.Now()
			}
			if !p.e.Witnesses.Soon() || time.Since(since) > cosignWait {
				return signed, size, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, 0, kmsapi.Errorf(kmsapi.ErrUnavailable, "No checkpoint of this node covers record %d yet. Try again later.", index)
		case <-tick.C:
		}
	}
}

// entryAt returns the entry with an index.
func (p proofs) entryAt(index uint64) (*auditlog.Entry, error) {
	e, err := auditfeed.At(p.e.cfg.Audit, index)
	if err != nil {
		return nil, request.AuditError(err)
	}
	if e == nil {
		return nil, kmsapi.Errorf(kmsapi.ErrNotFound, "There is no record %d in the audit log.", index)
	}
	return e, nil
}

// entryOf returns the newest entry of a request. The index knows where it is, unless it is so new
// that it is not indexed yet: of those, at most lookBack are read.
func (p proofs) entryOf(ctx context.Context, id iam.RequestID, lookBack uint64) (*auditlog.Entry, error) {
	size, indexed := p.e.feed.Size(), uint64(0)
	if p.e.index != nil {
		indexed = min(p.e.index.Indexed(), size)
	}
	from := max(indexed, size-min(size, lookBack))
	entry, err := p.scan(ctx, from, size, id)
	if err != nil || entry != nil {
		return entry, err
	}
	if from > indexed {
		return nil, request.ErrIndexBehind
	}
	q := AuditQuery{Where: []AuditCondition{{Field: auditindex.RequestID, Value: record.UUID(id)}}}
	for pos := auditindex.Start(&q, indexed); indexed > 0; {
		r, err := p.e.index.Search(ctx, &q, pos, 1)
		switch {
		case err != nil:
			return nil, request.AuditError(err)
		case len(r.Items) > 0:
			return &r.Items[0].Entry, nil
		}
		if r.Next == nil {
			break
		}
		pos = *r.Next
	}
	return nil, kmsapi.Errorf(kmsapi.ErrNotFound, "No record of the audit log is of that request.")
}

// covering returns a checkpoint with its size if it covers a record; nil if not.
func covering(signed []byte, index uint64) ([]byte, uint64, error) {
	if signed == nil {
		return nil, 0, nil
	}
	c, err := checkpoint.Decode(signed)
	if err != nil {
		return nil, 0, fmt.Errorf("the audit log's checkpoint: %w", err)
	}
	if c.Size <= index {
		return nil, 0, nil
	}
	return signed, c.Size, nil
}

// scan reads the entries from from to before to, the newest first, and returns the newest one
// of a request; nil if there is none.
func (p proofs) scan(ctx context.Context, from, to uint64, id iam.RequestID) (*auditlog.Entry, error) {
	const batch = 4096
	for to > from {
		first := max(from, to-min(to, batch))
		var newest *auditlog.Entry
		for at := first; at < to; {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			entries, err := p.e.cfg.Audit.Read(at, int(to-at), 4<<20)
			if err != nil {
				return nil, request.AuditError(err)
			}
			if len(entries) == 0 {
				break // the log became shorter: it was replaced
			}
			for i := range entries {
				if entries[i].RequestID == id {
					newest = &entries[i]
				}
			}
			at += uint64(len(entries))
		}
		if newest != nil {
			return newest, nil
		}
		to = first
	}
	return nil, nil
}

// AuditLeaves returns entries of the audit log, at most n, from one index on. Only what is in
// the clear, without the records, may be shown to the caller, who needs the permission of
// ReadAudit. That this was read is in the log. Errors: those of ReadAudit.
func (p proofs) AuditLeaves(ctx context.Context, c *iam.Caller, from uint64, n int) ([]auditlog.Entry, error) {
	ask := record.Event{ReadOnly: true, Parameters: []*auditpb.Field{auditfield.Text("from", strconv.FormatUint(from, 10)), auditfield.Text("count", strconv.Itoa(n))}}
	err := p.e.requested(ctx, c, "ReadAuditLeaves", ask, func(ev *request.Evaluation, _ *record.Event) error {
		return mustAdminister(ev, "conclave:ReadAudit")
	})
	if err != nil {
		return nil, err
	}
	var all []auditlog.Entry
	for len(all) < n {
		at := from + uint64(len(all))
		entries, err := p.e.cfg.Audit.Read(at, n-len(all), 4<<20)
		if err != nil {
			return nil, request.AuditError(err)
		}
		if len(entries) == 0 {
			break
		}
		all = append(all, entries...)
	}
	return all, nil
}
