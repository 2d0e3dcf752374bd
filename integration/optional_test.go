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
