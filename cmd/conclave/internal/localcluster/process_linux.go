package localcluster

import "syscall"

// processAttr keeps the terminal's signals from a process, which its parent stops in
// good order, and ends it when the parent is killed.
func processAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
