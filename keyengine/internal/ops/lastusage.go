package ops

import (
	"fmt"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// operationUsed maps the numbers of request.UseNumber to the names of operations.
var operationUsed = func() map[uint32]string {
	m := make(map[uint32]string, len(request.UseNumber))
	for name, n := range request.UseNumber {
		m[n] = name
	}
	return m
}()

// getKeyLastUsage reads the last use after its record is committed. With the last use in
// its read set, the record would seldom be accepted, because nearly every other record is a
// use.
func getKeyLastUsage(ev *request.Evaluation, in *kmsapi.GetKeyLastUsageInput) (*kmsapi.GetKeyLastUsageOutput, error) {
	t, err := ev.Managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	ev.Later = func(s *fsm.State) (any, error) {
		out := &kmsapi.GetKeyLastUsageOutput{
			KeyId: &t.ARN, KeyCreationDate: TimeOf(t.Key.Created), KeyLastUsage: &kmsapi.KeyLastUsageData{},
			TrackingStartDate: TimeOf(max(t.Key.Created, ev.Cluster().Created)),
		}
		u := s.KeyUse(t.ID)
		if u == nil {
			return out, nil
		}
		name, ok := operationUsed[u.Operation]
		if !ok || len(u.RequestId) != 16 || len(u.EventId) != 16 {
			return nil, fmt.Errorf("last use of key %s: operation %d, request %x, event %x", t.ID, u.Operation, u.RequestId, u.EventId)
		}
		out.KeyLastUsage = &kmsapi.KeyLastUsageData{
			Operation: &name, Timestamp: TimeOf(u.Time),
			CloudTrailEventId: new(record.UUID([16]byte(u.EventId))), KmsRequestId: new(record.UUID([16]byte(u.RequestId))),
		}
		return out, nil
	}
	return nil, nil
}
