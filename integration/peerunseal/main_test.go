package peerunseal

import (
	"testing"

	"github.com/conclavekms/conclave/integration/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
