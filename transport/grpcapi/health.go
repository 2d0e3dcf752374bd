package grpcapi

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/conclavekms/conclave/keyengine/kmsapi"
	"github.com/conclavekms/conclave/transport/admission"
	"github.com/conclavekms/conclave/transport/kmspb"
)

// healthPoll is how often a watched status is checked.
const healthPoll = 250 * time.Millisecond

// healthService reports whether this node answers requests on keys, for "" and
// for the service KMS. All other services are served by every running node.
type healthService struct {
	grpc_health_v1.UnimplementedHealthServer
	serving func() bool
	watches *admission.Pool
	life    time.Duration
}

// errWatchOver ends a watch. Clients then begin another one.
var errWatchOver = &kmsapi.Error{Code: kmsapi.ErrUnavailable.Code, Message: "The watch has reached its longest duration. Begin another one."}

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

// Check returns the current status.
func (h *healthService) Check(_ context.Context, in *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	st := h.status(in.GetService())
	if st == grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN {
		return nil, &kmsapi.Error{Code: kmsapi.ErrNotFound.Code, Message: "There is no such service."}
	}
	return &grpc_health_v1.HealthCheckResponse{Status: st}, nil
}

// Watch sends the status now and whenever it changes, until life is over or the
// watch is evicted for newer ones, since anybody can begin one.
func (h *healthService) Watch(in *grpc_health_v1.HealthCheckRequest, ss grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	if err := callOf(ss.Context()).Lodge(h.watches); err != nil {
		return err
	}
	end := time.NewTimer(h.life)
	defer end.Stop()
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
		case <-end.C:
			return errWatchOver
		case <-tick.C:
		}
	}
}
