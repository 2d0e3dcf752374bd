package grpcapi

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport/kmspb"
)

type sessionService struct {
	kmspb.UnimplementedSessionServer
	server *Server
}

// Create is open to anybody: its request is the proof.
func (s *sessionService) Create(ctx context.Context, in *kmspb.CreateSessionRequest) (*kmspb.CreateSessionResponse, error) {
	conn := connectionOf(ctx)
	token, expires, err := s.server.cfg.Engine.OpenSession(ctx, keyengine.SessionProof{
		AccessKeyID: in.GetAccessKeyId(),
		Time:        in.GetTime(),
		Nonce:       in.GetNonce(),
		MAC:         in.GetMac(),
		RequestID:   requestOf(ctx).id,
		SourceIP:    conn.ip,
		UserAgent:   userAgent(ctx),
		TLS:         conn.tls,
	})
	if err != nil {
		return nil, err
	}
	return &kmspb.CreateSessionResponse{Token: token, Expires: timestamppb.New(expires)}, nil
}
