package clients

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// programs is where `make test-clients` puts the programs that it builds.
var programs = func() string {
	dir, err := filepath.Abs(filepath.Join("..", "..", "bin", "clients"))
	if err != nil {
		panic(err)
	}
	return dir
}()

// unavailable skips a test for want of something that not every machine has, or
// fails it where everything is promised to be there.
func unavailable(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CONCLAVE_NO_SKIP") == "1" {
		t.Fatalf("CONCLAVE_NO_SKIP is set, but "+format, args...)
	}
	t.Skipf(format, args...)
}

// needProgram skips a test that needs a program of a module beside this package,
// where it was not to be built or was not.
func needProgram(t *testing.T, module, name string) {
	t.Helper()
	if wanted, ok := os.LookupEnv("CONCLAVE_PROGRAMS"); ok && !slices.Contains(strings.Fields(wanted), module) {
		t.Skipf("%s is left out: CONCLAVE_PROGRAMS is %q", module, wanted)
	}
	if _, err := exec.LookPath(filepath.Join(programs, name)); err != nil {
		unavailable(t, "there is no %s, which `make test-clients` builds: %v", name, err)
	}
}
