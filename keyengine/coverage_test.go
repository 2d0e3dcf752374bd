package keyengine

import (
	"errors"
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/internal/request"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// TestInternalErrorsAreRecorded: an operation that fails inside has a record of its name, without
// the cause.
func TestInternalErrorsAreRecorded(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	cause := errors.New("disk on fire at /dev/sda")
	for _, op := range Operations() {
		twin := request.Define(request.Operation{Service: op.Service, Name: op.Name, ReadOnly: op.ReadOnly}, func(*request.Evaluation, *kmsapi.GenerateRandomInput) (*request.None, error) {
			return nil, cause
		}, nil)
		caller := c.caller(c.root)
		size := c.Audit.Size()
		_, err := c.engine.Do(t.Context(), caller, twin, new(kmsapi.GenerateRandomInput))
		wantError(t, err, kmsapi.ErrInternal, "")
		rec := c.lastRecord()
		if c.Audit.Size() != size+1 || rec.EventName != op.Name || rec.EventSource != string(op.Service)+".amazonaws.com" || rec.ErrorCode != "KMSInternalException" ||
			rec.ErrorMessage != "" || rec.ReadOnly != op.ReadOnly || string(rec.RequestId) != string(caller.RequestID[:]) || rec.Identity.GetType() != "Root" {
			t.Errorf("%s: %v", op.Name, rec)
		}
	}
}

// TestThrottledRequestsAreCounted: the requests of a principal that was refused too often have no
// records of their own, whatever they ask for, and one record with their number.
func TestThrottledRequestsAreCounted(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	eve := c.newUser("arn:aws:iam::111122223333:user/eve")
	for range c.engine.limits.refusals.burst {
		c.engine.limits.refused(c.caller(eve), kmsapi.ErrAccessDenied)
	}
	size := c.Audit.Size()
	for _, op := range Operations() {
		_, err := c.engine.Do(t.Context(), c.caller(eve), op, op.NewInput())
		wantError(t, err, record.ErrThrottled, "…")
	}
	if n := c.Audit.Size() - size; n != 0 {
		t.Errorf("%d records of throttled requests, want none", n)
	}
	c.engine.recordThrottled(t.Context())
	rec := c.lastRecord()
	if c.Audit.Size() != size+1 || rec.EventName != "ThrottleRequests" || rec.ErrorCode != "ThrottlingException" || rec.Identity.Arn != eve.Principal().ARN ||
		rec.ServiceEventDetails[0].GetNumber() != int64(len(Operations())) {
		t.Errorf("got record %v, want one of %d requests", rec, len(Operations()))
	}
}
