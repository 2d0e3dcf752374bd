package integration

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"

	"github.com/conclavekms/conclave/integration/optional"
)

// TestMakeHelp: `make help` lists every target that somebody may call.
func TestMakeHelp(t *testing.T) {
	t.Parallel()
	optional.Program(t, "make")
	raw, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	phony := regexp.MustCompile(`(?m)^\.PHONY: (.*)$`).FindSubmatch(raw)
	if phony == nil {
		t.Fatal("the Makefile names no phony targets")
	}
	out, err := exec.CommandContext(t.Context(), "make", "-C", "..", "--no-print-directory", "help").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range strings.Fields(string(phony[1])) {
		if !regexp.MustCompile(`(?m)^  make ` + regexp.QuoteMeta(target) + ` +\S`).Match(out) {
			t.Errorf("make help does not list %s:\n%s", target, out)
		}
	}
}

// TestGoInstallWorks: `go install …@latest` refuses a module with a replace or an
// exclude.
func TestGoInstallWorks(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	mod, err := modfile.Parse("go.mod", raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range mod.Replace {
		t.Errorf("go.mod replaces %s", r.Old.Path)
	}
	for _, x := range mod.Exclude {
		t.Errorf("go.mod excludes %s", x.Mod.Path)
	}
}
