package harness

import (
	"os"
	"testing"
)

// Full reports whether the tests run at length. Where they do not, those that repeat a
// thing that takes long repeat it less often.
func Full() bool { return os.Getenv("CONCLAVE_FULL") == "1" }

// AtLength reports whether what takes minutes is run too, as by make faults.
func AtLength() bool { return os.Getenv("CONCLAVE_FAULTS") == "1" }

// NotWithRaces skips a test of real processes where tests are cut short for the race
// detector, which they are not built with.
func NotWithRaces(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("real processes, without the race detector")
	}
}
