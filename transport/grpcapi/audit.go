package grpcapi

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/keyengine/iam"
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
