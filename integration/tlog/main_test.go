// Package tlog has programs that others wrote for transparency logs judge Conclave's: Tessera's
// checker and client, Torchwood's client, and the proofs of transparency-dev/merkle. It is a
// module of its own, so that the server depends on none of these. `make test-tlog` runs it.
package tlog

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// conclave is the path of the binary under test.
var conclave string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "conclave-tlog-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if conclave = os.Getenv("CONCLAVE_BINARY"); conclave == "" {
		conclave = filepath.Join(dir, "conclave")
		build := exec.Command("go", "build", "-o", conclave, "./cmd/conclave")
		build.Dir = filepath.Join("..", "..")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building conclave: %v\n%s", err, out)
			return 1
		}
	}
	return m.Run()
}
