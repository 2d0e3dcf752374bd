package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/conclavekms/conclave/cmd/conclave/process"
)

var binary struct {
	sync.Mutex
	dir, path string
	err       error
}

// Binary returns the path of the real binary, which is built once for all tests of the
// package. Main removes it at the end.
func Binary() (string, error) {
	binary.Lock()
	defer binary.Unlock()
	if binary.path != "" || binary.err != nil {
		return binary.path, binary.err
	}
	if binary.dir, binary.err = os.MkdirTemp("", "conclave-test-"); binary.err != nil {
		return "", binary.err
	}
	path := filepath.Join(binary.dir, "conclave")
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", path, "github.com/conclavekms/conclave/cmd/conclave")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		binary.err = fmt.Errorf("building the binary: %w\n%s", err, out)
		return "", binary.err
	}
	binary.path = path
	return path, nil
}

// Main is the TestMain of packages whose tests start nodes as processes: it runs the tests,
// removes what Binary built, and ends the process.
func Main(m *testing.M) {
	code := m.Run()
	binary.Lock()
	if binary.dir != "" {
		os.RemoveAll(binary.dir)
	}
	os.Exit(code)
}

// refusalRate is the rate of refusals at which nodes throttle a principal. Tests are refused
// more often than honest callers.
const refusalRate = 1e6

// nodeProcess is a node that runs in its own process.
type nodeProcess struct {
	n     *Node
	peers map[string]string
	joins bool // the peers, rather than being one of them

	mu  sync.Mutex
	run *process.Process // nil unless the node was started and is meant to run
}

func (p *nodeProcess) start(context.Context) error {
	path := p.n.Binary
	if path == "" {
		var err error
		if path, err = Binary(); err != nil {
			return err
		}
	}
	c := p.n.cluster
	var peers []string
	for id, addr := range p.peers {
		peers = append(peers, id+"="+addr)
	}
	slices.Sort(peers)
	named := "--peers"
	if p.joins {
		named = "--join"
	}
	args := []string{path, "server",
		"--node-id", p.n.ID, "--data", p.n.Data,
		"--aws-listen", p.n.AWS, "--grpc-listen", p.n.GRPC, "--peer-listen", p.n.Peer, "--peer-advertise", p.n.advertise,
		"--ops-listen", p.n.Ops, "--gossip-listen", "none", named, strings.Join(peers, ","),
		"--tls-cert", p.n.certFile(), "--tls-key", p.n.keyFile(), "--tls-ca", c.CAFile(),
		"--allow-unlocked-memory", "--log-level", "info"}
	if p.n.Binary == "" { // the release before this one has no such flag
		args = append(args, "--refusal-rate", strconv.Itoa(refusalRate))
	}
	args = append(args, c.opts.Flags...)
	if f := c.opts.Files; f > 0 {
		args = append([]string{"sh", "-c", `ulimit -n "$0" && exec "$@"`, strconv.Itoa(f)}, args...)
	}
	run, err := process.Start(process.Command{Path: args[0], Args: args[1:], Log: p.n.logFile()})
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.run = run
	return nil
}

// running returns the process, or nil if the node was stopped or never started.
func (p *nodeProcess) running() *process.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.run
}

// take returns what running does. From then on the process may end.
func (p *nodeProcess) take() *process.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	run := p.run
	p.run = nil
	return run
}

func (p *nodeProcess) kill() { p.take().Kill() }

func (p *nodeProcess) stop(ctx context.Context) error { return p.take().Stop(ctx) }

func (p *nodeProcess) failure() error { return p.running().Err() }
