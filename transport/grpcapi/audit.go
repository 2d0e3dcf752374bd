package grpcapi

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// reauthInterval is how often a reader of the audit log is authenticated again,
// since its session may end while it reads. Its credential is checked with every
// read.
const reauthInterval = time.Minute

// auditReader is a *keyengine.AuditReader.
type auditReader interface {
	Next(ctx context.Context) (index uint64, line []byte, err error)
}

func (s *Server) openAudit(ctx context.Context, c *iam.Caller, from uint64, follow bool) (auditReader, error) {
	r, err := s.cfg.Engine.ReadAudit(ctx, c, from)
	if err != nil {
		return nil, err
	}
	r.Follow = follow
	return r, nil
}

type auditService struct {
	kmspb.UnimplementedAuditServer
	server *Server
	open   func(ctx context.Context, c *iam.Caller, from uint64, follow bool) (auditReader, error)
	every  time.Duration
}

// Read sends the audit log, beginning at a record.
func (a *auditService) Read(in *kmspb.ReadAuditRequest, ss grpc.ServerStreamingServer[kmspb.ReadAuditResponse]) error {
	ctx := ss.Context()
	caller, err := a.server.caller(ctx)
	if err != nil {
		return err
	}
	r, err := a.open(ctx, caller, in.GetFrom(), in.GetFollow())
	if err != nil {
		return err
	}
	if err := callOf(ctx).Stay(&a.server.gates.audits); err != nil {
		return err
	}
	for ctx.Err() == nil {
		err := a.send(ctx, r, ss)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := a.server.caller(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// send sends records until the caller has to be authenticated again.
func (a *auditService) send(ctx context.Context, r auditReader, ss grpc.ServerStreamingServer[kmspb.ReadAuditResponse]) error {
	until, cancel := context.WithTimeout(ctx, a.every)
	defer cancel()
	for {
		if until.Err() != nil {
			return ctx.Err()
		}
		index, line, err := r.Next(until)
		unopenable := errors.Is(err, keyengine.ErrUnopenable)
		if err != nil && !unopenable {
			if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
				return nil
			}
			return err
		}
		if err := ss.Send(&kmspb.ReadAuditResponse{Index: index, Json: string(line), Unopenable: unopenable}); err != nil {
			return err
		}
	}
}

// GetReceipt returns the receipt of a record.
func (a *auditService) GetReceipt(ctx context.Context, in *kmspb.GetRecordReceiptRequest) (*kmspb.GetRecordReceiptResponse, error) {
	caller, err := a.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	var index *uint64
	var id iam.RequestID
	switch by := in.GetRecord().(type) {
	case *kmspb.GetRecordReceiptRequest_Index:
		index = &by.Index
	case *kmspb.GetRecordReceiptRequest_RequestId:
		if len(by.RequestId) != len(id) {
			return nil, kmsapi.Errorf(kmsapi.ErrValidation, "The id of a request has %d bytes.", len(id))
		}
		copy(id[:], by.RequestId)
	default:
		return nil, kmsapi.Errorf(kmsapi.ErrValidation, "Name the record: by its index, or by the id of the request.")
	}
	text, err := a.server.cfg.Engine.RecordReceipt(ctx, caller, index, id)
	if err != nil {
		return nil, err
	}
	return &kmspb.GetRecordReceiptResponse{Receipt: text}, nil
}

// Search returns a page of the records that a query finds.
func (a *auditService) Search(ctx context.Context, in *kmspb.SearchAuditRequest) (*kmspb.SearchAuditResponse, error) {
	caller, err := a.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	q := keyengine.AuditQuery{From: timeOf(in.GetFrom()), To: timeOf(in.GetTo()), OldestFirst: in.GetOldestFirst()}
	for _, c := range in.GetWhere() {
		q.Where = append(q.Where, keyengine.AuditCondition{Field: keyengine.AuditField(c.GetField()), Value: c.GetValue()})
	}
	p, err := a.server.cfg.Engine.SearchAudit(ctx, caller, q, in.GetPage(), int(in.GetLimit()))
	if err != nil {
		return nil, err
	}
	out := &kmspb.SearchAuditResponse{Page: p.Next, Searched: p.Searched, Size: p.Size}
	for _, r := range p.Records {
		out.Records = append(out.Records, &kmspb.ReadAuditResponse{Index: r.Index, Json: r.JSON, Unopenable: r.Unopenable})
	}
	return out, nil
}

// timeOf returns a time that is given in Unix nanoseconds, of which 0 is none.
func timeOf(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// ListSinks returns who receives the log.
func (a *auditService) ListSinks(ctx context.Context, _ *kmspb.ListAuditSinksRequest) (*kmspb.ListAuditSinksResponse, error) {
	caller, err := a.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	list, err := a.server.cfg.Engine.AuditSinks(ctx, caller)
	if err != nil {
		return nil, err
	}
	out := new(kmspb.ListAuditSinksResponse)
	for _, s := range list {
		m := &kmspb.AuditSink{Name: s.Name, Kind: s.Kind, Confirmed: s.Confirmed, Node: s.Node, Lag: s.Lag, LagSeconds: s.Age.Seconds()}
		if s.Error != "" {
			m.Error = &kmspb.AuditSinkError{Message: s.Error, Time: timestamppb.New(s.ErrorAt)}
		}
		out.Sinks = append(out.Sinks, m)
	}
	return out, nil
}

// ForgetSink forgets up to where a receiver has confirmed the records.
func (a *auditService) ForgetSink(ctx context.Context, in *kmspb.ForgetAuditSinkRequest) (*kmspb.ForgetAuditSinkResponse, error) {
	caller, err := a.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.server.cfg.Engine.ForgetAuditSink(ctx, caller, in.GetName()); err != nil {
		return nil, err
	}
	return &kmspb.ForgetAuditSinkResponse{}, nil
}
