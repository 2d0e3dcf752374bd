package keyengine

import (
	"fmt"

	"github.com/conclavekms/conclave/fsm"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// operationUsed are the names of useNumber's operations.
var operationUsed = func() map[uint32]string {
	m := make(map[uint32]string, len(useNumber))
	for name, n := range useNumber {
		m[n] = name
	}
	return m
}()

// getKeyLastUsage reads the newest use once its record is committed: nearly every
// record is a use, so that one which depended on it would seldom be accepted.
func getKeyLastUsage(ev *eval, in *kmsapi.GetKeyLastUsageInput) (*kmsapi.GetKeyLastUsageOutput, error) {
	t, err := ev.managed(*in.KeyId)
	if err != nil {
		return nil, err
	}
	ev.later = func(s *fsm.State) (any, error) {
		out := &kmsapi.GetKeyLastUsageOutput{
			KeyId: &t.arn, KeyCreationDate: timeOf(t.key.Created), KeyLastUsage: &kmsapi.KeyLastUsageData{},
			TrackingStartDate: timeOf(max(t.key.Created, ev.cluster().Created)),
		}
		u := s.KeyUse(t.id)
		if u == nil {
			return out, nil
		}
		name, ok := operationUsed[u.Operation]
		if !ok || len(u.RequestId) != 16 || len(u.EventId) != 16 {
			return nil, fmt.Errorf("last use of key %s: operation %d, request %x, event %x", t.id, u.Operation, u.RequestId, u.EventId)
		}
		out.KeyLastUsage = &kmsapi.KeyLastUsageData{
			Operation: &name, Timestamp: timeOf(u.Time),
			CloudTrailEventId: new(formatUUID([16]byte(u.EventId))), KmsRequestId: new(formatUUID([16]byte(u.RequestId))),
		}
		return out, nil
	}
	return nil, nil
}
