// Package optional is for tests that need something that not every machine has, such as a
// program. Such a test is skipped where it is missing, and fails where everything is promised
// to be there.
package optional

import (
	"os"
	"os/exec"
	"testing"
)

// Skip skips a test because the machine lacks what it needs, for the reason given. With
// CONCLAVE_NO_SKIP=1 in the environment it fails the test instead.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CONCLAVE_NO_SKIP") == "1" {
		t.Fatalf("CONCLAVE_NO_SKIP is set, but "+format, args...)
	}
	t.Skipf(format, args...)
}

// Program returns the path of a program. If it is not installed, the test is skipped.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Skip(t, "%s is not installed: %v", name, err)
	}
	return path
}
