package raftlog

import "errors"

// Errors that stop a store for good.
var (
	// ErrCorrupt means that data on the disk differs from what was stored.
	ErrCorrupt = errors.New("stored data is corrupt")
	// ErrStorage means that a write failed. It is unknown what reached the disk, so the
	// node may neither continue nor try again.
	ErrStorage = errors.New("storage failed")
	// ErrDiskStuck means that a write has not returned for too long.
	ErrDiskStuck = errors.New("disk does not answer")
)
