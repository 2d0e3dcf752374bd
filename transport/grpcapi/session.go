package grpcapi

import (
	"context"
	"strings"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/transport"
	"github.com/conclavekms/conclave/transport/kmspb"
)

type sessionService struct {
	kmspb.UnimplementedSessionServer
	server *Server
}

// proofHeader is the metadata with the proof for a session; see
// CreateSessionRequest.
const proofHeader = "conclave-proof-bin"

// Create may be called by anybody, as the call contains a proof.
func (s *sessionService) Create(ctx context.Context, in *kmspb.CreateSessionRequest) (*kmspb.CreateSessionResponse, error) {
	call, conn := callOf(ctx), connectionOf(ctx)
	channel, err := conn.channel()
	if err != nil {
		return nil, err
	}
	token, expires, err := s.server.cfg.Engine.OpenSession(ctx, iam.SessionProof{
		AccessKeyID:  in.GetAccessKeyId(),
		SessionToken: in.GetSessionToken(),
		Time:         in.GetTime(),
		Nonce:        in.GetNonce(),
		Channel:      channel,
		MAC:          []byte(strings.Join(metadata.ValueFromIncomingContext(ctx, proofHeader), "")),
		RequestID:    call.ID,
		SourceIP:     call.SourceIP,
		UserAgent:    transport.UserAgent(userAgent(ctx)),
		TLS:          transport.TLSInfo(conn.state, authority(ctx)),
	})
	if err != nil {
		return nil, err
	}
	call.Proved()
	return &kmspb.CreateSessionResponse{Token: token, Expires: timestamppb.New(expires)}, nil
}
