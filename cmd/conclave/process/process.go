// Package process runs nodes as processes on this machine, for the demo, the benchmark and
// tests. On Linux, a process ends at the latest when the one that started it does, or the
// thread: a goroutine that ends while it is locked to its thread must start none. The output
// of a process is appended to a file, the end of which is part of errors.
package process

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// Command describes a process.
type Command struct {
	Path string   // of the program
	Args []string // without the program's name
	Env  []string // nil for that of this process
	Log  string   // file for standard output and standard error
}

// Process is a process that was started. A nil Process is one that has ended.
type Process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// Start starts a process.
func Start(c Command) (*Process, error) {
	out, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the process has its own copy
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = c.Env, out, out, Attr()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{cmd: cmd, log: c.Log, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // Err tells how it ended
		close(p.done)
	}()
	return p, nil
}

// Ended reports whether the process has ended.
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

// Err returns how the process ended, with the end of its log; nil while it runs.
func (p *Process) Err() error {
	if p == nil || !p.Ended() {
		return nil
	}
	return fmt.Errorf("the process ended with %v; its log ends with:\n%s", p.cmd.ProcessState, p.LastLog())
}

// Signal sends a signal. It returns os.ErrProcessDone if the process has ended.
func (p *Process) Signal(s os.Signal) error {
	if p.Ended() {
		return os.ErrProcessDone
	}
	return p.cmd.Process.Signal(s)
}

// Kill ends the process at once, and waits until it has ended.
func (p *Process) Kill() {
	if p != nil {
		_ = p.Signal(syscall.SIGKILL) // unless it has ended already
		<-p.done
	}
}

// Stop sends SIGTERM and waits until the process has ended. It kills the process when ctx
// ends. It returns an error unless the process exits with code 0.
func (p *Process) Stop(ctx context.Context) error {
	if p == nil {
		return nil
	}
	_ = p.Signal(syscall.SIGTERM) // unless it has ended already
	select {
	case <-p.done:
	case <-ctx.Done():
		p.Kill()
		return fmt.Errorf("the process was killed, as it did not stop: %w", ctx.Err())
	}
	if p.cmd.ProcessState.ExitCode() != 0 {
		return p.Err()
	}
	return nil
}

// logLines is how many lines of a log are the end of it.
const logLines = 15

// LastLog returns the last lines of the process's log.
func (p *Process) LastLog() string {
	raw, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-logLines):], []byte("\n")))
}

// PID returns the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }
