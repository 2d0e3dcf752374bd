// Package packaging has what brings Conclave to machines: the unit for systemd, the Debian
// package, the Helm chart, and rules and boards for its metrics. Here are their tests.
package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/conclavekms/conclave/integration/harness"
	"github.com/conclavekms/conclave/integration/optional"
)

func TestMain(m *testing.M) { harness.Main(m) }

const unitFile = "systemd/conclave.service"

// read returns the content of a file below packaging.
func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.FromSlash(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestSystemdUnit: systemd understands the unit, and rates its sandbox as it did.
func TestSystemdUnit(t *testing.T) {
	t.Parallel()
	analyze := optional.Program(t, "systemd-analyze")
	// The program that the unit starts need not be installed here.
	unit := strings.Replace(read(t, unitFile), "ExecStart=/usr/bin/conclave ", "ExecStart="+binary(t)+" ", 1)
	name := filepath.Join(t.TempDir(), "conclave.service")
	if err := os.WriteFile(name, []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", name).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	// The scale goes from 0 to 100.
	out, err = exec.CommandContext(t.Context(), analyze, "security", "--offline=true", "--threshold=15", name).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}
