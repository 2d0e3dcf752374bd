package keyengine

import (
	"testing"

	"github.com/conclavekms/conclave/keyengine/internal/request"
)

func TestGrowingOperationsExist(t *testing.T) {
	t.Parallel()
	grows := make(map[string]bool)
	for _, op := range Operations() {
		grows[op.Name] = grows[op.Name] || !op.ReadOnly
	}
	for name := range request.Growing {
		if !grows[name] {
			t.Errorf("Growing has %s, which is not an operation that changes the state", name)
		}
	}
}
