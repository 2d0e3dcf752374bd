//go:build !linux

package process

import "syscall"

// Attr returns the attributes of processes that Start starts: the terminal's signals do not
// reach the process, which whoever started it stops.
func Attr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
