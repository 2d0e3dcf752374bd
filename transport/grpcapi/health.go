package grpcapi

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/conclavekms/conclave/keyengine"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// healthPoll is how often a watched status is looked at.
const healthPoll = 250 * time.Millisecond

// healthService says whether this node answers requests on keys, for "" and for
// the service KMS. All other services answer on any node that runs.
type healthService struct {
	grpc_health_v1.UnimplementedHealthServer
	serving func() bool
	watches *gate
}

func (h *healthService) status(service string) grpc_health_v1.HealthCheckResponse_ServingStatus {
	switch service {
	case "", kmspb.KMS_ServiceDesc.ServiceName:
		if !h.serving() {
			return grpc_health_v1.HealthCheckResponse_NOT_SERVING
		}
		return grpc_health_v1.HealthCheckResponse_SERVING
	case kmspb.Operator_ServiceDesc.ServiceName:
		return grpc_health_v1.HealthCheckResponse_SERVING
	}
	return grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN
}

// Check tells the status now.
func (h *healthService) Check(_ context.Context, in *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	st := h.status(in.GetService())
	if st == grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN {
		return nil, &keyengine.Error{Code: keyengine.ErrNotFound.Code, Message: "There is no such service."}
	}
	return &grpc_health_v1.HealthCheckResponse{Status: st}, nil
}

// Watch tells the status now and whenever it changes.
func (h *healthService) Watch(in *grpc_health_v1.HealthCheckRequest, ss grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	if err := stay(ss.Context(), h.watches); err != nil {
		return err
	}
	tick := time.NewTicker(healthPoll)
	defer tick.Stop()
	last := grpc_health_v1.HealthCheckResponse_ServingStatus(-1)
	for {
		if st := h.status(in.GetService()); st != last {
			if err := ss.Send(&grpc_health_v1.HealthCheckResponse{Status: st}); err != nil {
				return err
			}
			last = st
		}
		select {
		case <-ss.Context().Done():
			return ss.Context().Err()
		case <-tick.C:
		}
	}
}
