package process

import "syscall"

// Attr returns the attributes of processes that Start starts: the terminal's signals do not
// reach the process, which whoever started it stops, and it is killed if that one ends.
func Attr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
