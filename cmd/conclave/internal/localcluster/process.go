package localcluster

import (
	"bytes"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/internal/cli"
)

// Process is a process of this program.
type Process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// StartProcess starts this program again, with only this environment, logging to a
// file.
func StartProcess(env []string, log string, args ...string) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the process has its own copy
	cmd := exec.Command(self, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = env, out, out, processAttr()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{cmd: cmd, log: log, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // its log says how it ended
		close(p.done)
	}()
	return p, nil
}

// Ended reports whether the process has ended, or was never started.
func (p *Process) Ended() bool {
	if p == nil {
		return true
	}
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends a signal if the process is still running.
func (p *Process) Signal(s os.Signal) {
	if !p.Ended() {
		_ = p.cmd.Process.Signal(s) // it may just have ended
	}
}

// LastLog returns the end of the process's log.
func (p *Process) LastLog() string {
	raw, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	return cli.Indent(string(bytes.Join(lines[max(0, len(lines)-15):], []byte("\n"))))
}

// Wait waits for the process to end, and kills it if that takes too long.
func (p *Process) Wait(limit time.Duration) {
	if p == nil {
		return
	}
	select {
	case <-p.done:
	case <-time.After(limit):
		p.Signal(syscall.SIGKILL)
		<-p.done
	}
}

// PID returns the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }
