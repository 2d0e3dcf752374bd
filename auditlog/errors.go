package auditlog

import (
	"errors"

	"github.com/conclavekms/conclave/auditlog/internal/disk"
)

var (
	// ErrDiverged is returned for content that contradicts the replicated state:
	// a different entry with the same index, or a different root. The node must
	// stop.
	ErrDiverged = errors.New("audit log differs from the cluster's")
	// ErrCorrupt is returned for damage to files that were durable. The error
	// names the file, whose content a peer can replace.
	ErrCorrupt = errors.New("audit log is damaged")
	// ErrLocked is returned for a log directory that another process has open.
	ErrLocked = disk.ErrLocked
	// ErrFailed is returned by all methods after a write failed.
	ErrFailed = errors.New("audit log stopped")
	// ErrMissing is returned for history that this log does not have; see
	// Missing.
	ErrMissing = errors.New("audit entries are missing here")
	// ErrGap is returned for an entry that does not follow the newest one.
	ErrGap = errors.New("audit entry out of order")
	// ErrRejected is returned for backfill that does not lead to the cluster's
	// root. What was collected and not yet verified is discarded; ask another
	// peer.
	ErrRejected = errors.New("backfilled audit entries rejected")
	// ErrStaleCheckpoint is returned for a checkpoint that is older than the
	// stored one, or covers entries that are not durable here.
	ErrStaleCheckpoint = errors.New("audit checkpoint refused")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("audit log is closed")
)
