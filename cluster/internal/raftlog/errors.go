package raftlog

import "errors"

// What stops a store for good.
var (
	// ErrCorrupt: something on the disk is not what was stored.
	ErrCorrupt = errors.New("stored data is corrupt")
	// ErrStorage: a write failed. What reached the disk is not known, so the
	// node may neither go on nor try again.
	ErrStorage = errors.New("storage failed")
	// ErrDiskStuck: a write has not returned for too long.
	ErrDiskStuck = errors.New("disk does not answer")
)
