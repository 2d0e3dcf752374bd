//go:build !linux

package main

import "syscall"

// childAttr keeps the terminal's signals from a child, which its parent stops in
// good order.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
