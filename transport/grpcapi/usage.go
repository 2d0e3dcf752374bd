package grpcapi

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport/kmspb"
)

type usageService struct {
	kmspb.UnimplementedUsageServer
	server *Server
}

func (s *usageService) Get(ctx context.Context, in *kmspb.GetUsageRequest) (*kmspb.GetUsageResponse, error) {
	c, err := s.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	p, err := s.server.cfg.Engine.Usage(ctx, c, keyengine.UsageQuery{
		Hours: in.GetPeriod() == kmspb.UsagePeriod_USAGE_PERIOD_HOUR, Days: in.GetPeriod() == kmspb.UsagePeriod_USAGE_PERIOD_DAY,
		From: in.GetFrom().AsTime(), To: in.GetTo().AsTime(), Account: in.GetAccount(), Limit: int(in.GetLimit()), After: in.GetAfter(),
	})
	if err != nil {
		return nil, err
	}
	r := &kmspb.GetUsageResponse{Next: p.Next, Progress: progressOf(p)}
	for _, u := range p.Rows {
		r.Rows = append(r.Rows, &kmspb.UsageRow{
			Start: timestamppb.New(u.Start), Account: u.Account, Principal: u.Principal, Key: u.Key, Operation: u.Operation, Kind: u.Kind, Requests: u.Requests, Errors: u.Errors,
		})
	}
	return r, nil
}

func (s *usageService) Keys(ctx context.Context, in *kmspb.ListKeyUsageRequest) (*kmspb.ListKeyUsageResponse, error) {
	c, err := s.server.caller(ctx)
	if err != nil {
		return nil, err
	}
	p, err := s.server.cfg.Engine.UsedKeys(ctx, c, keyengine.UsageQuery{
		From: in.GetFrom().AsTime(), To: in.GetTo().AsTime(), Account: in.GetAccount(), Limit: int(in.GetLimit()), After: in.GetAfter(),
	})
	if err != nil {
		return nil, err
	}
	moment := func(ns int64) *timestamppb.Timestamp {
		if ns == 0 {
			return nil
		}
		return timestamppb.New(time.Unix(0, ns))
	}
	r := &kmspb.ListKeyUsageResponse{Next: p.Next, Progress: progressOf(p)}
	for _, k := range p.Keys {
		u := &kmspb.KeyUsage{Key: k.Key, Account: k.Account, Spec: k.Spec, Created: moment(k.Created), DeletionScheduled: moment(k.Pending), Deleted: moment(k.Ended)}
		for _, t := range k.Rotations {
			u.Rotations = append(u.Rotations, moment(t))
		}
		r.Keys = append(r.Keys, u)
	}
	return r, nil
}

func progressOf(p *keyengine.UsagePage) *kmspb.UsageProgress {
	return &kmspb.UsageProgress{Counted: p.Counted, Records: p.Records, Unreadable: p.Unreadable}
}
