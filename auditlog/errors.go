package auditlog

import (
	"errors"
)

var (
	// ErrDiverged is content that contradicts the replicated state: another entry
	// under the same index, or another root. The node must stop.
	ErrDiverged = errors.New("audit log differs from the cluster's")
	// ErrCorrupt is damage to files that were once durable. The error names the
	// file; it can be replaced by a peer's.
	ErrCorrupt = errors.New("audit log is damaged")
	// ErrLocked is a log directory that another process has open.
	ErrLocked = errors.New("audit log is in use by another process")
	// ErrFailed is returned for everything after a write failed.
	ErrFailed = errors.New("audit log stopped")
	// ErrMissing is history that this log does not have; see Missing.
	ErrMissing = errors.New("audit entries are missing here")
	// ErrGap is an entry that does not follow the newest one.
	ErrGap = errors.New("audit entry out of order")
	// ErrRejected is backfill that does not lead to the cluster's root. What was
	// not yet verified of it is gone; ask another peer.
	ErrRejected = errors.New("backfilled audit entries rejected")
	// ErrStaleCheckpoint is a checkpoint that is older than the stored one, or
	// covers entries that are not durable here.
	ErrStaleCheckpoint = errors.New("audit checkpoint refused")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("audit log is closed")
)
