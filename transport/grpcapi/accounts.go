package grpcapi

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/transport/kmspb"
)

type accountsService struct {
	kmspb.UnimplementedAccountsServer
	server *Server
}

func (s *accountsService) Create(ctx context.Context, in *kmspb.CreateAccountRequest) (*kmspb.CreateAccountResponse, error) {
	c, err := s.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	id, sealed, err := s.server.cfg.Engine.CreateAccount(ctx, c, in.GetAccount(), in.GetName(), in.GetAnswerKey())
	if err != nil {
		return nil, err
	}
	return &kmspb.CreateAccountResponse{AccessKeyId: id, SealedSecret: sealed}, nil
}

func (s *accountsService) List(ctx context.Context, _ *kmspb.ListAccountsRequest) (*kmspb.ListAccountsResponse, error) {
	c, err := s.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	list, err := s.server.cfg.Engine.Accounts(ctx, c)
	if err != nil {
		return nil, err
	}
	r := new(kmspb.ListAccountsResponse)
	for _, a := range list {
		r.Accounts = append(r.Accounts, &kmspb.AccountInfo{Account: a.Number, Name: a.Name, Alias: a.Alias, Created: timestamppb.New(a.Created)})
	}
	return r, nil
}
