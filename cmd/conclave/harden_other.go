//go:build !linux

package main

// harden does nothing on other systems than Linux, for which servers are not
// meant.
func harden() error { return nil }
