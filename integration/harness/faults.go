package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/conclavekms/conclave/cmd/conclave/process"
)

// The methods below inject faults into the machine of a node that is a process. A fault
// lasts until the function that the method returned is called, or until the end of the
// test.

// Pause stops the node's process for a while, wherever it is, and lets it continue, as the
// migration of a virtual machine or closing a laptop's lid does.
func (n *Node) Pause(d time.Duration) error {
	run, err := n.runs()
	if err != nil {
		return err
	}
	if err := run.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	time.Sleep(d)
	return run.Signal(syscall.SIGCONT)
}

// runs returns the node's process.
func (n *Node) runs() (*process.Process, error) {
	p, ok := n.server.(*nodeProcess)
	if !ok {
		return nil, fmt.Errorf("node %s is not a process of its own", n.ID)
	}
	run := p.running()
	if run == nil {
		return nil, fmt.Errorf("node %s is not running", n.ID)
	}
	return run, nil
}

// hang is longer than any test.
const hang = time.Hour

// HangDisk makes every fsync of the node's process hang until mend is called.
func (n *Node) HangDisk() (mend func(), err error) { return n.SlowDisk(hang) }

// SlowDisk makes every fsync of the node's process take longer until mend is called. When
// mend returns, the disk is as before. This uses strace, which also has to stop the process
// at every other system call; SlowDisk(0) measures the effect of that alone. CanSlowDisks
// reports whether this is possible.
func (n *Node) SlowDisk(by time.Duration) (mend func(), err error) {
	run, err := n.runs()
	if err != nil {
		return nil, err
	}
	const calls = "fsync,fdatasync"
	var said strings.Builder
	tracer := exec.Command("strace", "-f", "-qq", "-o", os.DevNull, "-p", strconv.Itoa(run.PID()),
		"-e", "trace="+calls, "-e", "signal=none",
		"-e", "inject="+calls+":delay_enter="+strconv.FormatInt(by.Microseconds(), 10))
	tracer.Stderr = &said
	tracer.SysProcAttr = process.Attr()
	if err := tracer.Start(); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tracer.Wait()
	}()
	mend = sync.OnceFunc(func() {
		_ = tracer.Process.Signal(syscall.SIGTERM) // makes strace detach from the process
		select {
		case <-done:
		case <-time.After(Patience):
			_ = tracer.Process.Kill()
			<-done
		}
	})
	n.cluster.T.Cleanup(mend)
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		if all, err := traced(run.PID()); err != nil {
			mend()
			return nil, err
		} else if all {
			return mend, nil
		}
		select {
		case <-done:
			return nil, fmt.Errorf("strace ended: %s", said.String())
		default:
		}
		if time.Since(start) > Patience {
			mend()
			return nil, errors.New("strace does not get hold of the process")
		}
	}
}

// traced reports whether every thread of a process has a tracer.
func traced(pid int) (bool, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(threads) == 0 {
		return false, fmt.Errorf("process %d has no threads: %v", pid, err)
	}
	for _, file := range threads {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		if strings.Contains(string(b), "TracerPid:\t0\n") {
			return false, nil
		}
	}
	return true, nil
}

// CanSlowDisks returns why SlowDisk and HangDisk are not possible here, or nil if they are.
func CanSlowDisks() error {
	if _, err := exec.LookPath("strace"); err != nil {
		return errors.New("strace is not installed")
	}
	victim := exec.Command("sleep", "60")
	victim.SysProcAttr = process.Attr()
	if err := victim.Start(); err != nil {
		return err
	}
	defer victim.Wait()
	defer victim.Process.Kill()
	tracer := exec.Command("strace", "-f", "-qq", "-o", os.DevNull, "-p", strconv.Itoa(victim.Process.Pid),
		"-e", "trace=fsync", "-e", "inject=fsync:delay_enter=1")
	var said strings.Builder
	tracer.Stderr = &said
	if err := tracer.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- tracer.Wait() }()
	defer func() { _ = tracer.Process.Signal(syscall.SIGTERM) }()
	for start := time.Now(); time.Since(start) < Patience; time.Sleep(time.Millisecond) {
		select {
		case err := <-done:
			return fmt.Errorf("strace may not trace processes here: %w: %s", err, said.String())
		default:
		}
		if all, err := traced(victim.Process.Pid); err != nil || all {
			return err
		}
	}
	return errors.New("strace does not get hold of a process")
}

// diskDir returns the directory of the node's own file system.
func (n *Node) diskDir() string { return filepath.Join(n.cluster.dir, n.ID+".disk") }

func (n *Node) ballast() string { return filepath.Join(n.diskDir(), "ballast") }

// FillDisk leaves the given number of bytes free on the node's own disk, which requires
// Options.Disk, by growing or shrinking a file on it.
func (n *Node) FillDisk(free int64) error {
	f, err := os.OpenFile(n.ballast(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for range 100 {
		var info os.FileInfo
		if info, err = f.Stat(); err != nil {
			return err
		}
		now, _, err := room(n.diskDir())
		if err != nil {
			return err
		}
		// The node uses space at the same time.
		if err = resize(f, info.Size(), info.Size()+now-free); !errors.Is(err, syscall.ENOSPC) {
			return errors.Join(err, f.Close())
		}
	}
	return errors.New("the node takes room faster than the disk can be filled")
}

// EmptyDisk frees everything that FillDisk allocated.
func (n *Node) EmptyDisk() error { return os.Remove(n.ballast()) }

// DiskRoom returns the free and the total bytes of the node's own disk.
func (n *Node) DiskRoom() (free, total int64, err error) { return room(n.diskDir()) }
