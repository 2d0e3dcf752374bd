//go:build !linux

package localcluster

import "syscall"

// processAttr keeps the terminal's signals from a process, which its parent stops
// gracefully.
func processAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
