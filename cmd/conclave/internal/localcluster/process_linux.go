package localcluster

import "syscall"

// processAttr keeps the terminal's signals from a process, which its parent stops
// gracefully, and ends it if the parent is killed.
func processAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
