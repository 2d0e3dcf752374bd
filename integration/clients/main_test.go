// Package clients has programs and libraries that others wrote for AWS KMS use
// Conclave as they come. It is a module of its own, for what these need is much,
// and some of it is at odds with what Conclave needs. `make test-clients` builds
// the programs and runs the tests.
package clients

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// conclave is the path of the binary under test.
var conclave string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "conclave-clients-")
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
	// Whatever asks for more than this machine is led here.
	var strayed atomic.Int32
	outside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		strayed.Add(1)
		fmt.Fprintf(os.Stderr, "a client asked for %s\n", r.Host)
		http.Error(w, "tests stay on this machine", http.StatusForbidden)
	}))
	defer outside.Close()
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		os.Setenv(name, outside.URL)
	}
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		os.Setenv(name, "localhost,"+net.IPv4(127, 0, 0, 1).String())
	}
	code := m.Run()
	if n := strayed.Load(); n > 0 {
		fmt.Fprintf(os.Stderr, "clients wanted to leave this machine %d times\n", n)
		code = max(code, 1)
	}
	return code
}
