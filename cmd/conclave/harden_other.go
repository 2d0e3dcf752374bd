//go:build !linux

package main

// harden does nothing where Linux's means are missing; servers are for Linux.
func harden() error { return nil }
