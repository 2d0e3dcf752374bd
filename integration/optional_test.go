package integration

import (
	"os"
	"testing"
)

// unavailable skips a test for want of a tool that not every machine has, or fails
// it where the tools are promised to be there.
func unavailable(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CONCLAVE_NO_SKIP") == "1" {
		t.Fatalf("CONCLAVE_NO_SKIP is set, but "+format, args...)
	}
	t.Skipf(format, args...)
}

// full reports whether the tests run at length. Where they do not, those that repeat a
// thing that takes long repeat it less often.
func full() bool { return os.Getenv("CONCLAVE_FULL") == "1" }

// notWithRaces skips a test of real processes where tests are cut short for the race
// detector, which they are not built with.
func notWithRaces(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("real processes, without the race detector")
	}
}
