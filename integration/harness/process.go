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
	"syscall"
	"testing"
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

// process is a node that runs in its own process.
type process struct {
	n     *Node
	peers map[string]string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
	err  error
}

func (p *process) start(context.Context) error {
	path, err := Binary()
	if err != nil {
		return err
	}
	c := p.n.cluster
	logs, err := os.OpenFile(p.n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logs.Close()
	var peers []string
	for id, addr := range p.peers {
		peers = append(peers, id+"="+addr)
	}
	slices.Sort(peers)
	args := []string{path, "server",
		"--node-id", p.n.ID, "--data", p.n.Data,
		"--aws-listen", p.n.AWS, "--grpc-listen", p.n.GRPC, "--peer-listen", p.n.Peer, "--peer-advertise", p.n.advertise,
		"--ops-listen", p.n.Ops, "--gossip-listen", "none", "--peers", strings.Join(peers, ","),
		"--tls-cert", p.n.certFile(), "--tls-key", p.n.keyFile(), "--tls-ca", c.CAFile(),
		"--allow-unlocked-memory", "--log-level", "info"}
	if f := c.opts.Files; f > 0 {
		args = append([]string{"sh", "-c", `ulimit -n "$0" && exec "$@"`, strconv.Itoa(f)}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = logs, logs
	// If the test's process dies, its children must too.
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	p.mu.Lock()
	p.cmd, p.done, p.err = cmd, done, nil
	p.mu.Unlock()
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.cmd == cmd {
			p.err = fmt.Errorf("it exited: %v; its log ends with:\n%s", err, tail(p.n.logFile(), 2000))
		}
		close(done)
	}()
	return nil
}

func tail(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-n):])
}

func (p *process) signal(s syscall.Signal) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		done := make(chan struct{})
		close(done)
		return done
	}
	_ = p.cmd.Process.Signal(s)
	p.cmd = nil // from here on it may end
	return p.done
}

func (p *process) kill() { <-p.signal(syscall.SIGKILL) }

func (p *process) stop(ctx context.Context) error {
	p.mu.Lock()
	cmd := p.cmd
	p.mu.Unlock()
	done := p.signal(syscall.SIGTERM)
	select {
	case <-done:
		if code := cmd.ProcessState.ExitCode(); code != 0 {
			return fmt.Errorf("exit code %d after SIGTERM; its log ends with:\n%s", code, tail(p.n.logFile(), 2000))
		}
		return nil
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-done
		return fmt.Errorf("it did not stop: %w", ctx.Err())
	}
}

func (p *process) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}
