package grpcapi

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/transport/kmspb"
)

type credentialsService struct {
	kmspb.UnimplementedCredentialsServer
	server *Server
}

func (s *credentialsService) List(ctx context.Context, _ *kmspb.ListCredentialsRequest) (*kmspb.ListCredentialsResponse, error) {
	c, err := s.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	list, err := s.server.cfg.Engine.Credentials(ctx, c)
	if err != nil {
		return nil, err
	}
	r := new(kmspb.ListCredentialsResponse)
	for _, info := range list {
		kind := "access-key"
		if info.Certificate {
			kind = "certificate"
		}
		m := &kmspb.Credential{Id: info.ID, Kind: kind, Principal: info.Principal, Created: timestamppb.New(info.Created)}
		if !info.Expires.IsZero() {
			m.Kind, m.Expires = "break-glass", timestamppb.New(info.Expires)
		}
		r.Credentials = append(r.Credentials, m)
	}
	return r, nil
}

func (s *credentialsService) CreateAccessKey(ctx context.Context, in *kmspb.CreateAccessKeyRequest) (*kmspb.CreateAccessKeyResponse, error) {
	c, err := s.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	id, sealed, err := s.server.cfg.Engine.CreateAccessKey(ctx, c, in.GetAnswerKey())
	if err != nil {
		return nil, err
	}
	return &kmspb.CreateAccessKeyResponse{AccessKeyId: id, SealedSecret: sealed}, nil
}

func (s *credentialsService) Delete(ctx context.Context, in *kmspb.DeleteCredentialRequest) (*kmspb.DeleteCredentialResponse, error) {
	c, err := s.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.DeleteCredentialResponse{}, s.server.cfg.Engine.DeleteCredential(ctx, c, in.GetId())
}

func (s *credentialsService) RevokeSessions(ctx context.Context, _ *kmspb.RevokeSessionsRequest) (*kmspb.RevokeSessionsResponse, error) {
	c, err := s.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	return &kmspb.RevokeSessionsResponse{}, s.server.cfg.Engine.RevokeSessions(ctx, c)
}
