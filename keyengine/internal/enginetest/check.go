package enginetest

import (
	"context"
	"testing"
	"time"

	"github.com/conclavekms/conclave/keyengine/internal/record"
	"github.com/conclavekms/conclave/keyengine/kmsapi"
)

// IsUnavailable reports whether a caller would be told with err that the service is
// unavailable.
func IsUnavailable(err error) bool {
	code, _ := record.Outcome(err)
	return code == string(kmsapi.ErrUnavailable.Code)
}

// WaitFor polls until cond returns true. It fails the test if that takes longer than a
// minute.
func WaitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatalf("timed out waiting until %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}
