//go:build !linux

package diagnose

// synchronised is not known on other systems than Linux.
func synchronised() (kept, known bool) { return false, false }
