package conformance

import (
	"os"
	"testing"

	"github.com/conclavekms/conclave/integration/harness"
)

func TestMain(m *testing.M) {
	code := m.Run()
	harness.RemoveBinary()
	os.Exit(code)
}
