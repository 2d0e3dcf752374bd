package main

import "syscall"

// childAttr keeps the terminal's signals from a child, which its parent stops in
// good order, and ends it when the parent is killed.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
