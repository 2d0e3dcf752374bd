package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/conclavekms/conclave/auditlog"
	"github.com/conclavekms/conclave/cluster/clusterpb"
	"github.com/conclavekms/conclave/fsm/wire"
)

// fetchTimeout bounds one stream, so that a slow node does not delay the others.
const fetchTimeout = 5 * time.Minute

// FetchAudit fetches the audit entries [from, to) from another node and passes them to
// fill, in order.
func (p *Clients) FetchAudit(ctx context.Context, node string, from, to uint64, fill func([]auditlog.Entry) error) error {
	client, err := p.Client(node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	stream, err := client.FetchAudit(ctx, &clusterpb.FetchAuditRequest{Group: wire.Group, From: from, To: to})
	if err != nil {
		return err
	}
	for next := from; next < to; {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("node %s sent too few audit entries: up to %d of %d", node, next, to)
		}
		if err != nil {
			return err
		}
		entries := make([]auditlog.Entry, len(m.Entries))
		for i, e := range m.Entries {
			if entries[i], err = auditEntry(e); err != nil {
				return err
			}
			if entries[i].Index != next || next >= to {
				return fmt.Errorf("node %s sent audit entry %d instead of %d", node, entries[i].Index, next)
			}
			next++
		}
		if err := fill(entries); err != nil {
			return fmt.Errorf("node %s sent entries that do not match the log: %w", node, err)
		}
	}
	return nil
}

// FetchAudit implements the Peer service.
func (s *server) FetchAudit(r *clusterpb.FetchAuditRequest, stream grpc.ServerStreamingServer[clusterpb.FetchAuditResponse]) error {
	if err := checkGroup(r.Group); err != nil {
		return err
	}
	if _, err := s.member(stream.Context()); err != nil {
		return err
	}
	select {
	case s.auditStreams <- struct{}{}:
		defer func() { <-s.auditStreams }()
	default:
		return status.Error(codes.ResourceExhausted, "audit entries are being sent to other nodes; try again later")
	}
	for from := r.From; from < r.To; {
		entries, err := s.node.ReadAudit(from, int(min(r.To-from, 4096)), auditMessage)
		if err != nil {
			s.Log.Warn("reading audit entries for another node", "from", from, "err", err)
			return status.Error(codes.Unavailable, "audit log cannot be read here")
		}
		if len(entries) == 0 {
			return status.Error(codes.OutOfRange, "no such entries here")
		}
		m := &clusterpb.FetchAuditResponse{Entries: make([]*clusterpb.AuditEntry, len(entries))}
		for i := range entries {
			m.Entries[i] = auditEntryProto(&entries[i])
		}
		if err := stream.Send(m); err != nil {
			return err
		}
		from += uint64(len(entries))
	}
	return nil
}

func auditEntryProto(e *auditlog.Entry) *clusterpb.AuditEntry {
	return &clusterpb.AuditEntry{
		Index: e.Index, RaftIndex: e.RaftIndex, Time: e.Time, RequestId: e.RequestID[:], Generation: e.Generation,
		Salt: e.Salt[:], Commitment: e.Commitment[:], Body: e.Body,
	}
}

func auditEntry(p *clusterpb.AuditEntry) (auditlog.Entry, error) {
	e := auditlog.Entry{Index: p.Index, RaftIndex: p.RaftIndex, Time: p.Time, Generation: p.Generation, Body: p.Body}
	if copy(e.RequestID[:], p.RequestId) != len(e.RequestID) || len(p.RequestId) != len(e.RequestID) ||
		copy(e.Salt[:], p.Salt) != len(e.Salt) || len(p.Salt) != len(e.Salt) ||
		copy(e.Commitment[:], p.Commitment) != len(e.Commitment) || len(p.Commitment) != len(e.Commitment) {
		return e, errors.New("malformed audit entry")
	}
	return e, e.Check()
}
