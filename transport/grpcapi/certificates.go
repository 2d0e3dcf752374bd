package grpcapi

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/transport/kmspb"
)

type certificatesService struct {
	kmspb.UnimplementedCertificateMappingsServer
	server *Server
}

func (s *certificatesService) Create(ctx context.Context, in *kmspb.CreateCertificateMappingRequest) (*kmspb.CreateCertificateMappingResponse, error) {
	c, err := s.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	arn, err := s.server.cfg.Engine.CreateCertificateMapping(ctx, c, in.GetPattern(), in.GetPrincipal())
	if err != nil {
		return nil, err
	}
	return &kmspb.CreateCertificateMappingResponse{Arn: arn}, nil
}

func (s *certificatesService) List(ctx context.Context, _ *kmspb.ListCertificateMappingsRequest) (*kmspb.ListCertificateMappingsResponse, error) {
	c, err := s.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	list, err := s.server.cfg.Engine.CertificateMappings(ctx, c)
	if err != nil {
		return nil, err
	}
	r := new(kmspb.ListCertificateMappingsResponse)
	for _, m := range list {
		r.Mappings = append(r.Mappings, &kmspb.CertificateMapping{Pattern: m.Pattern, Arn: m.ARN, Principal: m.Principal, Created: timestamppb.New(m.Created)})
	}
	return r, nil
}

func (s *certificatesService) Delete(ctx context.Context, in *kmspb.DeleteCertificateMappingRequest) (*kmspb.DeleteCertificateMappingResponse, error) {
	c, err := s.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.server.cfg.Engine.DeleteCertificateMapping(ctx, c, in.GetPattern()); err != nil {
		return nil, err
	}
	return &kmspb.DeleteCertificateMappingResponse{}, nil
}
