package trailops

import (
	"errors"
	"testing"

	"github.com/conclavekms/conclave/keyengine/iam"
	"github.com/conclavekms/conclave/keyengine/internal/auditindex"
	"github.com/conclavekms/conclave/keyengine/internal/request"
)

// TestUnknownRecord: a lookup that does not know where its own record is does not say that there
// are no events.
func TestUnknownRecord(t *testing.T) {
	if _, err := new(lookup).begin(&request.Evaluation{Caller: new(iam.Caller)}); !errors.Is(err, auditindex.ErrBehind) {
		t.Errorf("got %v, want ErrBehind", err)
	}
}
